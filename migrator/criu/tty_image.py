# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose controlling terminal a terminal of LXC's is: CRIU may miss that, and is then told.

CRIU asks the first task that has a terminal open whether it is that task's controlling terminal, because that is what
the kernel can answer (parasite_dump_tty in criu/pie/parasite.c). Restored tasks with LXC's console open all share one
open file, because CRIU was given one. So from the second move on, an init with its output there answers for the login
program beside it, which would then lose its job control and its hangup.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from migrator.base import process_id
from migrator.criu.protocol_buffers import fields, number_field, rewritten
from migrator.host import processes, roots

IMAGE = "tty-info.img"
_HEAD = struct.pack("<II", 0x54564319, 0x59453036)  # IMG_COMMON_MAGIC, TTY_INFO_MAGIC in criu/include/magic.h
_TYPE, _SID, _PGRP, _RDEV, _DEV = 2, 6, 7, 8, 13  # tty_info_entry in images/tty.proto
_EXTERNAL = 5  # EXT_TTY

Device = tuple[int, int]  # of a terminal, and of the file system that it is on, as in stat(2)
Session = tuple[int, int]  # its leader and its foreground process group, as pids in the container


def sessions(pids: Iterable[int]) -> dict[Device, Session]:
    """The sessions whose leaders are among these processes and have their controlling terminals open."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            _state, _parent, _group, session, terminal, foreground = process_id.stat_fields(pid)[:6]
            if int(session) != pid or not int(terminal):
                continue
            # The number alone could also be that of a terminal in another devpts.
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # what is not a terminal does not matter
                    seen = roots.opened(str(fd))
                    if stat.S_ISCHR(seen.mode) and seen.special == _device(int(terminal)):
                        found[seen.special, seen.device] = _inside(pid), _inside(int(foreground))
    return found


def _device(number: int) -> int:
    """A device number as in stat(2), from the form in /proc/PID/stat (new_encode_dev in linux/kdev_t.h)."""
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00))


def _inside(pid: int) -> int:
    """A process's id in its own PID namespace; 0 when it has gone."""
    with contextlib.suppress(OSError):
        return int(processes.status(pid, b"NSpid")[-1])
    return 0


def mend(images: Path, found: Mapping[Device, Session]) -> None:
    """Write `found` into the image of a dump where CRIU has missed it."""
    path = images / IMAGE
    if found and path.exists():
        path.write_bytes(mended(path.read_bytes(), found))


def mended(image: bytes, found: Mapping[Device, Session]) -> bytes:
    """The image with each external terminal that has no session given the one found; others are unchanged."""
    def with_session(record: bytes) -> bytes:
        found_fields = list(fields(record))
        values = {number: value for number, value, _ in found_fields if value is not None}
        session = found.get((values.get(_RDEV, 0), values.get(_DEV, 0)))
        if values.get(_TYPE) != _EXTERNAL or values.get(_SID) != 0 or not session or not all(session):
            return record
        new = dict(zip((_SID, _PGRP), session, strict=True))
        return b"".join(number_field(number, new[number]) if number in new else raw for number, _, raw in found_fields)

    return rewritten(image, with_session) if image.startswith(_HEAD) else image
