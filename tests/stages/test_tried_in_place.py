# SPDX-License-Identifier: GPL-2.0-or-later
"""On the destination somebody tries out what has arrived, in the container's own place, where its restore would be."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.errors.containers import RunsUnrecorded
from migrator.host import btrfs, lxc
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from stages.steps import left_running, restore_here, unrecorded
from tests import btrfs_roots
from tests.stages.answering import ID, Destination, pool, there  # noqa: F401 -- fixtures

PIDS = list(range(4711, 4861))


def recorded(there: Destination) -> Migration:
    found = there.journal.by_id(ID, Role.DESTINATION)
    assert found
    return found


@pytest.fixture
def looks(there: Destination, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Each look at what all processes of the host live in."""
    there.ask("begin")
    there.imported()
    done: list[Path] = []

    def look(name: str, rootfs: Path) -> list[int]:
        assert not name, "it may be in anybody's cgroup"
        done.append(rootfs)
        return PIDS[:100]

    monkeypatch.setattr(left_running, "live_in", look)
    return done


@pytest.mark.parametrize("tried", [PIDS, PIDS[:50], []])
def test_one_look_for_all_of_its_processes(there: Destination, looks: list[Path], tried: list[int],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_running, "in_own", lambda _: PIDS)
    monkeypatch.setattr(left_running, "tried_out", lambda *_: tried)
    assert unrecorded._living(recorded(there)) == (PIDS[:100] if tried == PIDS else PIDS)
    assert looks == [there.layout.rootfs] * bool(tried)


@pytest.fixture
def restore(there: Destination, looks: list[Path], monkeypatch: pytest.MonkeyPatch) -> restore_here.Restore:
    """It has the token; what there is in its place was made from one of its rounds, or by a restore that failed."""
    there.take(Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN)
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(name="web"))
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: True)
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(btrfs, "delete", lambda path: path.rmdir())
    there.layout.rootfs.mkdir()
    return restore_here.Restore(recorded(there), 60.0, leave=lambda: math.inf)


@pytest.mark.parametrize("tried", [True, False])
def test_it_is_not_removed_from_under_it(there: Destination, restore: restore_here.Restore, looks: list[Path],
                                         tried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_running, "tried_out", lambda _, pids, rounds: pids if tried else pids[1:])
    with pytest.raises(RunsUnrecorded, match=str(PIDS[0])) as refused:
        restore.run()
    assert "lxc-stop -k" in refused.value.hint and "migrator rollback web" in refused.value.hint
    assert ("--force" in refused.value.hint) is not tried, "it would end the only one with all of it"
    assert there.layout.rootfs.is_dir() and there.state is State.OWNED
    assert looks == [there.layout.rootfs]


@pytest.mark.parametrize("own", [True, False])
def test_what_a_failed_restore_has_left_is_replaced(there: Destination, restore: restore_here.Restore, own: bool,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing lives in it; and in an earlier stay's copy something may, which is `put_rootfs_aside`'s affair."""
    def undo(error: BaseException) -> None:
        raise error

    def receive(*_: object) -> None:
        raise EOFError("it comes to that")

    if own:
        monkeypatch.setattr(left_running, "live_in", lambda *_: [])
    else:
        monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: False)
    monkeypatch.setattr(restore_here, "receive", receive)
    monkeypatch.setattr(restore, "_undo", undo)
    monkeypatch.setattr(restore, "_images", lambda: None)
    with pytest.raises(EOFError):
        restore.run()
    assert there.layout.rootfs.is_dir() is not own and there.state is State.RESTORING
