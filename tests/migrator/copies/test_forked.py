# SPDX-License-Identifier: GPL-2.0-or-later
"""Where roots lie is asked by a child, and those that keep it back hold nobody up."""

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

from migrator.base import log
from migrator.copies import forked
from migrator.host import roots

LIMIT = forked.LIMIT
HELD = 300.0  # seconds for which a child keeps something back; it is ended long before


@pytest.fixture(autouse=True)
def on_btrfs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes whose root is said to lie on btrfs; of no process is it known that it keeps that back."""
    found: list[int] = []
    monkeypatch.setattr(forked, "_silent", set())
    monkeypatch.setattr(forked, "LIMIT", HELD)  # a child that gets no processor for a while keeps nothing back
    monkeypatch.setattr(roots, "_lies_on_btrfs", lambda _: True)
    honest = roots.on_btrfs

    @contextlib.contextmanager
    def held(pid: int) -> Iterator[Path | None]:
        with honest(pid) as root:
            yield root if pid in found else None

    monkeypatch.setattr(roots, "on_btrfs", held)
    return found


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "warning", found.append)
    return found


@pytest.fixture
def processes(on_btrfs: list[int]) -> Iterator[list[int]]:
    """Some that are there, in the order of their ids, with their roots on btrfs."""
    started = [subprocess.Popen(["sleep", "1000"]) for _ in range(5)]
    on_btrfs += [each.pid for each in started]
    yield sorted(on_btrfs)
    for each in started:
        each.kill()
        each.wait()


class HoldingBack:
    """Some keep back where their root lies; and time passes only while one does, or the file `awaited` is there."""

    def __init__(self, folder: Path, pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._pids = folder, pids
        self.looks: list[int] = []  # in vain; the processes that were waited for
        self.awaited = folder / "awaited"
        self._on_btrfs, self._poll = roots.on_btrfs, select.poll
        if pids:
            monkeypatch.setattr(forked, "LIMIT", LIMIT)
        monkeypatch.setattr(roots, "on_btrfs", self._held)
        monkeypatch.setattr(select, "poll", lambda: self)

    @contextlib.contextmanager
    def _held(self, pid: int) -> Iterator[Path | None]:
        if pid in self._pids:
            (self._folder / str(pid)).touch()
            threading.Event().wait(HELD)
        with self._on_btrfs(pid) as root:
            yield root

    def register(self, fd: int, events: int) -> None:
        self._real = self._poll()
        self._real.register(fd, events)

    def poll(self, limit: float) -> list[tuple[int, int]]:
        assert limit == 100  # ms
        while not (found := self._real.poll(10)):
            asked = {int(path.name) for path in self._folder.iterdir() if path != self.awaited}
            if waited_for := asked - {pid for pid, _ in forked._silent}:
                self.looks += waited_for
                return []
            if self.awaited.exists():
                return []
        return found


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def opened() -> list[str]:
    """What this process has open, without the numbers of pipes."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this folder
            found.append(str(each.readlink()).partition(":")[0])
    return sorted(found)


def us(_: Path) -> str:
    return str(os.getpid())


def test_it_is_another_process_that_asks(processes: list[int], on_btrfs: list[int], said: list[str]) -> None:
    before = children(), opened()
    assert set(forked.answers(processes, us).values()).isdisjoint({str(os.getpid())})
    assert forked.answers(processes, lambda root: root.is_dir()) == dict.fromkeys(processes, True)
    on_btrfs.remove(processes[1])
    ended = 2**22 + 1
    assert set(forked.answers([ended, *processes], us).values()).isdisjoint({str(os.getpid())})
    assert forked.answers([*processes, ended], lambda _: False) == {
        pid: None if pid == processes[1] else False for pid in processes}
    assert forked.those([*processes, ended], lambda _: True) == [processes[0], *processes[2:]]
    assert forked.those([], lambda _: True) == []
    assert (children(), opened()) == before and said == []


def test_one_that_keeps_it_back_holds_nobody_up(processes: list[int], tmp_path: Path, said: list[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    first, other, second, third, last = processes
    back = HoldingBack(tmp_path, [second, third], monkeypatch)
    ended: list[int] = []
    killed: list[tuple[int, int]] = []
    honest, honest_kill = os.waitpid, os.kill

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        ended.append(options)
        return honest(pid, options)

    def kill(pid: int, number: int) -> None:
        killed.append((pid, number))
        honest_kill(pid, number)

    monkeypatch.setattr(os, "waitpid", waitpid)
    monkeypatch.setattr(os, "kill", kill)
    twice = [first, first, other, second, third, first, last, last]  # as a cgroup may name them
    assert forked.those(twice, lambda _: True) == [first, other, last]
    assert [text.split()[1] for text in said] == [str(second), str(third)]
    assert back.looks == [second] * 50 + [third] * 50, "5 s for each"
    assert forked.those(processes, lambda _: True) == [first, other, last]
    assert len(said) == 2 and len(back.looks) == 100, "they are not asked again"
    assert ended == [os.WNOHANG, os.WNOHANG, 0, 0], "who waits for a server is not waited for, though killed"
    left = {int(pid) for pid in children() - before}  # what was killed is there until it is waited for
    for pid in left:
        honest_kill(pid, signal.SIGKILL)  # in case it was not: it would hold this test up
        honest(pid, 0)
    assert {(pid, signal.SIGKILL) for pid in left} <= set(killed), "else they stay as long as the server keeps silent"


def test_what_lies_on_btrfs_is_waited_for(processes: list[int], tmp_path: Path, said: list[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its disk, or who watches what is opened on it, takes for an answer: it is no other's for that."""
    back = HoldingBack(tmp_path, [], monkeypatch)
    monkeypatch.setattr(forked, "LIMIT", LIMIT)
    go_on = tmp_path.parent / "go on"
    polls: list[int] = []
    honest = back.poll

    def poll(limit: float) -> list[tuple[int, int]]:
        polls.append(1)
        if len(polls) == 200:
            go_on.touch()
        return honest(limit)

    def question(_: Path) -> bool:
        back.awaited.touch()
        while not go_on.exists():
            threading.Event().wait(0.01)
        back.awaited.unlink()
        return True

    monkeypatch.setattr(back, "poll", poll)
    assert forked.those(processes, question) == processes
    assert len(polls) > 200 and said == []


def test_the_child_holds_nothing_open(processes: list[int], tmp_path: Path) -> None:
    """Neither a lock, which would outlive us, nor a pipe that somebody reads to its end."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (told,) = forked.answers(processes[:1], lambda _: " ".join(opened())).values()
    root = str(Path(f"/proc/{processes[0]}/root").readlink())
    assert isinstance(told, str) and told.split() == sorted([*["/dev/null"] * 3, "pipe", root])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP])
def test_no_signal_reaches_the_child(processes: list[int], number: signal.Signals) -> None:
    """As Ctrl-C does, which would have it go the way of this program beside it, with its locks and its journal."""
    ours = os.getpid()

    def question(_: Path) -> bool:
        if os.getpid() != ours:  # what a child that has ended leaves unanswered is asked here, and must not end pytest
            os.kill(os.getpid(), number)
        return os.getpid() != ours

    assert forked.those(processes, question) == processes


def test_nor_at_its_very_beginning(processes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes the way of this program no further than to its own end."""
    honest, ours = os.fork, os.getpid()

    class ComesNowError(Exception):
        pass

    def fork() -> int:
        if honest():
            return os.getppid()  # which is not to be ended
        raise ComesNowError

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(forked, "_end", lambda *_: os.wait())
    try:
        told = forked.answers(processes, us)
    except ComesNowError:
        (tmp_path / "came").touch()
    if os.getpid() != ours:
        os._exit(1)
    assert set(told.values()) == {str(ours)} and not (tmp_path / "came").exists()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_nothing_can_be_forked(processes: list[int], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fork() -> int:
        raise OSError(number, os.strerror(number))

    before = opened()
    monkeypatch.setattr(os, "fork", fork)
    assert set(forked.answers(processes, us).values()) == {str(os.getpid())}
    assert opened() == before


@pytest.mark.parametrize("handled", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_child_that_is_killed_answers_for_none(processes: list[int], said: list[str],
                                                 handled: signal.Handlers) -> None:
    """As where there is no memory: what it has left unanswered we ask ourselves. The kernel may wait for it then, as
    a daemon that has started us has told it to.
    """
    ours, asked = os.getpid(), list[int]()

    def question(_: Path) -> str:
        asked.append(1)
        if os.getpid() != ours and len(asked) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(os.getpid() == ours)

    before, handler = children(), signal.signal(signal.SIGCHLD, handled)
    try:
        assert forked.answers(processes, question) == dict(
            zip(processes, ["False", "False", "True", "True", "True"], strict=True))
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert said == [] and children() == before and len(asked) == 3


def test_a_later_process_of_that_id_is_asked(processes: list[int]) -> None:
    forked._silent.add((processes[0], 1))
    assert forked.those(processes, lambda _: True) == processes
