# SPDX-License-Identifier: GPL-2.0-or-later
"""A thaw: its steps, in order, and that none of them keeps the container from running."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.copies import thawing
from migrator.copies.thawing import Frozen
from migrator.errors import MigratorError
from migrator.host import lxc, network
from migrator.host.network import Port
from migrator.record.detail import Still

PORT = Port("eth0", "veth1", "br0")


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.freeze").write_text("1")
    return tmp_path


@pytest.fixture
def acts(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The steps, each with what it was given."""
    done: list[tuple[object, ...]] = []

    def act(word: str, answer: object = None) -> Callable[..., Any]:
        def note(*args: object) -> object:
            done.append((word, *args))
            return answer
        return note

    class Container:
        def __init__(self, *of: object) -> None:
            self.tell_thawed = lambda: done.append(("told LXC", *of))

    class Announced:
        join = staticmethod(act("joined"))

    monkeypatch.setattr(network, "bring_back_dad", act("dad"))
    monkeypatch.setattr(network, "hear", act("heard"))
    monkeypatch.setattr(network, "plug", act("plugged"))
    monkeypatch.setattr(network, "announce", act("announced", Announced))
    honest = lxc.thaw_cgroup

    def thaw_cgroup(path: Path) -> None:
        done.append(("thawed",))
        honest(path)

    monkeypatch.setattr(lxc, "thaw_cgroup", thaw_cgroup)
    monkeypatch.setattr(lxc, "Container", Container)
    return done


def frozen(cgroup: Path, *ports: Port) -> Frozen:
    return Frozen("0badc0de", "web", Path("/pool"), 4711, cgroup, ports, {"eth0": "1"})


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in thawing._BY_HAND]


def runs(cgroup: Path) -> bool:
    return (cgroup / "cgroup.freeze").read_text() == "0"


def test_on_its_network_first(cgroup: Path, acts: list[tuple[object, ...]]) -> None:
    before = handlers()
    thawing.thaw(frozen(cgroup, PORT))
    assert acts == [("dad", 4711, {"eth0": "1"}), ("heard", "0badc0de"), ("plugged", 4711, (PORT,)), ("thawed",),
                    ("told LXC", "web", Path("/pool")), ("announced", 4711, (0.0,)), ("joined",)]
    assert runs(cgroup) and handlers() == before


def test_without_a_network(cgroup: Path, acts: list[tuple[object, ...]]) -> None:
    thawing.thaw(frozen(cgroup))
    assert [word for word, *_ in acts] == ["dad", "plugged", "thawed", "told LXC"] and runs(cgroup)


@pytest.mark.parametrize("error", [MigratorError(reason="?"), OSError(5, "Input/output error"),
                                   ZeroDivisionError()])
@pytest.mark.parametrize(("owner", "step", "told"), [
    (network, "bring_back_dad", "IPv6 addresses are not checked for duplicates"),
    (network, "hear", "its network does not hear it"), (network, "plug", "it is not on its bridge"),
    (lxc, "Container", "LXC still takes web for frozen"),
])
def test_it_runs_whatever_fails(cgroup: Path, acts: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch,
                                capfd: pytest.CaptureFixture[str], owner: Any, step: str, told: str,
                                error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(owner, step, fail)
    thawing.thaw(frozen(cgroup, PORT))
    assert runs(cgroup) and acts[-1] == ("joined",)
    assert told in " ".join(capfd.readouterr().err.split())


def test_a_kernel_that_does_not_thaw_is_told_of(cgroup: Path, acts: list[tuple[object, ...]]) -> None:
    before = handlers()
    (cgroup / "cgroup.freeze").unlink()
    (cgroup / "cgroup.freeze").mkdir()
    with pytest.raises(OSError, match="directory"):
        thawing.thaw(frozen(cgroup, PORT))
    assert acts[-1] == ("thawed",), "nobody is told that it runs"
    assert handlers() == before


@pytest.fixture
def another_thread() -> Iterator[threading.Thread]:
    """One that blocks no signal, as what keeps a connection alive."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield thread
    end.set()
    thread.join()


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """Where a byte arrives for each signal that was taken, by whichever thread."""
    here, there = socket.socketpair()
    with here, there:
        there.setblocking(False)
        before = signal.set_wakeup_fd(there.fileno())
        yield here
        signal.set_wakeup_fd(before)


@contextlib.contextmanager
def handler(number: int, what: Any) -> Iterator[None]:
    before = signal.signal(number, what)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("where", ["main thread", "another"])
@pytest.mark.parametrize("number", thawing._BY_HAND)
def test_a_signal_by_hand_comes_after_the_last_step(cgroup: Path, acts: list[tuple[object, ...]],
                                                    monkeypatch: pytest.MonkeyPatch, another_thread: threading.Thread,
                                                    taken: socket.socket, number: int, where: str) -> None:
    """Once, however often, and whichever thread the kernel has picked for it."""
    picked = another_thread.ident if where == "another" else threading.get_ident()
    assert picked

    def signalled(*_: object) -> None:
        for _again in range(2):
            signal.pthread_kill(picked, number)
            taken.recv(1)  # by the other thread at its own pace; Python's handler comes after that

    monkeypatch.setattr(network, "bring_back_dad", signalled)
    with handler(number, lambda which, _: acts.append(("signal", which))):
        thawing.thaw(frozen(cgroup))
    assert [word for word, *_ in acts] == ["plugged", "thawed", "told LXC", "signal"] and acts[-1][1:] == (number,)


def test_a_signal_counts_also_where_it_is_not_thawed(cgroup: Path, acts: list[tuple[object, ...]],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(lxc, "thaw_cgroup", fail)
    with handler(signal.SIGTERM, lambda *_: acts.append(("signal",))), pytest.raises(OSError, match="Input"):
        thawing.thaw(frozen(cgroup))
    assert acts[-1] == ("signal",)


def test_a_signal_that_is_ignored_stays_so(cgroup: Path, acts: list[tuple[object, ...]],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """As SIGHUP under nohup(1)."""
    monkeypatch.setattr(network, "bring_back_dad",
                        lambda *_: acts.append(("hup", signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)))
    with handler(signal.SIGHUP, signal.SIG_IGN):
        thawing.thaw(frozen(cgroup))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert acts[0] == ("hup", True)


def test_it_thaws_in_another_thread_too(cgroup: Path, acts: list[tuple[object, ...]]) -> None:
    """Whose handlers cannot be changed, and which no signal disturbs."""
    thread = threading.Thread(target=thawing.thaw, args=(frozen(cgroup),))
    thread.start()
    thread.join()
    assert runs(cgroup)


def test_it_is_written_down_and_read_again(cgroup: Path) -> None:
    made = frozen(cgroup, PORT)
    assert Frozen.on_record("0badc0de", "web", Path("/pool"), made.recorded()) == made
    assert made.recorded() == Still(pid=4711, cgroup=str(cgroup), dad={"eth0": "1"}, init=(4711, None),
                                    ports=[Port("eth0", "veth1", "br0")])
    older = Still(pid=4711, cgroup=str(cgroup))  # before addresses were looked after
    assert Frozen.on_record("0badc0de", "web", Path("/pool"), older).dad == {}
