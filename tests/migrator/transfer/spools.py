# SPDX-License-Identifier: GPL-2.0-or-later
"""Files as a receiver leaves them in a spool, and the frames that bring them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from migrator.transfer import segments, spool
from migrator.transfer.frames import SEGMENT_MAX, Kind
from migrator.transfer.rpc import Connection
from migrator.transfer.segments import Segment
from tests.migrator.wire import listed


def store(path: Path, data: bytes, *, complete: bool = True) -> list[Segment]:
    """A stream as the receiver leaves it."""
    found = [Segment(len(piece), segments.digest_of(piece)) for piece in cut(data)]
    path.write_bytes(data)
    lines = b"".join(map(segments.line, found)) + (segments.last_line(segments.whole(found)) if complete else b"")
    path.with_name(path.name + ".index").write_bytes(lines)
    return found


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + SEGMENT_MAX] for at in range(0, len(data), SEGMENT_MAX)]


def segment_body(data: bytes, *, length: int | None = None, payload: bytes | None = None) -> bytes:
    head = struct.pack("!I32s", len(data) if length is None else length, segments.digest_of(data))
    return head + (data if payload is None else payload)


def end_body(*pieces: bytes) -> bytes:
    end = segments.whole([Segment(len(piece), segments.digest_of(piece)) for piece in pieces])
    return struct.pack("!Q32s", *end)


FIRST = (Kind.FILE, b'{"file":0,"keep":0}', 0)


def sent(connection: Connection, *frames: tuple[Kind, bytes, int], end: Kind = Kind.END) -> dict[str, Any]:
    """A transfer of disk-1 by hand; the answer to it."""
    request = connection.request("transfer", {"files": [{"name": "disk-1"}]})
    connection.answer(request)
    for kind, body, flags in frames:
        connection.send(kind, body, flags=flags)
    connection.send(end)
    while (frame := connection.receive()).kind in (Kind.HELD, Kind.ACK, Kind.STOP):
        pass
    return connection.answer_in(frame, request)


WHOLE = (FIRST, (Kind.SEGMENT, segment_body(b"data"), 0), (Kind.FILE_END, end_body(b"data"), 0))


def handlers(directory: Path, *, durable: bool = False) -> dict[str, Any]:
    return {
        "transfer": lambda fields: spool.receive(directory, listed(fields["files"]), durable=durable),
        "echo": lambda fields: fields,
    }


def arrived(path: Path) -> bytes:
    assert spool.is_complete(path)
    data = b"".join(map(bytes, spool.verified(path)))
    assert data == path.read_bytes()
    return data
