# SPDX-License-Identifier: GPL-2.0-or-later
"""What a stream of `btrfs send` may consist of when it comes from another host.

Its commands follow each other, each behind a header of its length, its number and a checksum (struct btrfs_cmd_header
in the kernel's fs/btrfs/send.h). Those of version 1 bring each byte that they have written. Of a later version a few
bytes reserve terabytes (fallocate), or are decompressed here; `btrfs send` makes such a stream only when it is asked
to, which migrator does not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from migrator.errors import ReceiveFailed

MAGIC = b"btrfs-stream\0"
START = struct.Struct(f"<{len(MAGIC)}sI")  # and the version
HEADER = struct.Struct("<IHI")
LAST = 22  # BTRFS_SEND_C_MAX_V1


def plain(stream: Iterable[bytes | memoryview], path: object) -> Iterator[bytes | memoryview]:
    """The stream, piece by piece; raises ReceiveFailed, for `path`, before the piece with another command.

    What does not begin as a stream does is left to `btrfs receive` to refuse.
    """
    wanted, begun = START, b""  # what comes next, and what is there of it
    skip = 0  # bytes of the command's body that are still to come
    pieces = iter(stream)
    for piece in pieces:
        at = 0
        while (at := at + skip) < len(piece):
            start, skip = at, 0
            at = start + wanted.size - len(begun)
            begun += piece[start:at]
            if len(begun) < wanted.size:
                break
            if wanted is START:
                if START.unpack(begun)[0] != MAGIC:
                    yield piece
                    yield from pieces
                    return
                wanted = HEADER
            else:
                skip, command, _ = HEADER.unpack(begun)
                if command > LAST:
                    raise ReceiveFailed(path=path, reason=f"command {command} in its stream is none of version 1")
            begun = b""
        else:
            skip = at - len(piece)
        yield piece
