# SPDX-License-Identifier: GPL-2.0-or-later
"""What was brought to a stand is ended, and no other start of a container that is called so."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.base import process_id
from migrator.copies import ending, origins, remains
from migrator.errors.memory import CopyNotEnded
from migrator.host import lxc, network
from migrator.record.journal import Journal
from migrator.record.states import Event
from stages.steps import end_copy
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import Monitorless, cgroup, configured, frozen, init  # noqa: F401 -- fixtures

Known = Callable[[str, int], None]
KILLS = ["lxc-stop", "-k", "-n", "web", "-P"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs of LXC that are run."""
    programs: list[list[str]] = []
    for module in (ending, lxc):
        monkeypatch.setattr(module, "run", lambda argv, **_: programs.append([str(word) for word in argv]))
    monkeypatch.setattr(lxc, "STOP_LIMIT", 0.05)
    monkeypatch.setattr(origins, "is_source", lambda _: False)
    monkeypatch.setattr(network, "remove", lambda _: None)
    monkeypatch.setattr(network, "hear", lambda _: None)
    return programs


@pytest.fixture
def known(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Known:
    """Have LXC know a container, that runs, with this first process; 0 where that has ended."""
    configured(journal)
    monkeypatch.setattr(lxc, "Container", Monitorless)

    def know(state: str, pid: int) -> None:
        monkeypatch.setattr(Monitorless, "state", state)
        if pid:
            monkeypatch.setattr(Monitorless, "init_pid", pid)

    return know


def ends(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write into cgroup.kill has the cgroup empty."""
    honest = Path.write_text

    def write(self: Path, text: str) -> int:
        if self.name == "cgroup.kill":
            honest(cgroup / "cgroup.events", "populated 0\nfrozen 0\n")
        return honest(self, text)

    monkeypatch.setattr(Path, "write_text", write)


@pytest.mark.parametrize("beside", [False, True])
def test_finish_leaves_a_strangers_container_alone(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                                   ran: list[list[str]], known: Known, beside: bool,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """It was made and started after the monitor of the frozen copy had died; in a cgroup of its own, or the same."""
    migration = frozen(journal, cgroup, init.pid, Event.OFFER, Event.TAKEN, Event.FINISH)
    known("RUNNING", 1)
    if beside:
        ends(cgroup, monkeypatch)
    else:  # the copy has ended
        (cgroup / "cgroup.procs").write_text("1\n")
    end_copy.stop_and_fence(migration)
    assert ran == [] and (cgroup / "cgroup.kill").exists() is beside


def test_one_that_was_started_since_with_the_same_id_is_another(journal: Journal, cgroup: Path, ran: list[list[str]],
                                                                init: subprocess.Popen[bytes], known: Known) -> None:
    began = process_id.start_time(init.pid)
    migration = frozen(journal, cgroup, init.pid, memory=False, init=[init.pid, began - 1])
    known("RUNNING", init.pid)
    assert not ending.stop(migration, lxc.Container("web", journal.path.parent), 600)
    assert ran == [] and not (cgroup / "cgroup.kill").exists()


def test_lxc_ends_what_it_still_knows(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                      ran: list[list[str]], known: Known) -> None:
    migration = frozen(journal, cgroup, init.pid, Event.OFFER, Event.TAKEN, Event.FINISH)
    known("FROZEN", init.pid)
    with pytest.raises(CopyNotEnded):  # these files end nothing
        end_copy.stop_and_fence(migration)
    assert [each[:5] for each in ran] == [KILLS]


@pytest.mark.parametrize(("disk", "ends_it"), [("its own", True), ("another's", False), ("", False), (None, False)])
def test_what_an_older_version_has_recorded_by_its_id_alone(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], ran: list[list[str]],
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], disk: str | None, ends_it: bool) -> None:
    """After a reboot another container may have that cgroup, and its first process that id: then its disk must tell."""
    monkeypatch.setattr(origins, "source_uuids", lambda _: {"its own"})
    monkeypatch.setattr(remains, "_disk_of", lambda pid: disk if pid == init.pid else pytest.fail("another process"))
    migration = frozen(journal, cgroup, init.pid, Event.OFFER, Event.TAKEN, Event.FINISH, init=None, boot=None)
    ends(cgroup, monkeypatch)
    if ends_it:
        end_copy.stop_and_fence(migration)
    else:
        with pytest.raises(CopyNotEnded, match=str(init.pid)):
            end_copy.stop_and_fence(migration)
        assert f"end it with: echo 1 >{cgroup}/cgroup.kill" in capsys.readouterr().err
    assert (cgroup / "cgroup.kill").exists() is ends_it and ran == []


def test_a_monitor_that_takes_its_time_to_clean_up_is_left_to_it(journal: Journal, cgroup: Path, ran: list[list[str]],
                                                                 init: subprocess.Popen[bytes], known: Known,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hook, say: none of the processes is left that lxc-stop would end."""
    migration = frozen(journal, cgroup, init.pid, Event.OFFER, Event.TAKEN, Event.FINISH)
    known("STOPPING", 0)
    ends(cgroup, monkeypatch)
    end_copy.stop_and_fence(migration)
    assert ran == []


def test_a_stranger_is_not_told_to_end(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                       ran: list[list[str]], known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be stopped lives on without its monitor: nobody can ask it, so it is killed when its time is up."""
    migration = frozen(journal, cgroup, init.pid, memory=False, stopping=True)
    known("RUNNING", 1)
    ends(cgroup, monkeypatch)
    assert ending.stop(migration, lxc.Container("web", journal.path.parent), 0.05)
    assert ran == [] and (cgroup / "cgroup.kill").exists()


def test_it_is_told_to_end_itself(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                  ran: list[list[str]], known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    migration = frozen(journal, cgroup, init.pid, memory=False, stopping=True)
    known("RUNNING", init.pid)
    monkeypatch.setattr(ending, "kill", lambda _: None)
    assert ending.stop(migration, lxc.Container("web", journal.path.parent), 0.05)
    assert ran == [ending.stop_command(lxc.Container("web", journal.path.parent))]
