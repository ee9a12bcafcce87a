# SPDX-License-Identifier: GPL-2.0-or-later
"""A start whose first process has its root outside of the container's disk is told by the cgroup that LXC has made.

As an init that calls pivot_root(2) into a tmpfs, or chroot(2) into what is mounted there. What is certainly another
container's is none; and what may be one is told to whoever is to end it.
"""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.copies import after_crash, ending, no_memory, origins, remains, second_start, standing
from migrator.copies.thawing import Frozen
from migrator.errors.containers import OutOfOrder
from migrator.errors.memory import StartFailed
from migrator.host import lxc, monitor_socket, roots
from migrator.record.detail import Still
from migrator.record.journal import Journal
from migrator.record.states import Event
from stages.steps import thaw_again
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import Monitorless, cgroup, configured, frozen, init, started  # noqa: F401 -- fixtures
from tests.stages.other_starts import SLEEP, START, lives
from tests.stages.standing import OTHER_BOOT

WEB, OTHER = "0::/lxc.payload.web\n", "0::/lxc.payload.other\n"
ELSEWHERE = roots.Root(99, 1)  # a tmpfs
OWN = roots.Root(98, 257)  # a folder on another disk


class Start:
    """A first process, and what /proc tells of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.cgroup, self.root, self.subvolume = WEB, ELSEWHERE, False


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch, started: list[str]) -> Iterator[Start]:
    honest, others = roots.of, second_start._cgroup
    with lives(*START, *SLEEP) as found:
        made = Start(found[1])
        monkeypatch.setattr(second_start, "_cgroup",
                            lambda pid: made.cgroup if pid == made.pid else others(pid))
        monkeypatch.setattr(roots, "of", lambda pid, *more: made.root if pid == made.pid else honest(pid, *more))
        monkeypatch.setattr(roots, "is_subvolume", lambda pid: pid == made.pid and made.subvolume)
        monkeypatch.setattr(lxc, "container_processes", lambda _: [made.pid])
        monkeypatch.setattr(monitor_socket, "_program", lambda _: "init")  # as if its monitor had ended
        monkeypatch.setattr(Monitorless, "rootfs", Path("/"))
        monkeypatch.setattr(origins, "is_source", lambda _: True)
        monkeypatch.setattr(no_memory, "stay", lambda *_: None)
        monkeypatch.setattr(no_memory, "end", lambda *_: None)
        yield made


@pytest.mark.parametrize(("cgroup", "found"), [
    (WEB, True), ("0::/lxc.payload.web/init.scope\n", True), ("0::/lxc.payload.web-1\n", True),
    ("0::/made/by/dir/lxc.payload.web\n", True),
    ("0::/user.slice/user-0.slice/session-3.scope/lxc.payload.web\n", True),  # lxc.cgroup.relative
    ("0::/fixed/place/inside\n", True), ("0::/fixed/place\n", True),  # lxc.cgroup.dir.container
    ("0::/fixed/placed\n", False), (OTHER, False), ("0::/lxc.payload.webs\n", False), ("0::/lxc.monitor.web\n", False),
    ("0::/lxc.payload.other/lxc.payload.web\n", False),  # which its root can make in there
    ("1:name=systemd:/lxc.payload.web\n", False), ("", False),
])
def test_by_what_lxc_calls_it(beside: Start, cgroup: str, found: bool) -> None:
    beside.cgroup = cgroup
    pid = second_start.on_disk("web", Path("/pool"), Path("/"), "/sys/fs/cgroup/fixed/place")
    assert pid == (beside.pid if found else None)


def test_what_lxc_has_not_started_is_none(beside: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a guest of systemd-nspawn, whose root has made such a cgroup in the one that he has been given."""
    beside.cgroup = "0::/machine.slice/systemd-nspawn@guest.service/payload/lxc.payload.web\n"
    assert second_start.is_called_so(beside.pid, "web", Path("/pool"))
    monkeypatch.setattr(monitor_socket, "_program", lambda pid: "init" if pid == 1 else "systemd-nspawn")
    assert not second_start.is_called_so(beside.pid, "web", Path("/pool"))
    still = Still(cgroup="/sys/fs/cgroup/frozen", pid=os.getpid())
    assert second_start.of(Frozen.on_record("0badc0de", "web", Path("/pool"), still)) is None


@pytest.mark.parametrize("what", ["a subvolume", "another's monitor", "a user's", "a visitor"])
def test_what_is_none(beside: Start, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    asked: list[tuple[object, ...]] = []

    def may_be_its(*of: object) -> bool:
        asked.append(of)
        return what != "another's monitor"

    monkeypatch.setattr(monitor_socket, "may_be_its", may_be_its)
    assert second_start.is_called_so(beside.pid, "web", Path("/pool")) is (what != "another's monitor")
    if what == "a subvolume":  # which another container of that name has, in another LXC path
        beside.subvolume = True
    elif what == "a user's":
        monkeypatch.setattr(os, "geteuid", lambda: 2**31)
    elif what == "a visitor":  # as lxc-attach puts one there
        monkeypatch.setattr(second_start, "_is_first", lambda _: False)
    assert not second_start.is_called_so(beside.pid, "web", Path("/pool"))
    parent = int(Path(f"/proc/{beside.pid}/stat").read_text().rpartition(") ")[2].split()[1])
    assert set(asked) == {(parent, "web", Path("/pool"))}


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("called", [WEB, OTHER])
def test_none_is_started_beside_it(journal: Journal, cgroup: Path, beside: Start, started: list[str], memory: bool,
                                   called: str, capsys: pytest.CaptureFixture[str]) -> None:
    configured(journal)
    beside.cgroup = called
    migration = frozen(journal, cgroup, os.getpid(), boot=OTHER_BOOT, memory=memory, stopping=not memory,
                       stop_timeout=1)
    thaw_again.thaw_source(migration)
    said = capsys.readouterr().err
    assert started == (["web"] if called == OTHER else [])
    for told in (said, after_crash.where(migration)):
        assert (f"its cgroup, /sys/fs/cgroup/lxc.payload.web, what process {beside.pid} is" in told) is (
            called == WEB)


def test_beside_the_frozen_one(journal: Journal, cgroup: Path, beside: Start, started: list[str],
                               monkeypatch: pytest.MonkeyPatch) -> None:
    beside.cgroup = "0::/lxc.payload.web-1\n"
    with lives(*START, *SLEEP) as ours:
        monkeypatch.setattr(lxc, "container_processes", lambda _: [ours[1], beside.pid])
        (cgroup / "cgroup.procs").write_text(f"{ours[1]}\n")
        migration = frozen(journal, cgroup, ours[1], Event.OFFER, Event.TAKEN)
        with pytest.raises(StartFailed, match=rf"a second time \(process {beside.pid}\)") as raised:
            thaw_again.thaw_source(migration)
        assert f"what process {beside.pid} is" in str(raised.value)
        assert standing.runs(migration)
        assert f"what process {beside.pid} is" in after_crash.note(migration)
        with monkeypatch.context() as inside:
            inside.setattr(second_start, "_descends", lambda *_: True)
            assert not standing.runs(migration), "a user in there has made it"
        beside.cgroup = OTHER
        assert thaw_again.thaw_source(migration)
    assert (cgroup / "cgroup.freeze").read_text() == "0" and started == []


@pytest.mark.parametrize(("cgroup", "root", "looked_at"), [
    (OTHER, ELSEWHERE, False), ("0::/lxc.payload.webs\n", ELSEWHERE, True), (OTHER, roots.at(Path("/")), True),
    ("0::/frozen/inside\n", roots.at(Path("/")), False),
])
def test_of_who_is_none_little_is_asked(beside: Start, monkeypatch: pytest.MonkeyPatch, cgroup: str, root: roots.Root,
                                        looked_at: bool) -> None:
    """A thaw waits for that, for each process of any container."""
    beside.cgroup, beside.root = cgroup, root
    read: list[int] = []
    looked: list[int] = []
    honest = second_start._cgroup

    def reads(pid: int) -> str:
        read.append(pid)
        return honest(pid)

    def starts(pid: int) -> bool:
        looked.append(pid)
        return False

    monkeypatch.setattr(second_start, "_cgroup", reads)
    monkeypatch.setattr(second_start, "is_start", starts)
    monkeypatch.setattr(lxc, "payload_cgroup", lambda said: Path(said.strip()[3:]) if looked_at else pytest.fail(said))
    still = Still(cgroup="/sys/fs/cgroup/frozen", pid=os.getpid())
    assert second_start.of(Frozen.on_record("0badc0de", "web", Path("/pool"), still)) is None
    assert read == [beside.pid] and bool(looked) is (looked_at and root != ELSEWHERE)


@pytest.mark.parametrize("disk", [None, "11111111-2222-3333-4444-555555555555"])
def test_nor_is_it_ended_in_the_cgroup_that_is_on_record(
        journal: Journal, cgroup: Path, beside: Start, started: list[str], disk: str | None) -> None:
    configured(journal)
    (cgroup / "cgroup.procs").write_text(f"{beside.pid}\n")
    migration = frozen(journal, cgroup, os.getpid(), init=[1, 1], memory=False, stopping=True, stop_timeout=0.05,
                       rootfs_uuid=disk or "")
    assert remains.are_here(migration) is (disk is None)
    assert not thaw_again.thaw_source(migration)
    ending.kill(migration)
    assert not (cgroup / "cgroup.kill").exists() and started == []


def test_a_finish_ends_nothing_beside_it(journal: Journal, cgroup: Path, beside: Start) -> None:
    configured(journal)
    migration = frozen(journal, cgroup, os.getpid(), Event.OFFER, Event.TAKEN, boot=OTHER_BOOT)
    with pytest.raises(OutOfOrder, match=f"what process {beside.pid} is") as raised:
        standing.refuse_end(migration, "finish")
    assert f"kill -9 {beside.pid}" in raised.value.hint
    beside.cgroup = OTHER
    standing.refuse_end(migration, "finish")


@pytest.mark.parametrize(("cgroup", "root", "certain"), [
    (WEB, None, True), (WEB, OWN, False), (OTHER, None, False), (OTHER, OWN, False), ("", None, False),
])
def test_what_is_said_of_it(beside: Start, cgroup: str, root: roots.Root | None, certain: bool) -> None:
    """Also of another container, whose first process has called chroot(2) into this one's root file system."""
    beside.cgroup, beside.root = cgroup, root or roots.at(Path("/"))
    said = second_start.doubt(beside.pid, "web", Path("/"))
    assert (said == "") is certain
    if cgroup == OTHER:
        assert "by its cgroup, /sys/fs/cgroup/lxc.payload.other, what process" in said
