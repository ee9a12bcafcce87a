# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol between two migrators, over any byte stream. `migrator.transfer.frames` has the format.

One side calls, the other serves. A request has an id and is answered by exactly one reply or error with the same id. A
handler may return a Takeover: then its reply is followed by bulk frames in both directions, and these by a second reply
or error with that id. While nothing else is sent, each side signals every few seconds that it is alive; so silence
means that the other side or the network is dead, however long a handler works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from migrator.base import log
from migrator.errors import InternalError, MigratorError
from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.errors.convert import from_json
from migrator.transfer import frames
from migrator.transfer.frames import Frame, Kind
from migrator.transfer.stream import Bytes, ByteStream, Tunnel
from migrator.transfer.wire_codec import A, Message, Request, decoded, encoded

TIMEOUT = 15.0  # seconds without a sign of life after which the other side is considered dead
_SIGN_OF_LIFE = 15.0  # seconds; more often if a timeout is short
_SLOWEST = 32 * 1024  # bytes per second: a frame with a limit on when it begins must come at least this fast


def sign_of_life(ours: float, theirs: float) -> float:
    """Seconds between two signs of life, if the two sides wait that many seconds for one."""
    return min(_SIGN_OF_LIFE, ours / 4, theirs / 4)


@dataclasses.dataclass(frozen=True)
class Takeover:
    """What a handler returns if bulk frames are to follow its reply.

    `reply` is sent at once; then `run` has the connection to itself, and what it returns (or raises) is sent as the
    second reply to the same request. When it returns, or raises anything but ConnectionLost and ProtocolError, all bulk
    frames must have been read: the next frame is a request.

    If no bulk frames follow, the caller may have to say that it has read the first reply before the last step is taken
    (`Connection.call_and_go`, `migrator.copies.leave`).
    """

    reply: Fields
    run: Callable[[Connection], Fields]


Fields = Message | Mapping[str, Any]  # of a reply
Handler = Callable[[dict[str, Any]], Fields | Takeover]


class Connection:
    """One end of a stream. Only one thread reads at a time; any may send. `hello` comes first.

    `name` is what errors call the other side: the destination as the user typed it, or else the host's own name. Every
    method that reads or sends raises ConnectionLost if the other side was silent for `timeout` seconds or the stream
    broke, and ProtocolError if what came makes no sense; the connection is unusable after either.
    """

    def __init__(self, stream: ByteStream, *, name: str = "", timeout: float = TIMEOUT,
                 tunnel: Tunnel | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name or "the other host"
        self.timeout = timeout
        self.tunnel = tunnel
        self.peer_host = ""  # both as in the other side's greeting
        self.peer_program = ""
        self.peer_timeout = timeout  # seconds of silence after which the other side considers this one dead
        self.acknowledged = 0  # bytes of bulk data that the other side has taken over this connection
        self._named = bool(name)
        self._stream = stream
        self._clock = clock
        self._sending = threading.Lock()
        self._limit = timeout  # the stream's: seconds that it waits in silence
        self._in_frame = False  # part of a frame has been sent
        self._broken: str | None = None  # why nothing can be sent or received any more
        self._last_sent = self._clock()
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

    def hello(self, first: float | None = None) -> None:
        """Exchange greetings, and from then on regularly signal to the other side that this one is alive.

        `first` is how many seconds it may take until the other side's greeting begins, by default the timeout: a
        program that is only being started cannot signal yet that it is alive.

        Raises ProtocolError if the other side is not migrator, or speaks another version.
        """
        self._wait_in_silence(self.timeout if first is None else first)
        try:
            self._stream.write(frames.greeting(self.timeout))
        except OSError as error:
            raise self._lost(self._why(error)) from error
        header = bytearray(frames.GREETING.size)
        if not self._fill(memoryview(header)[:1], may_end=True):
            raise self._lost("it ended before the other side had sent anything")
        self._wait_in_silence(self.timeout)
        end, late = self._clock() + self.timeout, f"the greeting was not complete within {self.timeout:g} seconds"
        self._fill(memoryview(header)[1:], deadline=end, late=late)
        body = memoryview(bytearray(frames.greeting_length(bytes(header))))
        self._fill(body, deadline=end, late=late)
        self.peer_program, self.peer_host, self.peer_timeout = frames.parse_greeting(bytes(header), body)
        if not self._named:
            self.name = self.peer_host
        interval = sign_of_life(self.timeout, self.peer_timeout)
        threading.Thread(target=self._keep_alive, args=(interval,), name="migrator-keepalive", daemon=True).start()

    def _wait_in_silence(self, seconds: float) -> None:
        self._limit = seconds
        self._stream.settimeout(seconds)

    def adopt_timeout(self, least: float, most: float) -> None:
        """Adopt the other side's timeout, within these limits in seconds, so that both notice at about the same time.
        """
        self.timeout = min(max(self.peer_timeout, least), most)
        self._wait_in_silence(self.timeout)

    # --- Calls ---

    def call(self, message: Request[A]) -> A:
        """Make a request and wait for its reply; raises the other side's error as one of this side's."""
        return decoded(message.answer(), self.answer(self.send_request(message)))

    def call_within(self, seconds: float, message: Request[A]) -> A:
        """As `call`; raises ConnectionLost if the other side is still at work after that many seconds."""
        return decoded(message.answer(), self.answer(self.send_request(message), within=seconds))

    def call_and_go(self, message: Request[A], *, first: float, then: float, within: Callable[[], float]) -> A:
        """As `call_within`, for a request with two replies, between which the other side waits to be told to go on.

        `first` and `then` are the limits for the two replies, in seconds from the request on; `within` is called when
        the first one is there, and returns for how many seconds the permission to go on holds. An error as the first
        reply is raised, as is what `within` raises, and then the permission is not given; as the second reply, it is
        raised like any other.
        """
        end = self._clock() + then
        request = self.send_request(message)
        self.answer(request, within=first)
        self.send_json(Kind.GO, {"within": round(within(), 3)})
        return decoded(message.answer(), self.answer(request, within=end - self._clock()))

    def send_request(self, message: Request[Any]) -> int:
        """Send a request and return its id, without waiting."""
        return self.request(message.op, encoded(message))

    def request(self, op: str, fields: Mapping[str, Any]) -> int:
        """As `send_request`, for what was not made from a message."""
        self._last_id += 1
        log.debug(f"asking {self.name}: {op}")
        self.send_json(Kind.REQUEST, {"id": self._last_id, "op": op, "fields": fields})
        return self._last_id

    def answer(self, request: int, *, within: float | None = None) -> dict[str, Any]:
        """Wait for the reply to a request; raises the other side's error.

        Replies to earlier requests for which waiting was interrupted (Ctrl-C) are skipped.
        """
        end = math.inf if within is None else self._clock() + within
        while True:
            frame = self.receive(within=None if within is None else end - self._clock())
            if not self._is_stale(frame, request):
                return self.answer_in(frame, request)
            if within is not None and self._clock() > end:
                raise self._lost(_late(within))

    def _is_stale(self, frame: Frame, request: int) -> bool:
        if frame.kind not in (Kind.REPLY, Kind.ERROR):
            return False
        answered = frame.json().get("id")
        return isinstance(answered, int) and 0 < answered < request

    def answer_in(self, frame: Frame, request: int) -> dict[str, Any]:
        """The reply to `request` in a frame; raises the other side's error if that is what it holds."""
        if frame.kind not in (Kind.REPLY, Kind.ERROR):
            raise ProtocolError(reason=f"it sent {frame.kind.name} where an answer was expected")
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
        if len(body) > frames.LIMITS[kind]:
            raise InternalError(reason=f"a {kind.name} of {len(body)} bytes is longer than the protocol allows")
        self.send(kind, body)

    def send(self, kind: Kind, *body: Bytes, flags: int = 0) -> None:
        """Send one frame whose body consists of the buffers in `body`."""
        self.send_packed([frames.header(kind, flags, body), *body])

    def send_packed(self, packed: Sequence[Bytes]) -> None:
        """Send whole frames, each its header (`frames.header`) and its body's buffers."""
        with self._sending:
            if self._in_frame:  # whatever ended that write, Ctrl-C included
                raise self._lost(self._broken or "it was interrupted in the middle of a frame")
            if self._broken:
                raise ConnectionLost(destination=self.name, reason=self._broken)
            self._in_frame = True
            try:
                self._stream.write(*packed)
            except OSError as error:
                raise self._lost(self._why(error)) from error
            self._in_frame = False
            self._last_sent = self._clock()

    def receive(self, room: Callable[[int], memoryview] | None = None, *, within: float | None = None) -> Frame:
        """The next frame that is not just a sign of life.

        `room` returns memory for the body of a SEGMENT of that many bytes; all other bodies get their own. With
        `within`, the frame must begin within that many seconds, zero or less for one that is there, and then come at a
        slow line's speed: so neither signs of life nor single bytes prolong the wait.
        """
        frame = self.receive_or_end(room, within=within)
        if frame is None:
            raise self._lost("the other side ended it")
        return frame

    def receive_or_end(self, room: Callable[[int], memoryview] | None = None, *,
                       within: float | None = None) -> Frame | None:
        """As `receive`, but None if the stream ends between two frames."""
        end = math.inf if within is None else self._clock() + within
        late = "" if within is None else _late(within)
        while True:
            header = bytearray(frames.HEADER.size)
            if not self._fill(memoryview(header), may_end=True, deadline=end, late=late):
                return None
            kind, flags, length = frames.parse_header(header)
            body = room(length) if room and kind is Kind.SEGMENT else memoryview(bytearray(length))
            self._fill(body, deadline=max(end, self._clock()) + length / _SLOWEST, late=late)
            if kind is not Kind.WORKING:
                return Frame(kind, flags, body)
            if self._clock() > end:
                raise self._lost(late)

    def _fill(self, view: memoryview, *, may_end: bool = False, deadline: float = math.inf, late: str = "") -> bool:
        """Read exactly as much as `view` holds; False if the stream ends before it, which must be allowed by `may_end`.

        It may take any time as long as bytes keep coming, until the deadline: then the connection is lost, for being
        `late`.
        """
        done = 0
        while done < len(view):
            try:
                count = self._stream.readinto(view[done:])
            except OSError as error:
                if may_end and not done and isinstance(error, ConnectionResetError):
                    return False  # it left without reading our last sign of life
                raise self._lost(self._why(error)) from error
            except BaseException:
                if done or not may_end:  # Ctrl-C in the middle of a frame: its beginning is lost
                    self._broken = "it was interrupted in the middle of a frame"
                raise
            if count == 0:
                if may_end and done == 0:
                    return False
                raise self._lost("it ended in the middle of a message")
            done += count
            if done < len(view) and self._clock() > deadline:
                raise self._lost(late)
        return True

    def _why(self, error: OSError) -> str:
        if isinstance(error, TimeoutError) and not str(error):  # paramiko's has no text
            return f"there was no sign of life for {self._limit:g} seconds"
        return error.strerror or str(error) or type(error).__name__

    def _lost(self, reason: str) -> ConnectionLost:
        self._broken = reason
        return ConnectionLost(destination=self.name, reason=reason)

    def _keep_alive(self, interval: float) -> None:
        while not self._closed.wait(interval):
            if self._clock() - self._last_sent < interval or self._sending.locked():
                continue
            try:
                self.send(Kind.WORKING)
            except MigratorError:
                return  # whoever uses the connection next will get the error


def _late(within: float) -> str:
    return f"the other side did not continue within {within:g} seconds"
