# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process waits for by epoll, and adding it again: by this kernel, in processes made for it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.criu import epoll_entries, pressure_triggers
from tests.migrator.criu.waiting_for_pressure import ANY_STALL, waiting


def written_again(pid: int, number: int, *_: object) -> str:
    return pressure_triggers.write_again(f"{pid} {number} {ANY_STALL}\n", [pid])


def opened() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """How many descriptors this program may have, put back afterwards."""
    yield (before := resource.getrlimit(resource.RLIMIT_NOFILE))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_nothing_is_kept_of_what_else_is_waited_for(pressure: str) -> None:
    """A process of the container adds one file to many instances by each number that it can have."""
    with waiting(pressure) as process:
        assert epoll_entries.read(process.pid, {8}) == {}
        (epoll, (events, _)), = epoll_entries.read(process.pid, {7, 8})[7]
        assert epoll == process.epoll and events & select.EPOLLPRI


def test_however_many_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are read of any other file in /proc."""
    entry = b"tfd: %8d events: %8x data: %16x  pos:0 ino:61 sdev:5\n"
    (tmp_path / "7/fd").mkdir(parents=True)
    (tmp_path / "7/fdinfo").mkdir()
    (tmp_path / "7/fd/4").symlink_to("anon_inode:[eventpoll]")
    with (tmp_path / "7/fdinfo/4").open("wb") as file:
        file.write(b"pos:\t0\n")
        for _ in range(pressure_triggers._READ_LIMIT // (len(entry % (9, 1, 1)) * 1000) + 1):
            file.write(entry % (9, 1, 1) * 1000)
        file.write(entry % (8, 2, 3))
    monkeypatch.setattr(epoll_entries, "PROC", str(tmp_path))
    assert epoll_entries.read(7, {8}) == {8: [(4, (2, 3))]}


def test_an_epoll_knows_another_file_by_that_number(pressure: str) -> None:
    """One that had the number before, and is still open under another: nothing is waited for then."""
    code = ("import os, select, sys; a, b = os.pipe(); waits = select.epoll(); waits.register(a, 1)\n"
            "kept = os.dup(a); os.dup2(os.open(sys.argv[1], os.O_RDWR), a); print(a, flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code, pressure], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdin and process.stdout
        number = int(process.stdout.readline())
        assert number in epoll_entries.read(process.pid, {number})
        assert written_again(process.pid, number) == ""
        with pressure_triggers.Borrowed(process.pid, number, pressure_triggers.CgroupMounts()) as file:
            assert file.has_trigger()
        process.stdin.close()


def test_it_takes_its_number_for_a_moment_from_what_is_open_here(pressure: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with waiting(pressure, number=900) as process, (tmp_path / "file").open() as file:
        os.dup2(file.fileno(), 900)
        try:
            assert written_again(process.pid, 900) == ""
            assert os.path.sameopenfile(900, file.fileno())
        finally:
            os.close(900)


@pytest.mark.parametrize("free", range(5))
def test_what_it_takes_may_get_the_number(pressure: str, free: int) -> None:
    """Any of the duplicates that it makes, if it is the next one free here."""
    with waiting(pressure, number=200) as process, contextlib.ExitStack() as stack:
        while (fd := os.open("/dev/null", os.O_RDONLY)) < 200 - free:
            stack.callback(os.close, fd)
        os.close(fd)
        assert fd == 200 - free
        before, entry = opened(), process.entry()
        assert written_again(process.pid, 200) == ""
        assert process.entry() == entry and process.events() == ""
        assert opened() == before


def test_a_number_above_the_limit_of_a_login(pressure: str, limits: tuple[int, int]) -> None:
    number = limits[1] - 1
    with waiting(pressure, number=number) as process:
        entry = process.entry()
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, number - 1), limits[1]))
        assert written_again(process.pid, number) == ""
        assert process.entry() == entry and process.events() == ""


def test_a_number_that_it_cannot_have(pressure: str, monkeypatch: pytest.MonkeyPatch,
                                      limits: tuple[int, int]) -> None:
    """Without CAP_SYS_RESOURCE, or where fs.nr_open is lower: it is restored, but not told."""
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    with waiting(pressure, number=900) as process:
        resource.setrlimit(resource.RLIMIT_NOFILE, (800, limits[1]))
        with monkeypatch.context() as patched:
            patched.setattr(resource, "setrlimit", refuse)
            said = written_again(process.pid, 900)
        with pytest.raises(OSError, match="900") as refused, monkeypatch.context() as patched:
            patched.setattr(resource, "setrlimit", refuse)
            epoll_entries._allow(900)
    assert refused.value.errno == errno.EMFILE
    assert f"process {process.pid} is not told of pressure any more" in said and "no descriptor 900" in said
