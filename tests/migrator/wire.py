# SPDX-License-Identifier: GPL-2.0-or-later
"""Two ends of a connection in one process, and streams that break in chosen ways."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from migrator.errors import MigratorError
from migrator.transfer import frames
from migrator.transfer.messages import File, Transfer
from migrator.transfer.rpc import Connection, Handler
from migrator.transfer.serve_requests import serve
from migrator.transfer.stream import Bytes, FileStream
from migrator.transfer.wire_codec import decoded, encoded

HEADER = struct.Struct("!BBHI")
TIMEOUT = 300.0  # seconds; nothing here should ever take that long, also where the machine stands still for a while


def greeting(magic: bytes = b"migrator", version: int = frames.VERSION, body: bytes | None = None,
             timeout: float = TIMEOUT) -> bytes:
    """A greeting, byte by byte as docs/protocol.md has it."""
    if body is None:
        body = json.dumps({"program": "9.9", "host": "other", "timeout": timeout}).encode()
    return struct.pack("!8sHI", magic, version, len(body)) + body


def frame(kind: int, body: bytes = b"", length: int | None = None, wrong: int = 0) -> bytes:
    """A frame, byte by byte; its header with a length and a check that may be wrong."""
    length = len(body) if length is None else length
    check = zlib.crc32(HEADER.pack(kind, 0, 0, length)) & 0xFFFF
    return HEADER.pack(kind, 0, check ^ wrong, length) + body


def stream_pair() -> tuple[FileStream, FileStream]:
    ends = socket.socketpair()
    first, second = (FileStream(fd, fd) for fd in (end.detach() for end in ends))
    return first, second


class Server:
    """`serve` in a thread of its own; `error` is what ended it."""

    def __init__(self, stream: FileStream, handlers: Mapping[str, Handler], timeout: float = TIMEOUT) -> None:
        self.connection = Connection(stream, timeout=timeout)
        self.error: BaseException | None = None
        self._handlers = handlers
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.connection.hello()
            serve(self.connection, self._handlers)
        except BaseException as error:
            self.error = error
        finally:
            self.connection.close()

    def join(self) -> None:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the server did not end"


@contextlib.contextmanager
def connected(handlers: Mapping[str, Handler], stream: CutStream | None = None, *, timeout: float = TIMEOUT,
              patience: float = TIMEOUT) -> Iterator[tuple[Connection, Server]]:
    """A connection whose other end answers with `handlers`, and waits for us no longer than `patience` seconds."""
    ours, theirs = stream_pair()
    server = Server(theirs, handlers, patience)
    if stream:
        stream.inner = ours
    with Connection(stream or ours, timeout=timeout) as connection:
        try:
            connection.hello()
            yield connection, server
        finally:
            connection.close()
            server.join()


class CutStream:
    """A stream that is cut after `limit` written bytes, and in which the byte at `flip` is changed on its way out."""

    def __init__(self, *, limit: int | None = None, flip: int | None = None) -> None:
        self.inner: FileStream
        self._limit = limit
        self._flip = flip
        self._written = 0

    def settimeout(self, seconds: float) -> None:
        self.inner.settimeout(seconds)

    def readinto(self, view: memoryview) -> int:
        return self.inner.readinto(view)

    def write(self, *buffers: Bytes) -> None:
        data = bytearray(b"".join(buffers))
        if self._flip is not None and 0 <= self._flip - self._written < len(data):
            data[self._flip - self._written] ^= 0x20
        if self._limit is not None and self._written + len(data) > self._limit:
            self.inner.write(data[: self._limit - self._written])
            self._limit = self._written  # and nothing after it
            with socket.socket(fileno=os.dup(self.inner._write_fd)) as end:
                end.shutdown(socket.SHUT_WR)  # what has been written still arrives
            raise ConnectionResetError("cut")
        self._written += len(data)
        self.inner.write(data)

    def close(self) -> None:
        self.inner.close()


def ends_orderly(error: BaseException | None) -> bool:
    """Whether a server ended as it may, whatever it was sent: at the end of the stream or with an error of ours."""
    return error is None or isinstance(error, MigratorError)


def call(connection: Connection, op: str, *, within: float | None = None, **fields: Any) -> dict[str, Any]:
    """Ask for anything, be it no message of the protocol."""
    return connection.answer(connection.request(op, fields), within=within)


def listed(files: object) -> tuple[File, ...]:
    """As they come in a request."""
    return decoded(Transfer, {"files": files}).files


def by_op(answers: Callable[..., Any]) -> Callable[..., Any]:
    """What stands for a method of `Connection` that asks: it gets `op` and the fields, and answers a dictionary."""

    def asks(*args: Any, **limits: Any) -> Any:
        *before, message = args
        answer = answers(*before, message.op, **limits, **json.loads(json.dumps(encoded(message))))
        return decoded(message.answer(), msgspec.to_builtins(answer))

    return asks
