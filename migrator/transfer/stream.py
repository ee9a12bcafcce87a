# SPDX-License-Identifier: GPL-2.0-or-later
"""Byte streams that the protocol runs over: what they guarantee, and the one made of file descriptors.

`migrator.remote.ssh` has another one, made of an SSH channel.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol

Bytes = bytes | bytearray | memoryview
# Instead of 64 KiB: sshd then passes on more at a time, and a transfer through it was a third faster.
PIPE_SIZE = 1 << 20


class ByteStream(Protocol):
    """A reliable stream of bytes in both directions.

    One thread may read while another writes. A method raises TimeoutError if the other side accepted or sent nothing
    for the time set, another OSError if the stream broke, and may raise a MigratorError that says more.
    """

    def settimeout(self, seconds: float) -> None:
        """How long one read or write may go without a single byte moving.

        A write continues while another thread reads something now and then: the other side is alive, and only busy.
        """

    def readinto(self, view: memoryview) -> int:
        """Wait for data, fill as much of `view` as is available and return how much; 0 at the end of the stream."""

    def write(self, *buffers: Bytes) -> None:
        """Write all of `buffers`, one after another."""

    def close(self) -> None:
        """End both directions; safe to repeat."""


class Tunnel(Protocol):
    """What a connection to a paired peer goes through."""

    @property
    def fingerprint(self) -> str:
        """The peer's fingerprint."""

    def require_stable(self) -> None:
        """Raise PathUnstable if nothing should be frozen over it."""


class FileStream:
    """A stream over two file descriptors (pipes, sockets), which may be the same one. It owns and closes them.

    `close` may come while other threads read or write: they raise OSError, and the last of them closes the descriptors,
    so that no descriptor number is reused while a thread still waits on it.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._limit_ms: int | None = None
        self._heard = 0.0  # time.monotonic() at the last byte read
        self._guard = threading.Lock()
        self._users = 1  # ourselves until closed, and each thread that reads or writes
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._readable = select.poll()
        self._readable.register(read_fd, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(write_fd, select.POLLOUT)
        for poll in (self._readable, self._writable):
            poll.register(self._wake, select.POLLIN)
        # A write to a blocking pipe that polls as writable can still block: without this no time limit would hold.
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    @classmethod
    def from_stdio(cls) -> FileStream:
        """Take over this process's stdin and stdout.

        From now on, anything else that is printed goes to stderr, so that a stray print cannot end up between two
        frames.
        """
        sys.stdout.flush()
        with contextlib.suppress(OSError):  # if it is not a pipe
            fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        stream = cls(os.dup(0), os.dup(1))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        return stream

    def settimeout(self, seconds: float) -> None:
        self._limit_ms = max(1, round(seconds * 1000))

    def readinto(self, view: memoryview) -> int:
        with self._in_use():
            while True:
                try:
                    count = os.readv(self._read_fd, [view])
                except BlockingIOError:
                    if not self._wait(self._readable):
                        raise self._silent("sent") from None
                else:
                    self._heard = time.monotonic()
                    return count

    def write(self, *buffers: Bytes) -> None:
        waiting = [memoryview(b).cast("B") for b in buffers if len(b)]
        with self._in_use():
            while waiting:
                try:
                    written = os.writev(self._write_fd, waiting)
                except BlockingIOError:
                    begun = time.monotonic()
                    if not self._wait(self._writable) and self._heard < begun:
                        raise self._silent("took") from None
                    continue
                while waiting and written >= len(waiting[0]):
                    written -= len(waiting.pop(0))
                if written:
                    waiting[0] = waiting[0][written:]

    def close(self) -> None:
        with self._guard:
            if self._closed:
                return
            self._closed = True
        os.eventfd_write(self._wake, 1)
        self._leave()

    def _wait(self, poll: select.poll) -> bool:
        """Whether it becomes ready within the limit."""
        ready = poll.poll(self._limit_ms)
        if self._closed:
            raise OSError(errno.EBADF, "it was closed on this side")
        return bool(ready)

    def _silent(self, verb: str) -> TimeoutError:
        return TimeoutError(f"the other side {verb} nothing for {(self._limit_ms or 0) / 1000:g} seconds")

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._guard:
            if self._closed:
                raise OSError(errno.EBADF, "it was closed on this side")
            self._users += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._guard:
            self._users -= 1
            unused = self._users == 0
        if unused:
            for fd in {self._read_fd, self._write_fd, self._wake}:
                os.close(fd)
