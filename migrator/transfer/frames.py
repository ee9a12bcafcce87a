# SPDX-License-Identifier: GPL-2.0-or-later
"""The format of what goes over a stream: the greeting, and frames.

Each side first sends a greeting: the magic, the protocol's version and a JSON object with

    program         the version of migrator
    host            the sender's host name
    timeout         seconds of silence after which the sender considers the other side dead

and then frames: a header (kind u8, flags u8, check u16, length of the body u32, big-endian) and a body. Control frames
carry one JSON object; bulk frames carry bytes (`migrator.transfer.sender` and `migrator.transfer.receiver` say what
they mean). The check covers the rest of the header, so that nobody waits for the rest of a body whose length was
corrupted.
"""

from __future__ import annotations

import enum
import json
import math
import re
import socket
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import migrator
from migrator.errors.connection import ProtocolError
from migrator.transfer.stream import Bytes

MAGIC = b"migrator"
VERSION = 1
GREETING = struct.Struct("!8sHI")  # magic, protocol version, length of the JSON that follows
HEADER = struct.Struct("!BBHI")  # kind, flags, check, length of the body

GREETING_MAX = 64 * 1024  # bytes
HOST_MAX = 255  # characters of a host's name
_HOST = re.compile(r"\w[\w.-]*")
CONTROL_MAX = 4 * 1024 * 1024
SEGMENT_MAX = 4 * 1024 * 1024  # raw bytes in a segment


class Kind(enum.IntEnum):
    # control
    REQUEST = 1  # {"id", "op", "fields"}
    REPLY = 2  # {"id", "fields"}
    ERROR = 3  # {"id", "error"}
    WORKING = 4  # empty: still there
    GO = 5  # {"within"}: the caller has read the first of two answers, and waits for the second so many seconds
    # bulk, from the sender of a transfer
    FILE = 16  # {"file": its number, "keep": segments that the receiver has and keeps}
    SEGMENT = 17  # raw length u32, BLAKE3 digest of the raw bytes, then the bytes, compressed if the flag says so
    FILE_END = 18  # raw length of the whole file u64, digest over its segments' digests
    END = 19  # empty: that was the last file
    ABORT = 20  # {"reason"}: no more will come, discard the incomplete file
    # bulk, from the receiver
    HELD = 32  # number of the file u32, then digests of segments that it has
    ACK = 33  # how many SEGMENT and FILE_END frames of this transfer are on disk, u64
    STOP = 34  # empty: something failed here, send ABORT; the error follows as the reply to the request


DIGEST_SIZE = 32
HELD_MAX = 64 * 1024  # digests in one HELD frame
LIMITS = {
    Kind.REQUEST: CONTROL_MAX,
    Kind.REPLY: CONTROL_MAX,
    Kind.ERROR: CONTROL_MAX,
    Kind.WORKING: 0,
    Kind.GO: 64,
    Kind.FILE: 1024,
    Kind.SEGMENT: 4 + DIGEST_SIZE + SEGMENT_MAX,
    Kind.FILE_END: 8 + DIGEST_SIZE,
    Kind.END: 0,
    Kind.ABORT: 64 * 1024,
    Kind.HELD: 4 + HELD_MAX * DIGEST_SIZE,
    Kind.ACK: 8,
    Kind.STOP: 0,
}


class Frame(NamedTuple):
    kind: Kind
    flags: int
    body: memoryview

    def json(self) -> dict[str, Any]:
        """The object in a control frame; raises ProtocolError."""
        return parse_json(self.body)


class Greeting(NamedTuple):
    """What the other side says about itself."""

    program: str
    host: str
    timeout: float


def greeting(timeout: float) -> bytes:
    """This side's greeting."""
    said = {"program": migrator.__version__, "host": socket.gethostname(), "timeout": timeout}
    body = json.dumps(said).encode()
    return GREETING.pack(MAGIC, VERSION, len(body)) + body


def greeting_length(head: bytes) -> int:
    """The length of the rest of the greeting that begins with `head`; raises ProtocolError."""
    magic, _, length = GREETING.unpack(head)
    if magic != MAGIC:
        reason = f"it begins with {head!a}; if that is text, a shell start-up file prints it"
        raise ProtocolError(reason=reason)
    if length > GREETING_MAX:
        raise ProtocolError(reason=f"it greets with {length} bytes")
    return int(length)


def parse_greeting(head: bytes, body: memoryview) -> Greeting:
    """The other side's greeting; raises ProtocolError, also if it speaks another version."""
    version = GREETING.unpack(head)[1]
    if version != VERSION:  # the rest may mean anything; the program's version helps if it can be read
        raise ProtocolError(reason=f"it speaks version {version}{_said(body)}; this one speaks {VERSION}")
    data = parse_json(body)
    program, host, timeout = data.get("program"), data.get("host"), data.get("timeout")
    if not isinstance(program, str) or not isinstance(host, str) or not _is_name(host):
        raise ProtocolError(reason="its greeting lacks program or host")
    if not isinstance(timeout, int | float) or not 0 < timeout < 1e6:
        raise ProtocolError(reason="its greeting has no valid timeout")
    return Greeting(program[:100], host, timeout)


def _is_name(host: str) -> bool:
    """Whether this can be a host name: it appears unquoted in commands that people are told to type.

    The kernel's own name for a host that was given none is accepted, too.
    """
    return host == "(none)" or (len(host) <= HOST_MAX and bool(_HOST.fullmatch(host)))


def header(kind: Kind, flags: int, body: Sequence[Bytes]) -> bytes:
    """The header of a frame whose body is made of these buffers."""
    length = sum(len(part) for part in body)
    return HEADER.pack(kind, flags, _check(kind, flags, length), length)


def parse_header(head: bytes | bytearray) -> tuple[Kind, int, int]:
    """Kind, flags and length of the body, checked against the kind's limit; raises ProtocolError."""
    number, flags, check, length = HEADER.unpack(head)
    if check != _check(number, flags, length):
        raise ProtocolError(reason=f"it sent {bytes(head)!a} where a frame was expected")
    try:
        kind = Kind(number)
    except ValueError:
        raise ProtocolError(reason=f"it sent a frame of unknown kind {number}") from None
    if length > LIMITS[kind]:
        raise ProtocolError(reason=f"it sent a {kind.name} frame of {length} bytes")
    return kind, flags, length


def _check(kind: int, flags: int, length: int) -> int:
    return zlib.crc32(HEADER.pack(kind, flags, 0, length)) & 0xFFFF


def parse_json(body: memoryview) -> dict[str, Any]:
    """The object in the body of a control frame; raises ProtocolError.

    Also for NaN and infinities, which json.loads accepts: they compare as within no limits and outside of none.
    """
    try:
        data = json.loads(bytes(body), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ProtocolError(reason="a control frame does not contain JSON") from None
    if not isinstance(data, dict):
        raise ProtocolError(reason="a control frame does not contain an object")
    return data


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _said(body: memoryview) -> str:
    try:
        return f" of the protocol (migrator {str(parse_json(body).get('program'))[:100]!a})"
    except ProtocolError:
        return " of the protocol"
