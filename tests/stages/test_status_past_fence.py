# SPDX-License-Identifier: GPL-2.0-or-later
"""`migrator status` on the source of what was to stand still, and runs: it does not say frozen, or stopped."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from migrator.copies import after_crash, origins
from migrator.errors.data import SnapshotFailed
from migrator.record.journal import Journal
from migrator.record.states import Event
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, frozen, init  # noqa: F401 -- fixtures
from tests.stages.standing import OTHER_BOOT, Known, handed_over, known  # noqa: F401 -- a fixture


@pytest.mark.parametrize("taken", [False, True])
def test_it_stands(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
                   taken: bool) -> None:
    migration = handed_over(journal, cgroup, init.pid)
    known.pid = init.pid
    if taken:
        migration.move(Event.TAKEN)
    assert after_crash.note(migration).startswith("It is frozen here, with all its memory. ")
    assert after_crash.next_command(migration) == (
        "migrator restore-dump web -P /pool   (on hostb)" if taken else "migrator create-dump web -d root@hostb")


@pytest.mark.parametrize("taken", [False, True])
def test_somebody_has_thawed_it(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
                                taken: bool) -> None:
    migration = handed_over(journal, cgroup, init.pid)
    known.pid = init.pid
    (cgroup / "cgroup.freeze").write_text("0\n")
    if taken:
        migration.move(Event.TAKEN)
    told = after_crash.note(migration)
    assert told.startswith("It runs here: someone has thawed it. ") and "frozen" not in told
    assert ("hostb has the token" if taken else "offered to hostb") in told
    assert after_crash.next_command(migration) == "migrator rollback web"


@pytest.mark.parametrize("memory", [True, False])
def test_somebody_has_started_it(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
                                 memory: bool) -> None:
    migration = handed_over(journal, cgroup, init.pid, boot=OTHER_BOOT, memory=memory)
    known.pid = init.pid
    told = after_crash.note(migration)
    assert told.startswith("It runs here: someone has started it past its fence. ") and "stopped here" not in told
    assert after_crash.next_command(migration) == "migrator rollback web"
    known.pid = 0
    gone = "The memory that was frozen here is gone" if memory else "It is stopped here, with all of its disk."
    assert after_crash.note(migration).startswith(gone)
    assert after_crash.next_command(migration) == "migrator create-dump web -d root@hostb"


def test_beside_what_is_frozen_another_one_runs(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                                known: type[Known]) -> None:
    migration = handed_over(journal, cgroup, init.pid)
    with subprocess.Popen(["sleep", "1000"]) as second:
        known.pid = second.pid
        told = after_crash.note(migration)
        second.kill()
    assert told.startswith("It is frozen here, with all its memory, and was also started a second time, past its ")
    assert f"lxc-stop -P {migration.lxcpath} -n web: two must not run on one disk. The token was offered" in told


def test_where_that_cannot_be_told(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on record is told all the same."""
    def broken(_: object) -> bool:
        raise SnapshotFailed(path="/pool", action="looked at", reason="no answer")

    monkeypatch.setattr(origins, "is_source", broken)
    assert "offered to hostb" in after_crash.note(handed_over(journal, cgroup, init.pid))


def test_what_a_reboot_has_taken_and_somebody_has_started(journal: Journal, cgroup: Path,
                                                          init: subprocess.Popen[bytes], known: type[Known]) -> None:
    """Before the offer: it is not said that it can be started."""
    migration = frozen(journal, cgroup, init.pid, boot=OTHER_BOOT)
    assert "can be started from its disk" in after_crash.note(migration)
    known.pid = init.pid
    assert after_crash.note(migration) == ("The memory that was frozen here is gone, as after a reboot. This host has"
                                           " the token: it runs here.")
