# SPDX-License-Identifier: GPL-2.0-or-later
"""`migrate --undefine-source` removes what the container that has moved has left, and nothing else of its name."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.config import container_config
from migrator.copies import bases
from migrator.host import lxc, network
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from stages import cleanup
from stages.steps import drive_result
from stages.steps.cleaner import Cleaner
from tests.stages.kept_snapshots import FIRST, ID, ROOT, SECOND, Host, host  # noqa: F401 -- a fixture

RAN = "another web, in an earlier stay"


@pytest.fixture
def went(host: Host, monkeypatch: pytest.MonkeyPatch) -> Migration:
    """It has moved away; of two that had its name before there is something here."""
    monkeypatch.setattr(network, "silenced", list)
    monkeypatch.setattr(lxc, "lives_in", lambda *_: False)
    monkeypatch.setattr(lxc, "Container", lambda name, lxcpath: SimpleNamespace(
        state="STOPPED", rootfs=lxcpath / name / "rootfs"))
    gone = host.journal.create(id=FIRST, role=Role.SOURCE, name="web", lxcpath=host.pool, peer="hostb",
                               event=Event.SEND, rounds=[], kept=[])
    host.snapshot(FIRST, of="a disk that was destroyed")  # a rollback has found it gone, and kept that
    gone.move(Event.ROLL_BACK)
    gone.move(Event.ROLLED_BACK)
    host.given_up(SECOND, ROOT, "yet another disk")
    aside = Layout(host.pool, "web", SECOND).aside()
    aside.mkdir(parents=True)
    (aside / RAN).touch()
    made = host.journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=host.pool, peer="hostd", event=Event.SEND,
                               rounds=[], rootfs_uuid="its disk")
    for number in (1, 2):
        host.snapshot(ID, number, of="its disk")
    for event in (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN, Event.FINISH):
        made.move(event)
    (host.pool / "web").mkdir()
    container_config.fence(host.pool / "web", "lxc.uts.name = web\n", ID, "no")
    bases.prune(made)
    made.move(Event.FINISHED)
    return made


def undefine(migration: Migration) -> list[str]:
    return [str(Path(path).relative_to(migration.lxcpath)) for path in drive_result.undefine(migration)]


def test_what_may_be_anothers_last_copy_stays(host: Host, went: Migration) -> None:
    assert undefine(went) == [f".migrator/web/{ID}.2", "web"]
    assert host.left() == [f"{FIRST}.1", f"{SECOND}.1"] and not (host.pool / "web").exists()
    (aside,) = Layout(host.pool, "web", SECOND).set_aside()
    assert [path.name for path in aside.iterdir()] == [RAN]
    assert host.journal.by_id(SECOND, Role.DESTINATION).copy.kept == [f"{SECOND}.1"]  # type: ignore[union-attr]
    everything = Cleaner(dry_run=True)
    cleanup.clean_container(everything, host.journal, "web", host.pool, keep_copy=False)
    assert {Path(path).name for path in everything.removed} == {f"{FIRST}.1", f"{SECOND}.1", f"{SECOND}.ran.1"}


@pytest.mark.parametrize("fence", ["", SECOND, "deadbeef"])
def test_what_has_not_its_fence_stays(host: Host, went: Migration, fence: str) -> None:
    """Somebody has put that there meanwhile."""
    (host.pool / "web" / "config").unlink()
    if fence:
        container_config.fence(host.pool / "web", "lxc.uts.name = web\n", fence, "no")
    else:
        (host.pool / "web" / "config").write_text("lxc.uts.name = web\n")
    assert undefine(went) == [f".migrator/web/{ID}.2"] and (host.pool / "web" / "config").is_file()


def test_all_of_its_own_go(host: Host, went: Migration) -> None:
    """Also what the same container has left before, where the removal of that had failed."""
    host.given_up("00000003", ROOT, of="its disk")
    assert undefine(went) == [".migrator/web/00000003.1", f".migrator/web/{ID}.2", "web"]
    assert host.journal.by_id("00000003", Role.DESTINATION).copy.kept == []  # type: ignore[union-attr]
