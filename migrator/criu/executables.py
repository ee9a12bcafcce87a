# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that a process executes, if some process of the container also has it open with O_PATH.

systemd has its systemd-executor open that way, and whatever it starts executes that first; the `(sd-pam)` process of a
login never executes anything else. CRIU recognises a file that it has already dumped by its device and inode alone, no
matter how it was opened (fd_id_generate_special in criu/file-ids.c, at least up to 4.2.1). So in the images the two are
one file, and a restore opens the executable with O_PATH, which the kernel does not accept for this ("PR_SET_MM_MAP
failed with -9"). So the executable is made a file of its own in the images. The other one stays as it is: a process
that may not read a file can have it open with O_PATH, and must not get more than that. Images of a CRIU that tells the
two apart need no change.
"""

from __future__ import annotations

from pathlib import Path

from migrator.base import bounded_read
from migrator.criu.image_messages import (
    FILES,
    FILES_LIMIT,
    FILES_MAGIC,
    REMAPS,
    REMAPS_MAGIC,
    number,
    once,
    records,
    string,
)
from migrator.criu.protocol_buffers import bytes_field, fields, framed, replaced

MEMORIES = "mm-*.img"
LIMIT = 64 << 20  # bytes of one; a mapping takes a few dozen
_MM_MAGIC = 0x57492820  # criu/include/magic.h
_EXECUTED = 12  # of mm_entry
_FILE, _REGULAR = 2, 3  # of file_entry: its id, and the reg_file_entry of a regular file
_ID, _FLAGS = 1, 2  # of reg_file_entry
_O_PATH = 0o10000000  # asm-generic/fcntl.h
_ORIGINAL = 1  # of remap_file_path_entry
_AS_CRIU_HAS_IT = 0  # O_RDONLY, without any other flag


def separate(images: Path) -> None:
    """Change the images of a dump accordingly; raises OSError, and ValueError if they are damaged."""
    held, highest = _held(images)
    if not held:
        return
    own: dict[int, int] = {}  # for the id of a file held with O_PATH, the id of the executable
    for path in sorted(images.glob(MEMORIES)):
        found = list(records(path, _MM_MAGIC, LIMIT))
        executed = [number(once(record, (_EXECUTED,)).get(_EXECUTED)) for record in found]
        if held.keys().isdisjoint(executed):
            continue
        head = bounded_read.read(path, LIMIT)[:8]
        for id_ in executed:
            if id_ in held and id_ not in own:
                own[id_] = highest = highest + 1
        path.write_bytes(head + b"".join(framed(replaced(record, _EXECUTED, own.get(id_, id_)))
                                         for record, id_ in zip(found, executed, strict=True)))
    if own:
        _append(images / FILES, [_opened_to_execute(held[id_], new) for id_, new in own.items()])
    if own and (images / REMAPS).exists():
        remaps = [(number(once(record, (_ORIGINAL,)).get(_ORIGINAL)), record)
                  for record in records(images / REMAPS, REMAPS_MAGIC, LIMIT)]
        _append(images / REMAPS, [replaced(record, _ORIGINAL, own[id_]) for id_, record in remaps if id_ in own])


def _append(path: Path, added: list[bytes]) -> None:
    """Add messages to an image."""
    with path.open("ab") as file:
        file.write(b"".join(map(framed, added)))


def _held(images: Path) -> tuple[dict[int, bytes], int]:
    """The records of the regular files that are open with O_PATH, by id; and the highest id of any file."""
    held, highest = {}, 0
    for record in records(images / FILES, FILES_MAGIC, FILES_LIMIT) if (images / FILES).exists() else ():
        entry = once(record, (_FILE, _REGULAR))
        id_ = number(entry.get(_FILE))
        highest = max(highest, id_)
        if _REGULAR in entry and number(once(string(entry[_REGULAR]), (_FLAGS,)).get(_FLAGS)) & _O_PATH:
            held[id_] = record
    return held, highest


def _opened_to_execute(record: bytes, id_: int) -> bytes:
    """The record of the same file under another id, as CRIU writes it for a file that is executed but not open."""
    regular = string(once(record, (_REGULAR,))[_REGULAR])
    regular = replaced(replaced(regular, _ID, id_), _FLAGS, _AS_CRIU_HAS_IT)
    return b"".join(bytes_field(_REGULAR, regular) if field == _REGULAR else raw
                    for field, _, raw in fields(replaced(record, _FILE, id_)))
