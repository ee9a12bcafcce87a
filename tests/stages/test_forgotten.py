# SPDX-License-Identifier: GPL-2.0-or-later
"""`cleanup NAME --forget`: what may be somebody's only copy does not go with the record of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator import cli
from migrator.base import removal
from migrator.base.result import Result
from migrator.config import container_config, fences
from migrator.host import btrfs
from migrator.record import container_lock
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from stages import cleanup
from stages.steps import arguments
from stages.steps.cleaner import Cleaner
from tests.stages.earlier_stays import ARRIVED, CONFIG, ID, LATER, LEFT, begun, journal, state  # noqa: F401 -- fixtures

# ruff: noqa: F811 -- fixtures

OTHER = "00000003"


@pytest.fixture
def pool(journal: Journal, tmp_path: Path, state: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cleanup, "DEFAULT_PATH", journal.path)
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "lock")
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    monkeypatch.setattr(btrfs, "free_bytes", lambda _: 1)
    for asked in ("wait_deleted", "exclusive_bytes"):
        monkeypatch.setattr(btrfs, asked, lambda _: 0)
    monkeypatch.setattr(removal, "mounts_in", lambda _: [])
    monkeypatch.setattr(fences, "refuses", lambda *_: True)
    (made := tmp_path / "pool").mkdir()
    return made


def typed(pool: Path, *words: str) -> dict[str, Any]:
    return cleaned(pool, *words).data


def cleaned(pool: Path, *words: str) -> Result:
    done = cli.parse(["cleanup", "web", "-P", str(pool), *words]).run()
    assert done
    return done


def fenced(pool: Path) -> Path:
    """The copy that the last move has left."""
    here = Layout(pool, "web", LATER)
    here.rootfs.mkdir(parents=True)
    container_config.fence(here.container, CONFIG, LATER,
                           f"web was migrated to hostb. {container_config.SUPERSEDED} migrator cleanup web")
    return here.container


@pytest.mark.parametrize("in_use", [True, False])
def test_what_may_be_an_only_copy_stays_and_is_told(journal: Journal, pool: Path, in_use: bool) -> None:
    """In use is the copy that a move has left where its destination is lost: `status` names --forget for that move."""
    begun(journal, pool, Role.DESTINATION, *ARRIVED, Event.FINISHED)
    begun(journal, pool, Role.SOURCE, Event.ROLL_BACK, id=OTHER).move(Event.ROLLED_BACK, last_copy=[f"{OTHER}.1"])
    begun(journal, pool, Role.SOURCE, *LEFT, id=LATER)
    copy, aside = fenced(pool), Layout(pool, "web", ID).aside()
    kept = [Layout(pool, "web", OTHER).snapshot(1), aside, copy]
    for path in kept:
        path.mkdir(parents=True, exist_ok=True)
    spool = Layout(pool, "web", ID).spool
    spool.mkdir()
    if in_use:
        container_config.unfence(copy, LATER)
    wanted = [str(path) for path in kept if path != copy or not in_use]
    dry = typed(pool, "--forget", "--dry-run")
    assert (dry["kept"], dry["removed"], len(journal.all())) == (wanted, [str(spool)], 3)
    done = cleaned(pool, "--forget")
    assert (done.data["kept"], done.data["removed"]) == (wanted, [str(spool)])
    assert [line for line in done.text.splitlines() if line.startswith("Kept")] == [
        f"Kept until migrator cleanup web -P {pool}: {path}" for path in wanted]
    assert all(path.is_dir() for path in kept)
    assert [each.id for each in journal.all()] == [OTHER], "which tells of the last copy"
    assert set(typed(pool)["removed"]) >= set(wanted)
    assert [path for path in kept if path.exists()] == ([copy] if in_use else [])
    typed(pool, "--forget")
    assert journal.all() == []


def test_what_is_forgotten_can_be_removed(journal: Journal, pool: Path) -> None:
    """Be it that the fenced copy is all there is of it."""
    begun(journal, pool, Role.SOURCE, *LEFT, id=LATER)
    copy = fenced(pool)
    assert typed(pool, "--forget")["kept"] == [str(copy)] and journal.all() == []
    assert str(copy) in typed(pool)["removed"] and not copy.exists()


def test_a_fence_that_does_not_tell_keeps_its_record(journal: Journal, pool: Path) -> None:
    """As create-dump's own, where the copy was called otherwise while `finish` ran: else nothing could remove it."""
    begun(journal, pool, Role.SOURCE, *LEFT, id=LATER)
    copy = fenced(pool)
    container_config.unfence(copy, LATER)
    container_config.fence(copy, CONFIG, LATER, "web may not be started here: it is on its way to hostb")
    assert typed(pool, "--forget")["kept"] == [str(copy)] and [each.id for each in journal.all()] == [LATER]
    assert str(copy) in typed(pool)["removed"] and not copy.exists()
    typed(pool, "--forget")
    assert journal.all() == []


def test_no_name_makes_lines_of_its_own(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subvolume may have been made, and called as he liked, by any user of a container."""
    evil = "/pool/web/rootfs/x\nNext: type this"

    def clean(cleaner: Cleaner, *_: object, **__: object) -> None:
        for found in (cleaner.removed, cleaner.kept, cleaner.left):
            found.append(evil)

    monkeypatch.setattr(cleanup, "clean_container", clean)
    done = cleaned(pool)
    assert [line.partition("/pool/")[0] for line in done.text.splitlines()][:3] == [
        "Removed ", f"Kept until migrator cleanup web -P {pool}: ",
        "Left alone, as it is not migrator's or is in use: ",
    ]
    assert len(done.text.splitlines()) == 4 and done.data["left"] == [evil]


def test_it_does_not_go_with_what_removes_the_snapshots(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        typed(pool, "--forget", "--keep-copy")
    assert "--keep-copy cannot be combined with --forget" in capsys.readouterr().err
