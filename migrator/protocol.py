"""What two migrators say to each other, over any byte stream (docs/protocol.md has the tables).

Each side first sends a greeting: the magic, the protocol's version and a JSON object with

    program         the version of migrator
    host            the sender's host name
    authentication  null; the place where a peer in the tunnel will prove that it knows the shared secret

and then frames: a header (kind u8, flags u8, zero u16, length of the body u32, big-endian) and a body. Control frames
carry one JSON object; bulk frames carry bytes (`migrator.transfer` and `migrator.spool` say what they mean).

One side calls, the other serves. A request has an id and is answered by exactly one reply or error with the same id. A
handler may return a Takeover: then its reply is followed by bulk frames in both directions, and these by a second
reply or error with that id. While nothing else is sent, each side says every few seconds that it is still there; so
silence means that the other side or the network is dead, however long a handler works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import migrator
from migrator import log
from migrator.errors import ConnectionLost, InternalError, MigratorError, ProtocolError, from_json
from migrator.stream import Bytes, ByteStream

MAGIC = b"migrator"
VERSION = 1
TIMEOUT = 60.0  # seconds without a sign of life after which the other side is taken for dead

_GREETING = struct.Struct("!8sHI")  # magic, protocol version, length of the JSON that follows
_HEADER = struct.Struct("!BBHI")  # kind, flags, zero, length of the body

GREETING_MAX = 64 * 1024  # bytes
CONTROL_MAX = 4 * 1024 * 1024
SEGMENT_MAX = 4 * 1024 * 1024  # raw bytes in a segment


class Kind(enum.IntEnum):
    # control
    REQUEST = 1  # {"id", "op", "fields"}
    REPLY = 2  # {"id", "fields"}
    ERROR = 3  # {"id", "error"}
    WORKING = 4  # empty: still there
    # bulk, from the sender of a transfer
    FILE = 16  # {"file": its number, "keep": segments that the receiver has and keeps}
    SEGMENT = 17  # raw length u32, BLAKE3 digest of the raw bytes, then the bytes, compressed if the flag says so
    FILE_END = 18  # raw length of the whole file u64, digest over its segments' digests
    END = 19  # empty: that was the last file
    ABORT = 20  # {"reason"}: there will be no more, forget the file that is not complete
    # bulk, from the receiver
    HELD = 32  # number of the file u32, then digests of segments that it has
    ACK = 33  # how many SEGMENT and FILE_END frames of this transfer are on disk, u64
    STOP = 34  # empty: something failed here, send ABORT; the error follows as the answer to the request


DIGEST_SIZE = 32
HELD_MAX = 64 * 1024  # digests in one HELD frame
_LIMITS = {
    Kind.REQUEST: CONTROL_MAX,
    Kind.REPLY: CONTROL_MAX,
    Kind.ERROR: CONTROL_MAX,
    Kind.WORKING: 0,
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
        return _parse_json(self.body)


@dataclasses.dataclass(frozen=True)
class Takeover:
    """What a handler returns when bulk frames are to follow its reply.

    `reply` is sent at once; then `run` has the connection to itself, and what it returns (or raises) is sent as the
    second answer to the same request. When it returns or raises anything but ConnectionLost and ProtocolError, all
    bulk frames must have been read: the next frame is a request.
    """

    reply: dict[str, Any]
    run: Callable[[Connection], dict[str, Any]]


Handler = Callable[[dict[str, Any]], "dict[str, Any] | Takeover"]


class Connection:
    """One end of a stream. One thread reads at a time; any may send. `hello` comes first.

    `name` is what errors call the other side: the destination as the user wrote it, or else the host's own name. Every
    method that reads or sends raises ConnectionLost when the other side was silent for `timeout` seconds or the stream
    broke, and ProtocolError when what came makes no sense; the connection is of no use after either.
    """

    def __init__(self, stream: ByteStream, *, name: str = "", timeout: float = TIMEOUT) -> None:
        self.name = name or "the other host"
        self.timeout = timeout
        self.peer_host = ""  # both as the other side's greeting has them
        self.peer_program = ""
        self._named = bool(name)
        self._stream = stream
        self._sending = threading.Lock()
        self._broken: str | None = None
        self._last_sent = time.monotonic()
        self._last_id = 0
        self._closed = threading.Event()
        stream.settimeout(timeout)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; safe to repeat."""
        if not self._closed.is_set():
            self._closed.set()
            self._broken = self._broken or "it was closed on this side"
            with contextlib.suppress(OSError):
                self._stream.close()

    # --- Greeting ---

    def hello(self) -> None:
        """Exchange greetings, and from then on tell the other side now and then that this one is there.

        Raises ProtocolError where the other side is no migrator, or one that speaks another version.
        """
        mine = {"program": migrator.__version__, "host": socket.gethostname(), "authentication": None}
        body = json.dumps(mine).encode()
        try:
            self._stream.write(_GREETING.pack(MAGIC, VERSION, len(body)), body)
        except OSError as error:
            raise self._lost(_why(error)) from error
        header = bytearray(_GREETING.size)
        if not self._fill(memoryview(header), may_end=True):
            raise self._lost("it ended before the other side had said anything")
        magic, version, length = _GREETING.unpack(header)
        if magic != MAGIC:
            raise ProtocolError(
                reason=f"it begins with {bytes(header)!a}; if that is text, a start-up file of the shell prints it"
            )
        if length > GREETING_MAX:
            raise ProtocolError(reason=f"it greets with {length} bytes")
        greeting = bytearray(length)
        self._fill(memoryview(greeting))
        if version != VERSION:  # the rest may mean anything; the program's version helps if it can be read
            raise ProtocolError(reason=f"it speaks version {version}{_said(greeting)}; this one speaks {VERSION}")
        data = _parse_json(memoryview(greeting))
        program, host = data.get("program"), data.get("host")
        if not isinstance(program, str) or not isinstance(host, str):
            raise ProtocolError(reason="its greeting lacks program or host")
        self.peer_program, self.peer_host = program[:100], host[:255]
        if not self._named:
            self.name = self.peer_host
        threading.Thread(target=self._keep_alive, name="migrator-keepalive", daemon=True).start()

    # --- Calls ---

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask the other side to do `op` and wait for its answer; raises its error as one of this side."""
        return self.answer(self.request(op, fields))

    def request(self, op: str, fields: Mapping[str, Any]) -> int:
        """Send a request and return its id, without waiting."""
        self._last_id += 1
        self.send_json(Kind.REQUEST, {"id": self._last_id, "op": op, "fields": fields})
        return self._last_id

    def answer(self, request: int) -> dict[str, Any]:
        """Wait for the answer to a request; raises the other side's error."""
        return self.answer_in(self.receive(), request)

    def answer_in(self, frame: Frame, request: int) -> dict[str, Any]:
        """The answer to `request` that is in a frame; raises the other side's error that is in it."""
        if frame.kind not in (Kind.REPLY, Kind.ERROR):
            raise ProtocolError(reason=f"it sent {frame.kind.name} where an answer was due")
        data = frame.json()
        found = data.get("error" if frame.kind is Kind.ERROR else "fields")
        if data.get("id") != request or not isinstance(found, dict):
            raise ProtocolError(reason=f"its answer does not belong to request {request}")
        if frame.kind is Kind.ERROR:
            raise from_json(found, self.peer_host)
        return found

    # --- Frames ---

    def send_json(self, kind: Kind, data: Mapping[str, Any]) -> None:
        body = json.dumps(data, separators=(",", ":")).encode()
        if len(body) > _LIMITS[kind]:
            raise InternalError(reason=f"a {kind.name} of {len(body)} bytes is longer than the protocol allows")
        self.send(kind, body)

    def send(self, kind: Kind, *body: Bytes, flags: int = 0) -> None:
        """Send one frame whose body is made of the buffers in `body`."""
        header = _HEADER.pack(kind, flags, 0, sum(len(b) for b in body))
        with self._sending:
            if self._broken:
                raise ConnectionLost(destination=self.name, reason=self._broken)
            # Whatever ends a write half done, Ctrl-C too, leaves the stream in the middle of a frame.
            self._broken = "it was interrupted in the middle of a frame"
            try:
                self._stream.write(header, *body)
            except OSError as error:
                raise self._lost(_why(error)) from error
            self._broken = None
            self._last_sent = time.monotonic()

    def receive(self, room: Callable[[int], memoryview] | None = None) -> Frame:
        """The next frame that is not just a sign of life.

        `room` gives memory for the body of a SEGMENT of that many bytes; all other bodies get their own.
        """
        frame = self.receive_or_end(room)
        if frame is None:
            raise self._lost("the other side ended it")
        return frame

    def receive_or_end(self, room: Callable[[int], memoryview] | None = None) -> Frame | None:
        """As `receive`, but None where the stream ends between two frames."""
        while True:
            header = bytearray(_HEADER.size)
            if not self._fill(memoryview(header), may_end=True):
                return None
            number, flags, zero, length = _HEADER.unpack(header)
            try:
                kind = Kind(number)
            except ValueError:
                raise ProtocolError(reason=f"it sent a frame of the unknown kind {number}") from None
            if zero or length > _LIMITS[kind]:
                raise ProtocolError(reason=f"it sent a {kind.name} frame of {length} bytes")
            body = room(length) if room and kind is Kind.SEGMENT else memoryview(bytearray(length))
            self._fill(body)
            if kind is not Kind.WORKING:
                return Frame(kind, flags, body)

    def _fill(self, view: memoryview, *, may_end: bool = False) -> bool:
        """Read exactly as much as `view` holds; False if the stream ended before it and it may."""
        done = 0
        while done < len(view):
            try:
                count = self._stream.readinto(view[done:])
            except OSError as error:
                raise self._lost(_why(error)) from error
            if count == 0:
                if may_end and done == 0:
                    return False
                raise self._lost("it ended in the middle of a message")
            done += count
        return True

    def _lost(self, reason: str) -> ConnectionLost:
        self._broken = reason
        return ConnectionLost(destination=self.name, reason=reason)

    def _keep_alive(self) -> None:
        interval = min(15.0, self.timeout / 4)
        while not self._closed.wait(interval):
            if time.monotonic() - self._last_sent < interval or self._sending.locked():
                continue
            try:
                self.send(Kind.WORKING)
            except MigratorError:
                return  # whoever uses the connection next will be told


def serve(connection: Connection, handlers: Mapping[str, Handler]) -> None:
    """Answer requests until the other side ends the connection.

    A MigratorError from a handler becomes an error reply, any other exception an InternalError. Raises ConnectionLost
    and ProtocolError when the connection is of no use any more.
    """
    while (frame := connection.receive_or_end()) is not None:
        if frame.kind is not Kind.REQUEST:
            raise ProtocolError(reason=f"it sent {frame.kind.name} where a request was due")
        data = frame.json()
        request, op, fields = data.get("id"), data.get("op"), data.get("fields")
        if not isinstance(request, int) or not isinstance(op, str) or not isinstance(fields, dict):
            raise ProtocolError(reason="its request lacks id, op or fields")
        try:
            handler = handlers.get(op)
            if handler is None:
                raise ProtocolError(reason=f"it asks for {op[:100]!a}, which is not known here")  # noqa: TRY301
            result = handler(fields)
            if isinstance(result, Takeover):
                connection.send_json(Kind.REPLY, {"id": request, "fields": result.reply})
                result = _in_takeover(result, connection)
            connection.send_json(Kind.REPLY, {"id": request, "fields": result})
        except _Fatal as fatal:
            raise fatal.error from None
        except MigratorError as error:
            connection.send_json(Kind.ERROR, {"id": request, "error": error.to_json()})
        except Exception as error:
            log.debug(_traceback(error))
            failure = InternalError(reason=f"{type(error).__name__} in {op[:100]}: {str(error)[:1000]}")
            connection.send_json(Kind.ERROR, {"id": request, "error": failure.to_json()})


class _Fatal(Exception):
    """An error after which the connection is of no use, on its way past the code that would answer with it."""

    def __init__(self, error: MigratorError) -> None:
        self.error = error


def _in_takeover(takeover: Takeover, connection: Connection) -> dict[str, Any]:
    try:
        return takeover.run(connection)
    except (ConnectionLost, ProtocolError) as error:
        raise _Fatal(error) from error


def _parse_json(body: memoryview) -> dict[str, Any]:
    try:
        data = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise ProtocolError(reason="a control frame does not hold JSON") from None
    if not isinstance(data, dict):
        raise ProtocolError(reason="a control frame does not hold an object")
    return data


def _said(greeting: bytearray) -> str:
    try:
        return f" of the protocol (migrator {str(_parse_json(memoryview(greeting)).get('program'))[:100]!a})"
    except ProtocolError:
        return " of the protocol"


def _why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))
