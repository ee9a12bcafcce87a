# SPDX-License-Identifier: GPL-2.0-or-later
"""The cgroup of what was brought to a stand has another container by now."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.config import container_config
from migrator.copies import no_memory, remains
from migrator.host import btrfs
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event
from stages.steps import end_copy, thaw_again
from tests import btrfs_roots
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, configured, frozen, init, started  # noqa: F401 -- fixtures

OURS, OTHER = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"


def disks(monkeypatch: pytest.MonkeyPatch, found: dict[int, str | None]) -> None:
    """In which subvolume each process has its root: "" where that is on no btrfs, None where it ends at this moment."""

    def is_on_btrfs(pid: int) -> bool:
        if found[pid] is None:
            raise FileNotFoundError
        return bool(found[pid])

    btrfs_roots.are(monkeypatch, is_on_btrfs)
    monkeypatch.setattr(btrfs, "uuid_around", lambda path: found[int(path.parts[2])])


def gone(journal: Journal, cgroup: Path, *events: Event, **detail: object) -> Migration:
    """Its first process has ended."""
    return frozen(journal, cgroup, 1, *events, **{"init": [1, 1], "rootfs_uuid": OURS} | detail)


@pytest.mark.parametrize(("found", "detail", "here"), [
    ({7: OURS}, {}, True),
    ({7: OTHER}, {}, False),
    ({7: ""}, {}, False),
    ({7: None}, {}, True),
    ({}, {}, True),
    ({7: None, 8: OTHER}, {}, False),  # one of the stranger's that is just ending has none of his killed
    ({7: OTHER, 8: OURS}, {}, True),
    ({7: OTHER}, {"rootfs_uuid": ""}, True),
])
def test_whose_the_cgroup_is(journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch,
                             found: dict[int, str | None], detail: dict[str, object], here: bool) -> None:
    disks(monkeypatch, found)
    (cgroup / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in found))
    assert remains.are_here(gone(journal, cgroup, **detail)) is here


def test_a_strangers_container_is_not_killed_and_ours_is_started_again(
        journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """He has started his, of that name in another LXC path, once the name of the cgroup was free."""
    disks(monkeypatch, {7: OTHER})
    (cgroup / "cgroup.procs").write_text("7\n")
    monkeypatch.setattr(no_memory, "runs", lambda *_: False)
    monkeypatch.setattr(no_memory, "stay", lambda *_: None)
    configured(journal)
    migration = gone(journal, cgroup, memory=False, stopping=True, stop_timeout=0.05)
    container_config.fence(journal.path.parent / "web", "lxc.uts.name = web\n", migration.id, "no")
    assert thaw_again.thaw_source(migration)
    assert started == ["web"] and not (cgroup / "cgroup.kill").exists()


def test_finish_has_nothing_to_end_there(journal: Journal, cgroup: Path, started: list[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    disks(monkeypatch, {7: OTHER})
    (cgroup / "cgroup.procs").write_text("7\n")
    end_copy._end_copy(gone(journal, cgroup, Event.OFFER, Event.TAKEN, Event.FINISH))
    assert not (cgroup / "cgroup.kill").exists()


def test_one_that_ends_while_its_disk_is_asked_for_is_told_by_nothing(
        journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Pybtrfs:
        class BtrfsUtilError(Exception): ...

        def subvolume_id(self, path: str) -> int:
            raise self.BtrfsUtilError(path)

        subvolume_info = subvolume_id

    monkeypatch.setattr(btrfs, "_pybtrfs", Pybtrfs)
    btrfs_roots.are(monkeypatch, lambda _: True)
    (cgroup / "cgroup.procs").write_text("7\n")
    assert remains.are_here(gone(journal, cgroup))
