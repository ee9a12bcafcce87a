"""Byte streams that the protocol runs over: what they promise, and the one made of file descriptors.

`migrator.ssh` has another, made of an SSH channel.
"""

from __future__ import annotations

import os
import select
import sys
from typing import Protocol

Bytes = bytes | bytearray | memoryview


class ByteStream(Protocol):
    """A reliable stream of bytes in both directions.

    One thread may read while another writes. A method raises TimeoutError when the other side took or gave nothing for
    the time set, another OSError when the stream broke, and may raise a MigratorError that says more.
    """

    def settimeout(self, seconds: float) -> None:
        """How long one read or write may go without a single byte moving."""

    def readinto(self, view: memoryview) -> int:
        """Wait for data, fill as much of `view` as is there and return how much; 0 at the end of the stream."""

    def write(self, *buffers: Bytes) -> None:
        """Write all of `buffers`, one after another."""

    def close(self) -> None:
        """End both directions; safe to repeat."""


class FileStream:
    """A stream over two file descriptors (pipes, sockets), which may be the same one. It owns and closes them."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._closed = False
        self._limit_ms: int | None = None
        self._readable = select.poll()
        self._readable.register(read_fd, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(write_fd, select.POLLOUT)
        # A write to a blocking pipe that says it is writable can still block: without this no time limit would hold.
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    @classmethod
    def from_stdio(cls) -> FileStream:
        """Take over this process's stdin and stdout.

        What anything else prints goes to stderr from now on, so that a stray print cannot end up between two frames.
        """
        sys.stdout.flush()
        stream = cls(os.dup(0), os.dup(1))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        return stream

    def settimeout(self, seconds: float) -> None:
        self._limit_ms = max(1, round(seconds * 1000))

    def readinto(self, view: memoryview) -> int:
        while True:
            try:
                return os.readv(self._read_fd, [view])
            except BlockingIOError:
                self._wait(self._readable, "sent")

    def write(self, *buffers: Bytes) -> None:
        waiting = [memoryview(b).cast("B") for b in buffers if len(b)]
        while waiting:
            try:
                written = os.writev(self._write_fd, waiting)
            except BlockingIOError:
                self._wait(self._writable, "took")
                continue
            while waiting and written >= len(waiting[0]):
                written -= len(waiting.pop(0))
            if written:
                waiting[0] = waiting[0][written:]

    def _wait(self, poll: select.poll, verb: str) -> None:
        if not poll.poll(self._limit_ms):
            raise TimeoutError(f"the other side {verb} nothing for {(self._limit_ms or 0) / 1000:g} seconds")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for fd in {self._read_fd, self._write_fd}:
                os.close(fd)
