# SPDX-License-Identifier: GPL-2.0-or-later
"""Triggers of pressure: told at a dump, written again at a restore. On this kernel's own, in processes made for it."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from migrator.criu import epoll_entries, pressure_triggers
from migrator.host import mount_tables
from tests.migrator.criu.waiting_for_pressure import ANY_STALL, waiting


def test_only_what_has_a_trigger_is_recorded(pressure: str, tmp_path: Path) -> None:
    other = tmp_path / "memory.pressure"
    other.write_text("")
    with waiting(pressure, ANY_STALL) as has, waiting(pressure) as lacks:
        assert pressure_triggers.record([lacks.pid, has.pid, 1 << 22]) == f"{has.pid} 7 {pressure_triggers.DEFAULT}\n"
    with waiting(pressure, flags=os.O_RDONLY) as reads:
        assert pressure_triggers.record([reads.pid]) == ""
    fd = os.open(other, os.O_RDWR)
    try:
        assert pressure_triggers.record([os.getpid()]) == "", "a file of that name is none of a cgroup's"
    finally:
        os.close(fd)


@pytest.mark.parametrize(("said", "recorded"), [
    (b"full 70000 4000000\0", "full 70000 4000000"),
    (b"full 70000 4000000\n", "full 70000 4000000"),
    (b"some 1 2\nsome 3 4", pressure_triggers.DEFAULT),
    (b"rm -rf", pressure_triggers.DEFAULT),
    (b"\xff\xfe", pressure_triggers.DEFAULT),
    (b"some 2000000 2000000\0", "some 2000000 2000000"),
    (b"some 2000000 1000000\0", pressure_triggers.DEFAULT),  # what no kernel takes, so it was something else
    (b"some 0 2000000", pressure_triggers.DEFAULT),
    (b"some 100 500000", "some 100 500000"),
    (b"some 100 499999", pressure_triggers.DEFAULT),
    (b"some 100 10000000", "some 100 10000000"),
    (b"some 100 10000001", pressure_triggers.DEFAULT),
])
def test_a_service_is_asked_what_systemd_has_told_it(pressure: str, said: bytes, recorded: str) -> None:
    with waiting(pressure, ANY_STALL, base64.b64encode(said).decode()) as has:
        assert pressure_triggers.record([has.pid]) == f"{has.pid} 7 {recorded}\n"


def test_no_memory_is_read_that_has_a_file_behind_it() -> None:
    maps = (b"1000-3000 rw-p 00000000 00:00 0   [stack]\n"
            b"3000-5000 rw-p 00000000 00:2f 12  /mnt/on a server\n")
    assert pressure_triggers._is_plain(maps, 0x1000, 0x3000)
    assert not pressure_triggers._is_plain(maps, 0x3000, 0x3010)
    assert not pressure_triggers._is_plain(maps, 0x2ff0, 0x3010)
    assert not pressure_triggers._is_plain(maps, 0x5000, 0x5010)


@pytest.mark.parametrize(("said", "length", "recorded"), [
    (0x3000, 100, "full 70000 4000000"),
    (0x1000 + pressure_triggers.ENVIRONMENT_LIMIT + 1, 100, pressure_triggers.DEFAULT),
    (0x3000, pressure_triggers.ENVIRONMENT_LIMIT, pressure_triggers.DEFAULT),  # it was moved between the two looks
])
def test_an_environment_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: int, length: int,
                                                recorded: str) -> None:
    """What a process says is its environment may be terabytes that cost it nothing (PR_SET_MM_MAP in prctl(2))."""
    monkeypatch.setattr(pressure_triggers, "PROC", str(tmp_path))
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(f"7 (a) {' '.join(['0'] * 47)} {0x1000} {said} 0\n")
    (tmp_path / "7" / "maps").write_text("1000-ffffff000 rw-p 00000000 00:00 0\n")
    told = base64.b64encode(b"full 70000 4000000")
    (tmp_path / "7" / "environ").write_bytes(b"MEMORY_PRESSURE_WRITE=" + told + bytes(length))
    assert pressure_triggers._asked(7) == recorded


def test_who_waits_is_told_of_pressure_again_and_of_nothing_else(pressure: str) -> None:
    """As CRIU leaves it: the file is open and waited for, and has no trigger."""
    never = "some 1999999 2000000"
    with waiting(pressure) as process:
        assert int(process.events()) & select.EPOLLERR, "it is told without end"
        entry = process.entry()
        pressure_triggers.write_again(f"{process.pid} 7 {never}\n", [process.pid])
        assert process.events() == ""
        assert process.entry() == entry
        with pressure_triggers.Borrowed(process.pid, 7, pressure_triggers.CgroupMounts()) as file:
            assert file.has_trigger() and not file.write(never)
    with waiting(pressure) as process:
        pressure_triggers.write_again(f"{process.pid} 7 {ANY_STALL}\n", [process.pid])
        with contextlib.ExitStack() as stack:
            for _ in range(2 * (os.cpu_count() or 1)):  # more than there are processors for
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                stack.callback(busy.wait)
                stack.callback(busy.kill)
            while not (events := process.events()):
                pass
        assert int(events) == select.EPOLLPRI


def test_one_that_this_kernel_does_not_take(pressure: str) -> None:
    """A user of the container has a process say so: it would keep all of it from being restored."""
    with waiting(pressure) as process:
        assert pressure_triggers.write_again(f"{process.pid} 7 some 2000000 1000000\n", [process.pid]) == ""
        assert process.events() == ""
        with pressure_triggers.Borrowed(process.pid, 7, pressure_triggers.CgroupMounts()) as file:
            assert file.has_trigger()


class Refuses(pressure_triggers.Borrowed):
    """A file of which the kernel takes some triggers alone."""

    def __init__(self, number: int, *takes: str) -> None:
        self.fd, self.number, self.takes, self.asked = -1, number, takes, list[str]()

    def write(self, trigger: str) -> bool:
        self.asked.append(trigger)
        if trigger not in self.takes:
            raise OSError(self.number, os.strerror(self.number))
        return True


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_what_is_tried_instead(number: int) -> None:
    """irq.pressure takes `full` alone, and where pressure is not measured nothing is taken."""
    tried = ("some 1 2000000", pressure_triggers.DEFAULT, pressure_triggers.DEFAULT_FULL)
    for count, trigger in enumerate(tried, 1):
        file = Refuses(number, trigger)
        assert pressure_triggers._write_any(file, tried) and file.asked == list(tried[:count])
    with pytest.raises(OSError, match=os.strerror(number)):
        pressure_triggers._write_any(Refuses(number), tried)
    with pytest.raises(PermissionError):
        pressure_triggers._write_any(Refuses(errno.EACCES), tried)


@pytest.mark.parametrize("module, name, taken", [
    (pressure_triggers.Borrowed, "write", False), (epoll_entries, "read", True), (epoll_entries, "add_again", True)])
def test_what_cannot_be_done_is_said_and_not_fatal(pressure: str, monkeypatch: pytest.MonkeyPatch, module: object,
                                                   name: str, taken: bool) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EINVAL, "the kernel says no")

    monkeypatch.setattr(module, name, fail)
    with waiting(pressure) as process, waiting(pressure) as other:
        text = "".join(f"{each.pid} 7 {ANY_STALL}\n" for each in (process, other))
        said = pressure_triggers.write_again(text, [process.pid])
        assert f"process {process.pid} is not told of pressure any more" in said and "the kernel says no" in said
        with pressure_triggers.Borrowed(process.pid, 7, pressure_triggers.CgroupMounts()) as file:
            assert file.has_trigger() is taken
        if name != "write":
            assert pressure_triggers.write_again(text, [process.pid]) == "", "there is nothing to be done"
            said = pressure_triggers.write_again(text, [other.pid, process.pid])
            assert str(other.pid) in said
        else:
            assert pressure_triggers.write_again(text, [process.pid, other.pid]).startswith("2 processes")


def test_mounts_are_read_once_however_many_files_have_such_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                  ) -> None:
    read: list[str | int] = []
    honest = mount_tables.read

    def told(path: str | int, limit: int | None = None) -> bytes:
        read.append(path)
        return honest(path, limit)

    monkeypatch.setattr(mount_tables, "read", told)
    with contextlib.ExitStack() as stack:
        for number in range(20):
            stack.enter_context((tmp_path / f"{number}.pressure").open("w"))
        assert pressure_triggers.record([os.getpid()]) == ""
    assert len(read) == 1


def test_where_there_is_one_already_nothing_is_done(pressure: str) -> None:
    """By a CRIU that has been cured; or it is one open file that two processes have."""
    with waiting(pressure, ANY_STALL) as process:
        entry = process.entry()
        pressure_triggers.write_again(f"{process.pid} 7 some 5 2000000\n" * 2, [process.pid])
        assert process.entry() == entry


def test_what_a_record_may_have_written_and_where(pressure: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    fd = os.open(tmp_path / "file", os.O_RDWR)
    try:
        for line in ("", "x 7 some 1 2", "7", "7 x some 1 2", "7 7 echo 1 2", "7 7 some 1", "7 7 some -1 2",
                     "7 7 some 1 2 3", "7 7 some 12345678901 2", "7 7 some ² 2"):
            if line:
                with pytest.raises(ValueError, match=r"."):
                    pressure_triggers.write_again(f"{line}\n", [os.getpid()])
        with pytest.raises(OSError, match="not of a cgroup"):
            pressure_triggers.write_again(f"{os.getpid()} {fd} some 1 2\n", [os.getpid()])
    finally:
        os.close(fd)
    assert (tmp_path / "file").read_text() == "kept"
    pressure_triggers.write_again(f"{1 << 22} 7 some 1 2\n", [os.getpid()])  # who is not there has none
