# SPDX-License-Identifier: GPL-2.0-or-later
"""What may never be answered is asked by a child, and those that keep it back hold nobody up."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator import forked, log

HELD = 300.0  # seconds for which a child keeps an answer back; it is ended long before


@pytest.fixture(autouse=True)
def nobody_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "_silent", set())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "warning", found.append)
    return found


@pytest.fixture
def processes() -> Iterator[list[int]]:
    """Some that are there, in the order of their ids."""
    started = [subprocess.Popen(["sleep", "1000"]) for _ in range(4)]
    yield sorted(each.pid for each in started)
    for each in started:
        each.kill()
        each.wait()


class HoldingBack:
    """A question that some do not answer; and time passes only while one does not."""

    def __init__(self, folder: Path, pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._pids = folder, pids
        self.looks: list[int] = []  # in vain; the processes that were waited for
        self._select = select.select
        monkeypatch.setattr(select, "select", self._look)

    def __call__(self, pid: int) -> bool:
        if pid in self._pids:
            (self._folder / str(pid)).touch()
            threading.Event().wait(HELD)
        return True

    def _look(self, fds: list[int], *_: object) -> tuple[list[int], list[int], list[int]]:
        while not self._select(fds, [], [], 0.01)[0]:
            asked = {int(path.name) for path in self._folder.iterdir()}
            if waited_for := asked - {pid for pid, _ in forked._silent}:
                self.looks += waited_for
                return [], [], []
        return fds, [], []


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def opened() -> list[str]:
    """What this process has open, without the numbers of pipes."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this folder
            found.append(str(each.readlink()).partition(":")[0])
    return sorted(found)


def test_it_is_another_process_that_asks(processes: list[int], said: list[str]) -> None:
    before = children()
    assert set(forked.answers(processes, lambda _: str(os.getpid())).values()).isdisjoint({str(os.getpid())})
    assert forked.answers(processes, lambda pid: str(pid)) == {pid: str(pid) for pid in processes}
    assert forked.answers(processes[:2], lambda pid: None if pid == processes[0] else "") == {
        processes[0]: None, processes[1]: ""}
    assert forked.those(processes, lambda pid: pid != processes[1]) == [processes[0], *processes[2:]]
    assert forked.those([], lambda _: True) == [] and forked.those([2**22 + 1], lambda _: True) == [2**22 + 1]
    assert children() == before and said == []


def test_one_that_keeps_it_back_holds_nobody_up(processes: list[int], tmp_path: Path, said: list[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    second, third = processes[1], processes[2]
    question = HoldingBack(tmp_path, [second, third], monkeypatch)
    assert forked.those(processes, question) == [processes[0], processes[3]]
    assert [text.split()[1] for text in said] == [str(second), str(third)]
    assert question.looks == [second] * 50 + [third] * 5, "5 s, and 0.5 s where somebody does that"
    assert forked.those(processes, question) == [processes[0], processes[3]]
    assert len(said) == 2, "it is not asked again"
    assert forked.those([third, processes[3]], lambda _: True) == [processes[3]], "by nobody"
    for pid in children() - before:  # what was killed is there until it is waited for
        os.waitpid(int(pid), 0)


def test_the_child_holds_nothing_open(processes: list[int], tmp_path: Path) -> None:
    """Neither a lock, which would outlive us, nor a pipe that somebody reads to its end."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (told,) = forked.answers(processes[:1], lambda _: " ".join(opened())).values()
    assert told is not None and set(told.split()) == {"/dev/null", "pipe"}


def test_nothing_can_be_forked(processes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = opened()
    monkeypatch.setattr(os, "fork", fork)
    assert set(forked.answers(processes, lambda _: str(os.getpid())).values()) == {str(os.getpid())}
    assert opened() == before


def test_a_child_that_is_killed_answers_for_none(processes: list[int], said: list[str]) -> None:
    """As where there is no memory: what it has left unanswered we ask ourselves."""
    ours = os.getpid()

    def question(pid: int) -> str:
        if os.getpid() != ours and pid == processes[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(os.getpid() == ours)

    before = children()
    assert forked.answers(processes, question) == dict(zip(processes, ["False", "False", "True", "True"], strict=True))
    assert said == [] and children() == before


def test_a_later_process_of_that_id_is_asked(processes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    forked._silent.add((processes[0], 1))
    assert forked.those(processes, lambda _: True) == processes
