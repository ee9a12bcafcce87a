# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is thawed beside another start of it, and nothing that a user in it does is taken for one: real processes."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migrator.copies import second_start
from migrator.copies.thawing import Frozen
from migrator.criu import criu_dump
from migrator.errors.containers import ContainerNotRunning
from migrator.errors.memory import StartFailed
from migrator.host import cgroups, lxc, monitor_socket, roots
from migrator.record.journal import Journal
from migrator.record.states import Event
from stages.steps import thaw_again
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, frozen, init, started  # noqa: F401 -- fixtures
from tests.stages.other_starts import BESIDE, NESTED, SLEEP, START, lives


@pytest.mark.parametrize("second", sorted(BESIDE))
@pytest.mark.parametrize("rootfs_uuid", ["", "11111111-2222-3333-4444-555555555555"])
def test_who_lives_beside(journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch,
                          second: str, rootfs_uuid: str) -> None:
    command, which = BESIDE[second]
    with lives(*START, *SLEEP) as ours, lives(*command) as beside:
        monkeypatch.setattr(lxc, "container_processes", lambda _: [ours[1], beside[which]])
        (cgroup / "cgroup.procs").write_text(f"{ours[1]}\n")
        migration = frozen(journal, cgroup, ours[1], Event.OFFER, Event.TAKEN, rootfs_uuid=rootfs_uuid)
        if second == "another start":
            with pytest.raises(StartFailed, match=rf"a second time \(process {beside[which]}\)") as raised:
                thaw_again.thaw_source(migration)
            assert f"echo 1 >{cgroup}/cgroup.kill" in str(raised.value)
        else:
            assert thaw_again.thaw_source(migration)
    assert (cgroup / "cgroup.freeze").read_text() == ("1" if second == "another start" else "0") and started == []


def test_whose_monitor_has_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def is_its(*of: object) -> bool:
        asked.append(of)
        return True

    monkeypatch.setattr(monitor_socket, "is_its", is_its)
    with subprocess.Popen(SLEEP) as process:
        assert second_start.is_answered_for(process.pid, "web", Path("/pool"))
        process.kill()
    assert asked == [(os.getpid(), "web", Path("/pool"))]
    assert not second_start.is_answered_for(process.pid, "web", Path("/pool")), "it has ended"


def test_what_is_started_inside_is_none(journal: Journal, cgroup: Path, started: list[str],
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """`unshare -Urpm`, in a cgroup in which nobody sees it, as a user in the container can."""
    with lives(*START, *NESTED) as ours:
        assert len(ours) == 3
        monkeypatch.setattr(lxc, "container_processes", lambda _: ours[1:])
        (cgroup / "cgroup.procs").write_text(f"{ours[1]}\n")
        assert thaw_again.thaw_source(frozen(journal, cgroup, ours[1]))
    assert (cgroup / "cgroup.freeze").read_text() == "0"


@pytest.mark.parametrize("what", ["another container", "in our cgroup", "it ends", "its cgroup cannot be told"])
def test_what_is_no_other_start_of_it(journal: Journal, cgroup: Path, started: list[str],
                                      monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    honest = roots.of
    with lives(*START, *SLEEP) as ours, lives(*START, *SLEEP) as beside:
        its_own = Path(f"/proc/{beside[1]}/cgroup").read_text()

        def root_of(pid: int, *_: object) -> roots.Root:
            if pid == beside[1] and what == "it ends":
                raise FileNotFoundError
            return roots.Root(1, 257) if pid == beside[1] and what == "another container" else honest(pid)

        def holds(folder: str, text: str) -> bool:
            if what == "its cgroup cannot be told":
                raise OSError(errno.ENAMETOOLONG, "File name too long")
            return what == "in our cgroup" and (folder, text) == (str(cgroup), its_own)

        monkeypatch.setattr(roots, "of", root_of)
        monkeypatch.setattr(cgroups, "holds", holds)
        monkeypatch.setattr(lxc, "container_processes", lambda _: [ours[1], beside[1]])
        (cgroup / "cgroup.procs").write_text(f"{ours[1]}\n")
        assert thaw_again.thaw_source(frozen(journal, cgroup, ours[1]))
    assert (cgroup / "cgroup.freeze").read_text() == "0"


def chrooted(folder: str, *, mounted: bool) -> list[str]:
    """The first process of a container, which calls chroot(2), into what is `mounted` there or into what lies there."""
    code = ("import ctypes, os, signal; comm = open('/proc/self/comm', 'w')\n"
            f"if {mounted}: assert not ctypes.CDLL(None).mount(b{folder!r}, b{folder!r}, None, 4096, None)  # MS_BIND\n"
            f"os.chroot({folder!r}); comm.write('sleep'); comm.close(); signal.pause()")
    return [*START, sys.executable, "-c", code]


@pytest.mark.parametrize("mounted", [False, True])
def test_a_folder_of_it_that_another_container_has_mounted(monkeypatch: pytest.MonkeyPatch, mounted: bool) -> None:
    """That is none of its starts; one of these, whose first process has called chroot(2), has all of it mounted."""
    monkeypatch.setattr(roots, "is_in", lambda *_: True)
    with lives(*chrooted("/usr", mounted=mounted)) as found:
        assert roots.of(found[1]) == roots.at(Path("/usr")) and second_start.is_start(found[1])
        assert second_start.is_on(found[1], Path("/")) is not mounted


def test_one_that_comes_while_criu_is_waited_for(journal: Journal, cgroup: Path, started: list[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes up to a quarter of an hour, in which LXC may say STOPPED, and no fence stands."""
    with lives(*START, *SLEEP) as ours, lives(*START, *SLEEP) as beside:
        found = [ours[1]]
        monkeypatch.setattr(lxc, "container_processes", lambda _: found)
        monkeypatch.setattr(criu_dump, "wait_for_dump", lambda *_: found.append(beside[1]))
        (cgroup / "cgroup.procs").write_text(f"{ours[1]}\n")
        with pytest.raises(StartFailed, match=rf"\(process {beside[1]}\)"):
            thaw_again.thaw_source(frozen(journal, cgroup, ours[1]))
    assert (cgroup / "cgroup.freeze").read_text() == "1"


def test_one_that_has_ended_is_none() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not second_start.is_start(gone.pid)
    assert f"by its cgroup, /, what process {gone.pid} is:" in second_start.doubt(gone.pid, "web", Path("/"))


def test_nothing_stays_open_of_who_was_looked_at(journal: Journal, cgroup: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog looks as often as it waits."""
    with lives(*START, *SLEEP) as ours, lives(*START, *SLEEP) as beside:
        monkeypatch.setattr(lxc, "container_processes", lambda _: beside[1:])
        migration = frozen(journal, cgroup, ours[1])
        stands = Frozen.on_record(migration.id, migration.name, migration.lxcpath, migration.still)
        assert second_start.of(stands) == beside[1]
        opened = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
        assert not [path for path in opened if path.rpartition("/")[2].startswith(("pid:", "user:"))]


def test_what_lives_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody has said how long it may take to end: what asks so may stand before a frozen container."""
    monkeypatch.setattr(lxc, "container_processes", lambda _: [os.getpid()])
    monkeypatch.setattr(second_start, "is_on", lambda pid, rootfs: (pid, rootfs) == (os.getpid(), Path("/rootfs")))
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is waited for"))
    assert second_start.on_disk("web", Path("/pool"), Path("/rootfs")) == os.getpid()


def test_a_user_of_this_host_starts_none(journal: Journal, cgroup: Path, started: list[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """He has namespaces of his own, and has come to that root through /proc/PID/root of a process of his in it."""
    with lives(*START, *SLEEP) as ours, lives(*START, *SLEEP) as beside:
        monkeypatch.setattr(lxc, "container_processes", lambda _: [ours[1], beside[1]])
        monkeypatch.setattr(os, "geteuid", lambda: 2**31)  # root is another one than who has made them
        (cgroup / "cgroup.procs").write_text(f"{ours[1]}\n")
        assert thaw_again.thaw_source(frozen(journal, cgroup, ours[1]))
    assert (cgroup / "cgroup.freeze").read_text() == "0"


def test_what_has_this_hosts_users_was_made_by_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a privileged container has; nobody else may make such a pid namespace."""
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: os.open("/proc/self/ns/user", os.O_RDONLY))
    monkeypatch.setattr(os, "geteuid", lambda: 2**31)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert second_start._is_made_by_root(os.getpid())
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "what it has opened it has closed"


@pytest.mark.parametrize("knows", ["the frozen one", "that one", "none"])
def test_how_it_is_ended(journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch,
                         knows: str) -> None:
    """By name only if LXC knows that one by it: lxc-stop would thaw the frozen one, and then end it."""
    with lives(*START, *SLEEP) as ours, lives(*START, *SLEEP) as beside:
        class Known:
            rootfs = Path("/nowhere/rootfs")

            def __init__(self, name: str, lxcpath: Path) -> None:
                self.name, self.lxcpath = name, lxcpath

            @property
            def init_pid(self) -> int:
                if knows == "none":
                    raise ContainerNotRunning(name=self.name, lxcpath=self.lxcpath, state="STOPPED")
                return (beside if knows == "that one" else ours)[1]

        monkeypatch.setattr(lxc, "Container", Known)
        monkeypatch.setattr(lxc, "container_processes", lambda _: [ours[1], beside[1]])
        (cgroup / "cgroup.procs").write_text(f"{ours[1]}\n")
        migration = frozen(journal, cgroup, ours[1])
        with pytest.raises(StartFailed) as raised:
            thaw_again.thaw_source(migration)
        stop, kill = f"lxc-stop -P {migration.lxcpath} -n web", f"kill -9 {beside[1]}"
        assert (stop in str(raised.value), kill in str(raised.value)) == (knows == "that one", knows != "that one")


def test_what_cannot_be_told_keeps_nothing_frozen(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                                  started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def root_of(*_: object) -> roots.Root:
        raise OSError(23, "Too many open files in system")

    monkeypatch.setattr(roots, "of", root_of)
    assert thaw_again.thaw_source(frozen(journal, cgroup, init.pid))
    assert (cgroup / "cgroup.freeze").read_text() == "0"
