# SPDX-License-Identifier: GPL-2.0-or-later
"""What a `btrfs send` stream from another host may contain.

Its commands follow each other, each after a header with its length, number and a checksum (struct btrfs_cmd_header in
the kernel's fs/btrfs/send.h). Commands of version 1 carry every byte that they write. In later versions a few bytes can
reserve terabytes (fallocate) or are decompressed here; `btrfs send` makes such streams only on request, which migrator
does not do.

Two commands name another subvolume by its uuid: a snapshot is made of one, and a clone takes extents from one. `btrfs
receive` searches the whole file system for it, and finds other containers (process_snapshot and process_clone in
btrfs-progs' cmds/receive.c). So the receiver says which ones may be named.

All commands but the last name files by path, which `btrfs receive` appends to that of the subvolume verbatim, `..`
included; or uses by itself if it has made no subvolume yet, which then means the directory it receives into, whose
owner, mode and default ACL could be set this way. `btrfs send` joins names from the subvolume's root, whose own path is
empty, by single slashes (get_cur_path in fs/btrfs/send.c), and its first command makes the subvolume: nothing else is
accepted. Where a stream gets through its own symlinks no path shows; see `received_snapshot`.
"""

from __future__ import annotations

import struct
import uuid as uuid_module
from collections.abc import Callable, Generator, Iterable, Iterator

from migrator.errors.data import ReceiveFailed

MAGIC = b"btrfs-stream\0"
VERSION = 1
START = struct.Struct(f"<{len(MAGIC)}sI")  # followed by the version
HEADER = struct.Struct("<IHI")
LAST = 22  # BTRFS_SEND_C_MAX_V1
SUBVOL, SNAPSHOT, LINK, CLONE = 1, 2, 10, 16  # BTRFS_SEND_C_
COMMAND_MAX = 1 << 16  # bytes of any command with its header; btrfs sends none that is longer (BTRFS_SEND_BUF_SIZE_V1)
NAMING = (SUBVOL, SNAPSHOT, CLONE)
ATTRIBUTE = struct.Struct("<HH")  # number and length of each attribute in a command's body
UUID, PATH, PATH_TO, PATH_LINK, CLONE_UUID, CLONE_PATH = 1, 15, 16, 17, 20, 22  # BTRFS_SEND_A_


def plain(stream: Iterable[bytes | memoryview], path: object,
          may_name: Callable[[str], bool]) -> Iterator[bytes | memoryview]:
    """The stream, piece by piece; raises ReceiveFailed, for `path`, before the piece that contains something forbidden.

    That is a command of a later version; one that is longer than any made by `btrfs send`; one with a path that may
    lead out of the subvolume; or one that names a subvolume which is neither the one that the stream makes nor, by its
    uuid, one that it `may_name`. `btrfs receive` never gets such a command in full. Something that does not begin like
    a stream is left for it to refuse.
    """
    commands = _commands(path, may_name)
    left, kept = next(commands)
    begun = b""
    pieces = iter(stream)
    for piece in pieces:
        at = 0
        while at < len(piece):
            count = min(left, len(piece) - at)
            if kept:
                begun += piece[at:at + count]
            at, left = at + count, left - count
            if not left:
                try:
                    left, kept = commands.send(begun)
                except StopIteration:
                    yield piece
                    yield from pieces
                    return
                begun = b""
        yield piece


def _commands(path: object, may_name: Callable[[str], bool]) -> Generator[tuple[int, bool], bytes, None]:
    """Examines a stream: yields how many bytes it wants next, or skips, and is sent the former.

    Ends if it is not a stream; raises ReceiveFailed.
    """
    magic, version = START.unpack((yield START.size, True))
    if magic != MAGIC:
        return
    if version != VERSION:
        raise ReceiveFailed(path=path, reason=f"its stream is of version {version}")
    own = b""  # the name of the subvolume that it makes
    while True:
        length, command, _ = HEADER.unpack((yield HEADER.size, True))
        if command > LAST:
            raise ReceiveFailed(path=path, reason=f"command {command} in its stream is not one of version 1")
        if HEADER.size + length > COMMAND_MAX:  # btrfs would allocate memory for all of it before looking at it
            raise ReceiveFailed(path=path, reason=f"command {command} in its stream has {length} bytes")
        if not length:
            if command in NAMING:
                raise ReceiveFailed(path=path, reason=f"command {command} in its stream has {length} bytes")
            continue  # the end, and commands for which btrfs will report a missing path
        try:
            found = _attributes((yield length, True))
            own = found[UUID] if command in (SUBVOL, SNAPSHOT) else own
            named = found[CLONE_UUID] if command in (SNAPSHOT, CLONE) else None
            text = str(uuid_module.UUID(bytes=named)) if named else ""
        except (KeyError, ValueError, struct.error) as error:
            raise ReceiveFailed(path=path, reason=f"command {command} in its stream is malformed") from error
        if not own:
            raise ReceiveFailed(path=path, reason=f"command {command} in its stream comes before its subvolume")
        for number, value in found.items():
            if _is_path(number, command) and not _stays_inside(value):
                raise ReceiveFailed(path=path, reason=f"command {command} in its stream has the path {value[:100]!r},"
                                    " which `btrfs send` never makes")
        if named and not (command == CLONE and named == own) and not may_name(text):
            raise ReceiveFailed(path=path, reason=f"its stream refers to subvolume {text}, which is not known to "
                                                  "belong to this container alone")


def _is_path(number: int, command: int) -> bool:
    """Whether that attribute of that command is a path in the subvolume: a symlink's target is arbitrary text."""
    return number in (PATH, PATH_TO, CLONE_PATH) or (number == PATH_LINK and command == LINK)


def _stays_inside(path: bytes) -> bool:
    """Whether it is the root's empty path, or names only: btrfs reads it up to its first NUL."""
    return not path or (b"\0" not in path and {b"", b".", b".."}.isdisjoint(path.split(b"/")))


def _attributes(body: bytes) -> dict[int, bytes]:
    """The attributes by number, each only once, because btrfs would take the last of two; raises ValueError."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(body):
        number, length = ATTRIBUTE.unpack_from(body, at)
        at += ATTRIBUTE.size
        if number in found or at + length > len(body):
            raise ValueError(number)
        found[number] = body[at:at + length]
        at += length
    return found
