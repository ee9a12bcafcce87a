# SPDX-License-Identifier: GPL-2.0-or-later
"""What is changed in a running container right before the freeze: by the mounts of a Debian 13 guest."""

from __future__ import annotations

import os
from typing import Any

import pytest

from migrator.errors.memory import GuestNotReady
from migrator.guest import acts, live_steps
from migrator.guest.acts import Act
from migrator.guest.live_steps import Mounts
from migrator.host import mount_tables
from migrator.host.mountinfo import parse_mountinfo
from tests.migrator.sandboxes import LOGIND, OUTSIDE, OWN, RESOLVED

PIDS = {"own": 92, "logind": 207, "resolved": 171}


def mounts(**more: str) -> Mounts:
    texts = {"own": OWN, "logind": LOGIND, "resolved": RESOLVED, **more}
    return Mounts("own", {key: parse_mountinfo(text) for key, text in texts.items()},
                  {key: PIDS.get(key, 1) for key in texts}, OUTSIDE)


def test_what_a_stock_guest_needs() -> None:
    found = list(live_steps.needed(mounts()))
    assert [(act.kind, act.pid, act.namespace, act.target) for act in found] == [
        ("credentials", 92, "own", "/run/credentials/console-getty.service"),
        ("credentials", 171, "resolved", "/run/credentials/systemd-resolved.service"),
        ("renew", 171, "resolved", "/tmp"),
        ("renew", 171, "resolved", "/var/tmp"),
    ]
    assert found[2].options == ("nosuid", "rw")
    assert [act.device for act in found] == ["0:229", "0:221", "0:222", "0:222"]


@pytest.mark.parametrize("line", [
    "1 0 0:9 / /run/credentials/../../etc ro - ramfs ramfs rw\n",  # not a unit's
    "1 0 0:9 / /mnt ro - ramfs ramfs rw\n",
    "1 0 0:9 /x /srv rw - tmpfs none rw\n",
    "1 0 0:7 /x /a rw shared:5 - tmpfs t rw\n2 0 0:7 /y /b rw shared:5 - tmpfs t rw\n",
    "1 0 0:38 /p/memory.pressure /a rw - cgroup2 none rw\n",
])
def test_what_is_not_systemd_s_is_left_alone(line: str) -> None:
    text = f"{line}3 0 0:206 /s1/rootfs / ro master:136 - btrfs /dev/loop2 rw\n"
    assert [act for act in live_steps.needed(mounts(other=text)) if act.namespace == "other"] == []


class Guest:
    """A container in which some things are done and others fail; each round shows less."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rounds: list[list[str]], **troubles: str) -> None:
        self.done: list[str] = []
        shown = iter(rounds)
        monkeypatch.setattr(live_steps, "is_systemd", lambda _: True)
        monkeypatch.setattr(live_steps, "seen", lambda init, pids: None)
        monkeypatch.setattr(live_steps, "needed",
                            lambda _: [Act(kind, 1, "own", f"/{kind}") for kind in next(shown)])

        def carry_out(init: int, asked: list[Act]) -> list[tuple[Act, str]]:
            self.done += [act.kind for act in asked]
            return [(act, troubles.get(act.kind, "")) for act in asked]

        monkeypatch.setattr(acts, "carry_out", carry_out)


def make_ready(*, watched: bool = True) -> None:
    live_steps.make_ready("c1", os.getpid(), lambda: [], watched=watched)


def test_what_comes_to_light_is_done_too(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(monkeypatch, [["renew"], ["renew", "other"], []])
    make_ready()
    assert guest.done == ["copy", "renew", "renew", "other"]


def test_a_link_that_nobody_watches_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(monkeypatch, [["other"], []])
    make_ready(watched=False)
    assert guest.done == ["other"]


def test_it_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(monkeypatch, [["renew"]] * 100)
    with pytest.raises(GuestNotReady, match="at /renew: it keeps coming back"):
        make_ready()
    assert guest.done.count("renew") == live_steps.ROUNDS


def test_what_fails_is_told_before_the_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    Guest(monkeypatch, [["renew"], []], renew="something in it is open")
    with pytest.raises(GuestNotReady, match="at /renew: something in it is open"):
        make_ready()


def test_no_more_mounts_are_read_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = live_steps.seen
    Guest(monkeypatch, [])
    monkeypatch.setattr(live_steps, "seen", honest)
    assert honest(os.getpid(), [1 << 22]).lines[os.readlink("/proc/self/ns/mnt")]  # noqa: PTH115 -- it is no path
    monkeypatch.setattr(mount_tables, "LIMIT", 10)
    with pytest.raises(GuestNotReady, match="at its mounts: more is mounted in the container than is read"):
        make_ready(watched=False)


def test_where_systemd_is_not_the_first_process_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> list[Any]:
        raise AssertionError

    monkeypatch.setattr(acts, "carry_out", never)
    make_ready()
    live_steps.put_back("c1", os.getpid())


def test_what_cannot_be_put_back_stops_nobody(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
                                              ) -> None:
    Guest(monkeypatch, [], link="no room")
    live_steps.put_back("c1", os.getpid())
    assert "stays a file, which does no harm: no room" in capfd.readouterr().err

    def fails(*_: Any) -> list[Any]:
        raise ValueError("nonsense")

    monkeypatch.setattr(acts, "carry_out", fails)
    live_steps.put_back("c1", os.getpid())
    assert "nonsense" in capfd.readouterr().err
