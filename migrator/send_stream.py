# SPDX-License-Identifier: GPL-2.0-or-later
"""What a stream of `btrfs send` may consist of when it comes from another host.

Its commands follow each other, each behind a header of its length, its number and a checksum (struct btrfs_cmd_header
in the kernel's fs/btrfs/send.h). Those of version 1 bring each byte that they have written. Of a later version a few
bytes reserve terabytes (fallocate), or are decompressed here; `btrfs send` makes such a stream only when it is asked
to, which migrator does not.

Two commands name another subvolume by its uuid: a snapshot is made of one, and a clone takes extents from one. `btrfs
receive` looks for it on the whole file system, and finds other containers (process_snapshot and process_clone in
btrfs-progs' cmds/receive.c). So who receives says which ones may be named.
"""

from __future__ import annotations

import struct
import uuid as uuid_module
from collections.abc import Callable, Generator, Iterable, Iterator

from migrator.errors import ReceiveFailed

MAGIC = b"btrfs-stream\0"
VERSION = 1
START = struct.Struct(f"<{len(MAGIC)}sI")  # and the version
HEADER = struct.Struct("<IHI")
LAST = 22  # BTRFS_SEND_C_MAX_V1
SUBVOL, SNAPSHOT, CLONE = 1, 2, 16  # BTRFS_SEND_C_
COMMAND_MAX = 1 << 16  # bytes of any, with its header, as btrfs sends none that is longer (BTRFS_SEND_BUF_SIZE_V1)
ATTRIBUTE = struct.Struct("<HH")  # number and length of each part of a command's body
UUID, CLONE_UUID = 1, 20  # BTRFS_SEND_A_


def plain(stream: Iterable[bytes | memoryview], path: object,
          may_name: Callable[[str], bool]) -> Iterator[bytes | memoryview]:
    """The stream, piece by piece; raises ReceiveFailed, for `path`, before the piece with what it must not have.

    That is a command of a later version, one that is longer than `btrfs send` makes any, or one that names a subvolume
    which is neither the one that the stream makes nor, by its uuid, one that it `may_name`. `btrfs receive` never has
    the whole of such a command. What does not begin as a stream does is left to it to refuse.
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
    """Looks at a stream: yields how many bytes it wants next, or passes over, and is sent the former.

    Ends where that is no stream; raises ReceiveFailed.
    """
    magic, version = START.unpack((yield START.size, True))
    if magic != MAGIC:
        return
    if version != VERSION:
        raise ReceiveFailed(path=path, reason=f"its stream is of version {version}")
    own = b""  # what it calls the subvolume that it makes
    while True:
        length, command, _ = HEADER.unpack((yield HEADER.size, True))
        if command > LAST:
            raise ReceiveFailed(path=path, reason=f"command {command} in its stream is none of version 1")
        if HEADER.size + length > COMMAND_MAX:  # btrfs would make room for all of it before it looks at it
            raise ReceiveFailed(path=path, reason=f"command {command} in its stream has {length} bytes")
        if command not in (SUBVOL, SNAPSHOT, CLONE):
            if length:
                yield length, False
            continue
        if not length:
            raise ReceiveFailed(path=path, reason=f"command {command} in its stream has {length} bytes")
        try:
            found = _attributes((yield length, True))
            own = own if command == CLONE else found[UUID]
            named = None if command == SUBVOL else found[CLONE_UUID]
            text = str(uuid_module.UUID(bytes=named)) if named else ""
        except (KeyError, ValueError, struct.error) as error:
            raise ReceiveFailed(path=path, reason=f"command {command} in its stream is malformed") from error
        if named and not (command == CLONE and named == own) and not may_name(text):
            raise ReceiveFailed(path=path, reason=f"its stream takes from subvolume {text}, which is not known to be"
                                " this container's alone")


def _attributes(body: bytes) -> dict[int, bytes]:
    """The parts of a command by their numbers, each once, as of two btrfs would take the last; raises ValueError."""
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
