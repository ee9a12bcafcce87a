# SPDX-License-Identifier: GPL-2.0-or-later
"""What stood still on the source, and LXC knows nothing of it any more: its monitor is dead, or its configuration gone.

LXC says STOPPED then, and has no process; the tasks live on in the cgroup that is on record.
"""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from migrator.base import deep_folders
from migrator.config import container_config
from migrator.copies import after_crash, ending, no_memory, origins, remains
from migrator.errors.memory import CopyNotEnded, StartFailed
from migrator.errors.this_host import CommandFailed
from migrator.host import cgroups, lxc, network
from migrator.record.journal import Journal
from migrator.record.states import Event, State
from stages.steps import end_copy, thaw_again
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import Monitorless, cgroup, configured, frozen, init, started  # noqa: F401 -- fixtures


@pytest.mark.parametrize("there", [True, False])
def test_it_is_thawed_and_no_second_one_is_started(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                                   started: list[str], there: bool) -> None:
    """Also where its configuration has been renamed or removed."""
    if there:
        configured(journal)
    migration = frozen(journal, cgroup, init.pid)
    assert remains.first_is_here(migration)
    assert thaw_again.thaw_source(migration)
    assert (cgroup / "cgroup.freeze").read_text() == "0" and started == []
    assert "Do not start a second one" in after_crash.where(migration)
    assert f"echo 1 >{cgroup}/cgroup.kill" in after_crash.where(migration)


def test_nothing_is_started_beside_what_is_left(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                                started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first process has gone, and others live on; when they have ended, it is started."""
    configured(journal)
    heard: list[str] = []
    monkeypatch.setattr(network, "hear", heard.append)
    migration = frozen(journal, cgroup, init.pid, ports=[network.Port("eth0", "v", "")])
    folder = journal.path.parent / "web"
    container_config.fence(folder, "lxc.uts.name = web\n", migration.id, "no")
    (cgroup / "cgroup.procs").write_text("4242\n")
    assert not remains.first_is_here(migration)
    with pytest.raises(StartFailed, match="4242"):
        thaw_again.thaw_source(migration)
    assert started == heard == [], "nor may anybody else start it"
    assert container_config.fence_of((folder / "config").read_text()) == migration.id
    (cgroup / "cgroup.events").write_text("populated 0\nfrozen 1\n")
    assert not thaw_again.thaw_source(migration)
    assert started == ["web"]


@pytest.mark.parametrize(("procs", "detail", "here"), [
    ("INIT", {}, True),
    ("INIT", {"boot": "an earlier one"}, False),  # another start that has the same numbers
    ("INIT", {"boot": "an earlier one", "init": None}, False),
    ("INIT", {"boot": None, "init": None}, True),  # begun by an older version
    ("4242", {"boot": None, "init": None}, False),
    ("4242", {}, True),  # what has come with it
    ("4242", {"cgroup": ""}, False),
    ("4242", {"cgroup": "/nowhere"}, False),
])
def test_what_is_left(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], started: list[str], procs: str,
                      detail: dict[str, object], here: bool) -> None:
    (cgroup / "cgroup.procs").write_text(f"{procs.replace('INIT', str(init.pid))}\n")
    migration = frozen(journal, cgroup, init.pid, **detail)
    assert remains.are_here(migration) is here
    assert remains.first_is_here(migration) is (here and procs == "INIT")


def test_it_is_found_without_a_look_at_all_cgroups_in_there(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its users make as many as they like, and a thaw waits for that look."""
    (cgroup.parent / f"proc/{init.pid}").mkdir(parents=True)
    (cgroup.parent / f"proc/{init.pid}/cgroup").write_text(f"0::/{cgroup.name}\n")
    monkeypatch.setattr(cgroups, "TOP", str(cgroup.parent))
    monkeypatch.setattr(cgroups, "PROC", str(cgroup.parent / "proc"))
    monkeypatch.setattr(deep_folders, "descend", lambda *_: pytest.fail("they are looked at"))
    assert remains.first_is_here(frozen(journal, cgroup, init.pid))


def test_what_somebody_has_started_since_is_not_left(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                                     started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    migration = frozen(journal, cgroup, init.pid)
    monkeypatch.setattr(Monitorless, "init_pid", 1)
    (cgroup / "cgroup.procs").write_text("1\n")
    assert not remains.are_here(migration) and not remains.first_is_here(migration)


@pytest.mark.parametrize("there", [True, False])
def test_finish_ends_what_is_left(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], started: list[str],
                                  monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """And its network is heard again only then."""
    if there:
        configured(journal)
    heard: list[str] = []
    monkeypatch.setattr(network, "hear", heard.append)
    monkeypatch.setattr(network, "ports", lambda _: [])
    monkeypatch.setattr(network, "remove", lambda _: None)
    monkeypatch.setattr(origins, "is_source", lambda _: True)
    port = {"inside": "eth0", "outside": "v", "bridge": "br"}
    migration = frozen(journal, cgroup, init.pid, Event.OFFER, Event.TAKEN, Event.FINISH, ports=[port])
    with pytest.raises(CopyNotEnded, match=str(init.pid)):  # these files end nothing
        end_copy.stop_and_fence(migration)
    assert (cgroup / "cgroup.kill").read_text() == "1" and heard == [] and migration.state is State.FINISHING
    (cgroup / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    (cgroup / "cgroup.procs").write_text("")
    end_copy.stop_and_fence(migration)
    assert heard == ["0badc0de"]


@pytest.mark.parametrize("what", ["it has them", "none any more", "not to be told", "it ends meanwhile"])
def test_only_its_own_veths_are_taken_away(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                           started: list[str], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Its configuration may name the host's end: another container's can have that name since."""
    port = network.Port("eth0", "veth-web", "br")
    asked: list[int] = []
    removed: list[network.Port] = []

    def ports(pid: int) -> list[network.Port]:
        asked.append(pid)
        if what == "not to be told":
            raise CommandFailed(command="nsenter", outcome="exit status 1", output="no")
        if what == "it ends meanwhile":
            (cgroup / "cgroup.procs").write_text("")
        return [port] if what in ("it has them", "it ends meanwhile") else []

    monkeypatch.setattr(network, "ports", ports)
    monkeypatch.setattr(network, "remove", removed.extend)
    migration = frozen(journal, cgroup, init.pid, Event.OFFER, Event.TAKEN, Event.FINISH, ports=[port.to_json()])
    with contextlib.suppress(CopyNotEnded):
        end_copy._end_copy(migration)
    assert asked == [init.pid] and removed == ([port] if what == "it has them" else [])
    assert (cgroup / "cgroup.kill").exists()


def test_a_stop_has_come_to_its_end_when_nothing_lives(journal: Journal, cgroup: Path, started: list[str],
                                                       init: subprocess.Popen[bytes]) -> None:
    configured(journal)
    migration = frozen(journal, cgroup, init.pid, memory=False)
    assert ending.stop(migration, lxc.Container("web", journal.path.parent), 0.05), "it had to be killed"
    assert (cgroup / "cgroup.kill").read_text() == "1"
    (cgroup / "cgroup.events").write_text("populated 0\n")
    assert not ending.stop(migration, lxc.Container("web", journal.path.parent), 0.05)


def test_what_was_told_to_end_and_lives_is_not_started_again(journal: Journal, cgroup: Path, started: list[str],
                                                             init: subprocess.Popen[bytes],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    configured(journal)
    container_config.fence(journal.path.parent / "web", "lxc.uts.name = web\n", "0badc0de", "no")
    monkeypatch.setattr(no_memory, "runs", lambda *_: False)
    migration = frozen(journal, cgroup, init.pid, memory=False, stopping=True, stop_timeout=0.05)
    with pytest.raises(StartFailed, match=str(init.pid)):
        no_memory.start_again(migration)
    assert (cgroup / "cgroup.kill").exists() and started == []
