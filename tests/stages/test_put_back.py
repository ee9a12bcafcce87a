# SPDX-License-Identifier: GPL-2.0-or-later
"""A fence that was put back keeps nothing from an lxc-autostart that has begun before: no word is given until it ends.
"""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import cast

import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.copies import bases, standing
from migrator.errors.containers import OutOfOrder
from migrator.record import container_lock
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, State
from migrator.remote.answering import Service
from migrator.transfer.messages import AskSourceState
from migrator.transfer.rpc import Connection
from stages.steps import ask_source, end_copy
from tests.stages.booting import AGAIN, Boot, boot  # noqa: F401 -- a fixture
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, init  # noqa: F401 -- fixtures
from tests.stages.standing import OTHER_BOOT, Known, There, config, handed_over, known, offers_again  # noqa: F401 -- a fixture


def rebooted(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], *, fence: bool) -> Migration:
    return handed_over(journal, cgroup, init.pid, fence=fence, boot=OTHER_BOOT)


def test_no_word_before_it_has_ended(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], boot: Boot,
                                     monkeypatch: pytest.MonkeyPatch, known: type[Known], tmp_path: Path) -> None:
    """However often the destination asks: that the fence stands by then tells nothing."""
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "lock")
    migration = rebooted(journal, cgroup, init, fence=False)
    migration.move(Event.TAKEN)
    before, boot.under_way = migration.handover.leave, True
    with contextlib.ExitStack() as stack:
        service = Service(journal, stack)
        for _ in range(2):
            with pytest.raises(OutOfOrder, match="lxc-autostart") as raised:
                ask_source.source_state(service, AskSourceState(id=migration.id, within=90.0))
            assert raised.value.hint.startswith("Next: once that has ended: migrator restore-dump web")
        migration.refresh()
        assert migration.handover.leave == before and boot.fences == [migration.id] * 2
        boot.under_way = False
        assert ask_source.source_state(service, AskSourceState(id=migration.id, within=90.0)).leave == 90.0


def test_what_it_has_started_by_then_is_told(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], boot: Boot,
                                             known: type[Known]) -> None:
    migration = rebooted(journal, cgroup, init, fence=False)
    boot.under_way, known.pid = True, init.pid
    with pytest.raises(OutOfOrder, match="runs on") as raised:
        standing.require(migration, "restore-dump")
    assert raised.value.hint == "Next: migrator rollback web"


def test_nor_is_it_offered_once_more(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], boot: Boot,
                                     known: type[Known]) -> None:
    migration, there = rebooted(journal, cgroup, init, fence=False), There()
    boot.under_way = True
    with pytest.raises(OutOfOrder, match="lxc-autostart") as raised:
        offers_again(migration, there)
    assert raised.value.hint == AGAIN and there.asked == ["state"] and str(migration.state) == "offered"
    boot.under_way = False
    offers_again(migration, there)
    assert there.asked == ["state", "state", "own"] and migration.state is State.DUMPED


@pytest.mark.parametrize("one_shot", [True, False])
def test_what_it_passes_over_as_it_is_frozen_is_not_ended(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], boot: Boot, known: type[Known],
        monkeypatch: pytest.MonkeyPatch, one_shot: bool) -> None:
    """It runs on its destination, and would be started here as soon as it has ended."""
    ended: list[str] = []
    monkeypatch.setattr(end_copy, "stop_and_fence", lambda each: ended.append(each.name))
    monkeypatch.setattr(bases, "prune", lambda _: None)
    migration, there = handed_over(journal, cgroup, init.pid, fence=False, one_shot=one_shot), There(State.RESTORED)
    known.pid, boot.under_way = init.pid, True
    migration.move(Event.TAKEN)
    for _ in range(2):
        with pytest.raises(OutOfOrder, match="lxc-autostart") as raised:
            end_copy.carry_out(migration, cast("Connection", there))
    assert raised.value.hint == f"Next: once that has ended: migrator {'resume' if one_shot else 'finish'} web"
    assert ended == [] and str(migration.state) == "dumped" and "finish" not in there.asked
    boot.under_way = False
    end_copy.carry_out(migration, cast("Connection", there))
    assert ended == ["web"] and migration.state is State.FINISHED


@pytest.mark.parametrize("put_back", ["never", "in an earlier boot"])
def test_past_a_fence_that_has_stood_all_the_time_it_starts_nothing(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], boot: Boot, known: type[Known],
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, put_back: str) -> None:
    """As at each boot: its destination is not kept from its word by that."""
    migration = rebooted(journal, cgroup, init, fence=put_back == "never")
    if put_back != "never":
        standing.restore_fence(migration)
        monkeypatch.setattr(boot_clock, "BOOT_ID", tmp_path / "boot")
        boot_clock.BOOT_ID.write_text("11111111-0000-4000-8000-000000000000\n")
    boot.under_way = True
    standing.require(migration, "restore-dump")
    assert boot.fences == []


def test_who_is_refused_reads_why(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                  known: type[Known]) -> None:
    """The command that the fence names can be pasted as it is."""
    migration = rebooted(journal, cgroup, init, fence=False)
    standing.restore_fence(migration)
    done = subprocess.run([config(migration).parent / container_config.FENCE_HOOK], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1 and "migrator status web\nThe fence was put back in boot " in done.stdout
