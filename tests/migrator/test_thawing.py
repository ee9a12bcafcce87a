# SPDX-License-Identifier: GPL-2.0-or-later
"""A thaw: its steps, in order, and that none of them keeps the container from running."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator import lxc, network, thawing
from migrator.errors import MigratorError
from migrator.network import Port
from migrator.thawing import Frozen

PORT = Port("eth0", "veth1", "br0")


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.freeze").write_text("1")
    return tmp_path


@pytest.fixture
def acts(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The steps, each with what it was given; and before the first, which signals were held back."""
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
    monkeypatch.setattr(network, "announce", act("announced", Announced))
    honest = lxc.thaw_cgroup

    def thaw_cgroup(path: Path) -> None:
        done.append(("thawed", signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= thawing._BY_HAND))
        honest(path)

    monkeypatch.setattr(lxc, "thaw_cgroup", thaw_cgroup)
    monkeypatch.setattr(lxc, "Container", Container)
    return done


def frozen(cgroup: Path, *ports: Port) -> Frozen:
    return Frozen("0badc0de", "web", Path("/pool"), 4711, cgroup, ports, {"eth0": "1"})


def runs(cgroup: Path) -> bool:
    return (cgroup / "cgroup.freeze").read_text() == "0"


def test_on_its_network_first(cgroup: Path, acts: list[tuple[object, ...]]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    thawing.thaw(frozen(cgroup, PORT))
    assert acts == [("dad", 4711, {"eth0": "1"}), ("heard", "0badc0de"), ("thawed", True),
                    ("told LXC", "web", Path("/pool")), ("announced", 4711, (0.0,)), ("joined",)]
    assert runs(cgroup) and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_without_a_network(cgroup: Path, acts: list[tuple[object, ...]]) -> None:
    thawing.thaw(frozen(cgroup))
    assert [word for word, *_ in acts] == ["dad", "thawed", "told LXC"] and runs(cgroup)


@pytest.mark.parametrize("error", [MigratorError(reason="?"), OSError(5, "Input/output error")])
@pytest.mark.parametrize(("owner", "step", "told"), [
    (network, "bring_back_dad", "IPv6 addresses are not checked for duplicates"),
    (network, "hear", "its network does not hear it"), (lxc, "Container", "LXC still takes web for frozen"),
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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    (cgroup / "cgroup.freeze").unlink()
    (cgroup / "cgroup.freeze").mkdir()
    with pytest.raises(OSError, match="directory"):
        thawing.thaw(frozen(cgroup, PORT))
    assert acts[-1] == ("thawed", True), "nobody is told that it runs"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize("number", sorted(thawing._BY_HAND))
def test_a_signal_by_hand_comes_after_the_last_step(cgroup: Path, acts: list[tuple[object, ...]],
                                                    monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def caught(*_: object) -> None:
        acts.append(("signal",))

    before = signal.signal(number, caught)
    monkeypatch.setattr(network, "bring_back_dad", lambda *_: signal.pthread_kill(threading.get_ident(), number))
    try:
        thawing.thaw(frozen(cgroup))
    finally:
        signal.signal(number, before)
    assert [word for word, *_ in acts] == ["thawed", "told LXC", "signal"]


def test_it_is_written_down_and_read_again(cgroup: Path) -> None:
    made = frozen(cgroup, PORT)
    assert Frozen.from_detail("0badc0de", "web", Path("/pool"), made.to_detail()) == made
    assert made.to_detail() == {"pid": 4711, "cgroup": str(cgroup), "dad": {"eth0": "1"},
                                "ports": [{"inside": "eth0", "outside": "veth1", "bridge": "br0"}]}
    older = {"pid": "4711", "cgroup": str(cgroup), "ports": []}  # before addresses were looked after
    assert Frozen.from_detail("0badc0de", "web", Path("/pool"), older).dad == {}
