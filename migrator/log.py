# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command says while it works: to stderr, so that stdout stays for data.

Plain lines, colour only on a terminal that wants it (NO_COLOR), and JSON lines with `--json`. Whatever is said goes
through `tunnel.printable` here, as does what `show` prints: much of it was written by another host or a container.
"""

from __future__ import annotations

import contextlib
import enum
import io
import json
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from tunnel import printable


class Level(enum.IntEnum):
    QUIET = 0  # errors only (-q)
    NORMAL = 1
    VERBOSE = 2  # what is done and how long it took (-v)
    DEBUG = 3  # every program that is started (--debug)


level = Level.NORMAL
as_json = False
PATIENCE = 1.0  # seconds that whoever reads stderr may keep us waiting, until he reads on
_ATOMIC = select.PIPE_BUF  # bytes that a pipe takes without blocking where poll(2) says that it takes something
_stuck = False  # stderr has taken nothing for so long
_cut = False  # and only a part of the line before

_STYLES = {"error": "\033[31;1m", "warning": "\033[33;1m", "cure": "\033[36m", "debug": "\033[2m"}


def colour() -> bool:
    """Whether stderr takes colour: a terminal, and NO_COLOR (no-color.org) is not set."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(kind: str, text: str, **fields: Any) -> None:
    """One line to stderr; with `--json` an object with `type`, `time` (seconds since 1970) and `message`."""
    write(f"{_line(kind, text, fields)}\n")


def write(text: str) -> None:
    """Text to stderr, if it can be written; if not, the work goes on.

    A terminal that has been closed answers EIO, a full device ENOSPC, a reader that has ended EPIPE; and one that was
    stopped (Ctrl-S), a pager that nobody scrolls, or an SSH connection that is dead does not answer at all. None of
    them may keep a frozen container from being thawed: what is not taken soon is not said.
    """
    global _cut
    with contextlib.suppress(OSError, ValueError):
        text, _cut = f"\n{text}" if _cut else text, False
        for at in range(0, len(text), _ATOMIC // 4):  # of up to four bytes each
            if not _takes():
                _cut = at > 0
                return
            print(text[at : at + _ATOMIC // 4], end="", file=sys.stderr, flush=True)


def _takes() -> bool:
    """Whether stderr can be written to without blocking; raises OSError, ValueError."""
    global _stuck
    try:
        fd = sys.stderr.fileno()
    except io.UnsupportedOperation:  # none of the kernel's files
        return True
    ready = select.poll()
    ready.register(fd, select.POLLOUT)
    _stuck = not ready.poll(0 if _stuck else PATIENCE * 1000)
    return not _stuck


def _line(kind: str, text: str, fields: dict[str, Any]) -> str:
    if as_json:
        return json.dumps({"type": kind, "time": round(time.time(), 3), "message": text, **fields})
    prefix = {"error": "migrator: ", "warning": "migrator: warning: ", "cure": "  "}.get(kind, "")
    line = printable.encodable(f"{prefix}{printable.message(text)}", sys.stderr)
    return f"{_STYLES[kind]}{line}\033[0m" if kind in _STYLES and colour() else line


def at_signal(text: str) -> None:
    """A warning from a signal handler, which may have interrupted a print: past Python's buffers."""
    if level >= Level.NORMAL:
        with contextlib.suppress(OSError, ValueError):
            if not _takes():
                return
            os.write(2, f"{_line('warning', text, {})}\n".encode())


def show(text: str, paint: Callable[[str], str] = str) -> None:
    """What the command was asked for, to stdout. Line ends stay: what is from elsewhere has none."""
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
    """A program that is being started, as the shell's `set -x` shows it."""
    debug(f"+ {text}")


def warning(text: str, **fields: Any) -> None:
    if level >= Level.NORMAL:
        say("warning", text, **fields)


def error(text: str, **fields: Any) -> None:
    say("error", text, **fields)


def cure(text: str) -> None:
    if not as_json:  # the JSON error carries its cure itself
        say("cure", text)
