# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said while a command works, and where."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import socket
import subprocess
import sys
import termios
import tty

import pytest

from migrator.base import log
from migrator.base.log import Level
from migrator.transfer import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "level", Level.NORMAL)
    monkeypatch.setattr(log, "as_json", False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def say_everything() -> None:
    log.error("an error")
    log.cure("its cure")
    log.warning("a warning")
    log.info("some information")
    log.verbose("more of it")
    log.debug("details")


@pytest.mark.parametrize(("level", "said"), [
    (Level.QUIET, ["migrator: an error", "  its cure"]),
    (Level.NORMAL, ["migrator: an error", "  its cure", "migrator: warning: a warning", "some information"]),
    (Level.VERBOSE, ["migrator: an error", "  its cure", "migrator: warning: a warning", "some information",
                     "more of it"]),
    (Level.DEBUG, ["migrator: an error", "  its cure", "migrator: warning: a warning", "some information",
                   "more of it", "details"]),
])
def test_levels(level: Level, said: list[str], monkeypatch: pytest.MonkeyPatch,
                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(log, "level", level)
    say_everything()
    captured = capsys.readouterr()
    assert captured.err.splitlines() == said
    assert captured.out == "", "stdout is for results"


def test_json_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(log, "as_json", True)
    say_everything()
    log.info("with\nfields", bytes=3)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["type"] for line in lines] == ["error", "warning", "info", "info"]  # the error carries its cure itself
    assert lines[-1]["message"] == "with\nfields"
    assert lines[-1]["bytes"] == 3
    assert all(line["time"] > 1.7e9 for line in lines)


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    log.error("red")
    assert terminal.getvalue() == "\033[31;1mmigrator: red\033[0m\n"
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv(variable, value)
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        log.error("plain")
        assert terminal.getvalue() == "migrator: plain\n"
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    log.error("plain")
    assert file.getvalue() == "migrator: plain\n"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF])
@pytest.mark.parametrize("where", ["write", "flush"])
def test_nobody_listens_any_more(monkeypatch: pytest.MonkeyPatch, where: str, number: int) -> None:
    """A terminal that was closed, a full device: the work goes on, and so does a transfer that is being shown."""
    failures = []

    class Gone(Terminal):
        def fail(self, *_: object) -> int:
            failures.append(number)
            raise OSError(number, os.strerror(number))

    setattr(Gone, where, Gone.fail)
    monkeypatch.setattr(sys, "stderr", Gone())
    log.error("the work goes on")
    log.at_signal("also here")
    clock = Clock()
    with progress.Progress("disk", 400, clock) as shown:
        clock.now += 5
        shown.update(100)
    assert len(failures) == 3, "an error, the progress, its end"


# --- progress -------------------------------------------------------------------------------------------------


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress.Progress("disk", 400 << 20, clock) as shown:
        clock.now += 2
        shown.update(100 << 20)
        shown.update(101 << 20)  # too soon after the last
        clock.now += 2
        shown.update(200 << 20)
    drawn = terminal.getvalue().split("\r\033[K")
    assert drawn == ["", "disk: 100.0 MiB of about 400.0 MiB (25 %), 50.0 MiB/s, 6.0 s left",
                     "disk: 200.0 MiB of about 400.0 MiB (50 %), 50.0 MiB/s, 4.0 s left", ""]


def test_an_estimate_never_claims_to_be_done() -> None:
    assert "(99 %)" in progress.line("disk", 500, 400, 10.0, None)
    assert "%" not in progress.line("disk", 500, 0, 10.0, None)


def test_no_progress_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with progress.Progress("disk", 400, clock) as shown:
        clock.now += 5
        shown.update(100)
    assert capsys.readouterr().err == ""


def test_no_progress_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(log, "level", Level.QUIET)
    with progress.Progress("disk", 400, clock) as shown:
        clock.now += 5
        shown.update(100)
    assert terminal.getvalue() == ""


def test_progress_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(log, "as_json", True)
    with progress.Progress("memory", 400, clock) as shown:
        clock.now += 2
        shown.update(100)
        clock.now += 0.5
        shown.update(150)  # a line a second is enough
    with progress.Progress("disk", clock=clock) as shown:
        clock.now += 2
        shown.update(100)
    with progress.Progress("disk", 1100, clock) as shown:
        clock.now += 2
        shown.update(900, 800)
    first, second, third = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.items() >= {"type": "progress", "message": "memory", "bytes": 100, "total": 400,
                             "bytes_per_second": 50, "seconds_left": 6.0}.items()
    assert second.items() >= {"total": None, "seconds_left": None}.items()
    assert third.items() >= {"bytes_per_second": 50, "seconds_left": 4.0}.items(), "800 of them were there before"


# --- who reads stderr does not read on --------------------------------------------------------------------------------

TALKS = """
import subprocess
import sys
import termios
import tty
from migrator.base import log
for number in range(3000):
    log.warning(f"{number} " + "x" * 100)
log.at_signal("a signal")
log.warning("y" * 100_000)
print("the work is done", flush=True)
sys.stdin.read()
log.warning("z")
"""


@pytest.mark.parametrize("kind", ["a terminal", "a socket"])
@pytest.mark.parametrize("length", [50, 700, 3000])
def test_who_reads_nothing_at_all_stops_nothing(kind: str, length: int) -> None:
    """A window that is full, whose laptop sleeps: it takes less than is written, though poll(2) says that it takes.

    The flags of what is shared with the shell stay as they are.
    """
    ours, its = os.openpty() if kind == "a terminal" else (end.detach() for end in socket.socketpair())
    talks = TALKS.replace('"x" * 100)', f'"x" * {length})')
    with subprocess.Popen([sys.executable, "-c", talks], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=its, env={**os.environ, "NO_COLOR": "1"}) as process:
        assert process.stdout and process.stdout.readline() == b"the work is done\n"
        assert os.get_blocking(its)
        process.wait()
        assert os.read(ours, 1 << 16).startswith(b"migrator: warning: 0 x")
    os.close(its)
    os.close(ours)


@pytest.mark.parametrize("kind", ["a pipe", "a terminal"])
def test_who_does_not_read_on_stops_nothing(kind: str) -> None:
    """A pager that nobody scrolls; Ctrl-S. Said is what fits; and again once it is read."""
    if kind == "a pipe":
        ours, its = os.pipe()
    else:
        ours, its = os.openpty()
        tty.setraw(its)
        termios.tcflow(its, termios.TCOOFF)
    with subprocess.Popen([sys.executable, "-c", TALKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=its, env={**os.environ, "NO_COLOR": "1"}) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"the work is done\n"
        if kind == "a terminal":
            termios.tcflow(its, termios.TCOON)
        os.close(its)
        os.set_blocking(ours, False)
        said = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(ours, 1 << 16):
                said += more
        assert b"2999 " not in said
        process.stdin.close()
        os.set_blocking(ours, True)
        while b"z" not in said:
            said += os.read(ours, 1 << 16)
    os.close(ours)
    lines = said.decode().splitlines()
    assert lines[-1] == "migrator: warning: z", "on a line of its own"
    assert lines[0].startswith("migrator: warning: 0 x" if kind == "a pipe" else "migrator: warning: z")
