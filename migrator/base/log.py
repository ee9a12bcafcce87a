# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command says while it works: to stderr, so that stdout stays free for data.

Plain lines, colour only on a terminal that wants it (NO_COLOR), and JSON lines with `--json`. Whatever is said here
goes through `migrator.base.printable`, as does what `show` prints: much of it was written by another host or a
container.
"""

from __future__ import annotations

import contextlib
import enum
import io
import json
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from migrator.base import printable


class Level(enum.IntEnum):
    QUIET = 0  # errors only (-q)
    NORMAL = 1
    VERBOSE = 2  # what is done and how long it took (-v)
    DEBUG = 3  # every program that is started (--debug)


level = Level.NORMAL
as_json = False
PATIENCE = 1.0  # seconds that the reader of stderr may keep us waiting, until it reads on
_ATOMIC = select.PIPE_BUF  # bytes that a pipe takes without blocking once poll(2) reports it writable
_stuck = False  # stderr has accepted nothing for that long
_cut = False  # and only part of the line before

_STYLES = {"error": "\033[31;1m", "warning": "\033[33;1m", "cure": "\033[36m", "debug": "\033[2m"}


def colour() -> bool:
    """Whether stderr takes colour: it is a terminal, and NO_COLOR (no-color.org) is not set."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(kind: str, text: str, **fields: Any) -> None:
    """One line to stderr; with `--json` an object with `type`, `time` (Unix time in seconds) and `message`."""
    write(f"{_line(kind, text, fields)}\n")


def write(text: str) -> None:
    """Text to stderr, if it can be written; if not, the work goes on.

    A closed terminal returns EIO, a full device ENOSPC, a reader that has ended EPIPE; and a stopped terminal (Ctrl-S),
    a pager that nobody scrolls, or a dead SSH connection blocks. None of these may keep a frozen container from being
    thawed: what is not accepted soon is dropped.
    """
    global _cut
    with contextlib.suppress(OSError, ValueError):
        try:
            sys.stderr.fileno()
        except io.UnsupportedOperation:  # not a file of the kernel's
            print(text, end="", file=sys.stderr, flush=True)
            return
        data = (f"\n{text}" if _cut else text).encode(sys.stderr.encoding, "backslashreplace")
        taken = _put(data)
        _cut = 0 < taken < len(data) or (_cut and not taken)


def _put(data: bytes) -> int:
    """Write to stderr what it accepts within PATIENCE, or at once if it is stuck; returns how much. Raises OSError."""
    global _stuck
    done, end = 0, time.monotonic() + (0 if _stuck else PATIENCE)
    ready = select.poll()
    ready.register(sys.stderr.fileno(), select.POLLOUT)
    with _without_blocking(sys.stderr.fileno()) as put:
        while done < len(data):
            left = max(0.0, end - time.monotonic())
            try:
                taken = put(data[done : done + _ATOMIC]) if ready.poll(left * 1000) else 0
            except BlockingIOError:  # a terminal that takes something, but less than a line break needs
                taken = 0
                time.sleep(min(left, 0.01))
            done += taken
            if not taken and time.monotonic() >= end:
                break
    _stuck = done < len(data)
    return done


@contextlib.contextmanager
def _without_blocking(fd: int) -> Iterator[Callable[[bytes], int]]:
    """Returns how to write what a file accepts at once; raises OSError.

    It is not enough that poll(2) reports it writable: a terminal may take less than is written, and another program may
    have filled it since. O_NONBLOCK belongs to the open file description (open(2)), which a shell shares with us: so
    the file is opened again.
    """
    kind = os.fstat(fd).st_mode
    with contextlib.ExitStack() as stack:
        # A file on disk, too; a terminal that is gone, which says so; and one of another user's, who freezes nothing.
        put: Callable[[bytes], int] = partial(os.write, fd)
        if stat.S_ISSOCK(kind):
            own_socket = stack.enter_context(socket.socket(fileno=os.dup(fd)))
            put = lambda data: own_socket.send(data, socket.MSG_DONTWAIT)  # noqa: E731
        elif stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
            with contextlib.suppress(OSError):
                own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                stack.callback(os.close, own)
                put = partial(os.write, own)
        yield put


def _line(kind: str, text: str, fields: dict[str, Any]) -> str:
    if as_json:
        return json.dumps({"type": kind, "time": round(time.time(), 3), "message": text, **fields})
    prefix = {"error": "migrator: ", "warning": "migrator: warning: ", "cure": "  "}.get(kind, "")
    line = printable.encodable(f"{prefix}{printable.message(text)}", sys.stderr)
    return f"{_STYLES[kind]}{line}\033[0m" if kind in _STYLES and colour() else line


def at_signal(text: str) -> None:
    """A warning from a signal handler, which may have interrupted a print: bypasses Python's buffers."""
    if level >= Level.NORMAL:
        with contextlib.suppress(OSError, ValueError):
            _put(f"{_line('warning', text, {})}\n".encode())


def show(text: str, paint: Callable[[str], str] = str) -> None:
    """What the command was asked for, to stdout. Line breaks stay: text from elsewhere contains none."""
    shown = printable.encodable(printable.text(text), sys.stdout)
    print(paint(shown) if colour() else shown, flush=True)


def info(text: str, **fields: Any) -> None:
    if level >= Level.NORMAL:
        say("info", text, **fields)


def verbose(text: str, **fields: Any) -> None:
    if level >= Level.VERBOSE:
        say("verbose", text, **fields)


def debug(text: str) -> None:
    if level >= Level.DEBUG:
        say("debug", text)


def trace(text: str) -> None:
    """A program that is being started, in the style of the shell's `set -x`."""
    debug(f"+ {text}")


def warning(text: str, **fields: Any) -> None:
    if level >= Level.NORMAL:
        say("warning", text, **fields)


def error(text: str, **fields: Any) -> None:
    say("error", text, **fields)


def cure(text: str) -> None:
    if not as_json:  # the JSON error carries its own cure
        say("cure", text)
