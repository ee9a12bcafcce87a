# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host knows after a crash, and when a rollback can be forced."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import pytest

from migrator.copies import after_crash
from migrator.errors import MigratorError
from migrator.errors.connection import HostUnreachable
from migrator.errors.outcomes import SourceStateUnknown
from migrator.errors.ownership import ForceRefused
from migrator.errors.this_host import Busy
from migrator.record import migration_paths
from migrator.record.detail import Figures
from migrator.record.journal import Journal
from migrator.record.states import Event, Owner, Role, State
from stages import resume
from stages.steps import force, give_back, offer
from tests.stages.journals import dumping, journal, offered, owned  # noqa: F401 -- a fixture


def test_images_are_there_when_all_of_them_are(journal: Journal) -> None:
    migration = owned(journal, image_files=["core-1.img", "pages-1.img"])
    assert not after_crash.images_are_here(migration)
    assert "images are gone" in after_crash.note(migration)
    assert after_crash.next_command(migration) == "migrator resume web"
    folder = migration_paths.Layout.of(migration).image_folders()[1]
    folder.mkdir(parents=True)
    (folder / "core-1.img").touch()
    assert not after_crash.images_are_here(migration)
    (folder / "pages-1.img").touch()
    assert after_crash.images_are_here(migration)
    assert after_crash.note(migration) == ""
    assert after_crash.next_command(migration) == "migrator restore-dump web"
    (migration.lxcpath / "web" / "config").write_text("lxc.uts.name = another\n")
    assert "another container" in after_crash.note(migration)
    assert after_crash.next_command(migration) == "migrator resume web"


def test_without_memory_there_is_none_to_lose(journal: Journal) -> None:
    assert after_crash.images_are_here(owned(journal, memory=False))


def test_what_a_source_knows(journal: Journal) -> None:
    migration = offered(journal)
    assert "gone, as after a reboot" in after_crash.note(migration)
    assert "only that host knows" in after_crash.note(migration)
    migration.move(Event.TAKEN)
    assert "hostb has the token" in after_crash.note(migration)


@pytest.mark.parametrize("given", ["", "0badc0d", "0BADC0DE", "web"])
def test_force_needs_the_very_id(journal: Journal, given: str) -> None:
    migration = offered(journal)
    with pytest.raises(ForceRefused, match="two copies") as refused:
        force.roll_back(migration, given, lambda: pytest.fail("nobody is to be asked"))
    assert refused.value.hint.endswith("migrator rollback web --force 0badc0de")
    assert migration.state is State.OFFERED


def test_a_destination_that_answers_is_not_lost(journal: Journal) -> None:
    """Not even where it answers with an error: what it then does nobody here knows."""
    migration = offered(journal)

    def tell() -> str:
        error = Busy(name="web", pid=12)
        error.host = "hostb"
        raise error

    with pytest.raises(SourceStateUnknown, match="Another migrator"):
        force.roll_back(migration, "0badc0de", tell)
    assert migration.state is State.OFFERED and migration.owner is Owner.UNKNOWN


def test_a_forced_rollback_is_remembered_until_the_destination_knows(journal: Journal) -> None:
    migration = offered(journal)
    migration.move(Event.ROLL_BACK, forced=True, abandoned=False)
    migration.move(Event.ROLLED_BACK)
    assert migration.owes and "by force" in after_crash.note(migration)
    for number in range(25):  # however often it moves meanwhile
        later = journal.create(id=f"{number:08x}", role=Role.SOURCE, name="web", lxcpath=migration.lxcpath,
                               peer="root@hostc", event=Event.SEND, rounds=[])
        later.move(Event.ROLL_BACK)
        later.move(Event.ROLLED_BACK)
    found = journal.by_id("0badc0de", Role.SOURCE)
    assert found and found.owes

    def unreachable() -> str:
        raise HostUnreachable(destination="hostb", reason="no answer")

    with pytest.raises(HostUnreachable):
        force.tell_late(found, unreachable)
    assert found.owes
    assert force.tell_late(found, lambda: "")
    found = journal.by_id("0badc0de", Role.SOURCE)
    assert found and not found.owes and force.tell_late(found, unreachable) is None


def test_an_offer_that_was_not_made_is_withdrawn(journal: Journal) -> None:
    """Ctrl-C came when it was on disk: whoever holds the migration may not even know that it is."""
    unaware = dumping(journal)
    recorded = journal.by_id(unaware.id, Role.SOURCE)
    assert recorded
    recorded.move(Event.OFFER, figures={"memory": 1})
    assert unaware.state is State.DUMPING
    offer.withdraw(unaware)
    assert unaware.state is State.DUMPING and unaware.handover.figures == Figures(memory=1)
    again = journal.by_id(unaware.id, Role.SOURCE)
    assert again and again.state is State.DUMPING and again.owner is Owner.SOURCE


def test_a_rollback_before_the_offer_is_told_late_too(journal: Journal) -> None:
    migration = dumping(journal)
    migration.move(Event.ROLL_BACK, forced=False, abandoned=False)
    migration.move(Event.ROLLED_BACK)
    assert migration.owes and "migrator rollback web" in after_crash.note(migration)
    assert force.tell_late(migration, lambda: "")
    found = journal.by_id(migration.id, Role.SOURCE)
    assert found and not found.owes and after_crash.note(found) == ""


def test_a_rollback_that_is_recorded_asks_nobody_again(journal: Journal) -> None:
    """It broke off between the record and the thaw: the destination's word is on disk, or was forced."""
    for detail in ({"abandoned": True}, {"forced": True}):
        migration = offered(journal)
        migration.move(Event.ROLL_BACK, held=True, **detail)
        with pytest.raises((MigratorError, OSError)):  # there is no container here to be thawed
            give_back.roll_back(migration, lambda: pytest.fail("it is asked again"))
        assert migration.state is State.ROLLING_BACK and migration.owner is Owner.SOURCE
        migration.move(Event.ROLLED_BACK)
        journal.forget(migration)


@pytest.mark.parametrize(("statuses", "gravest"), [
    ([], 0), ([0, 0], 0), ([0, 42, 22], 42), ([3, 42], 3), ([5, 3, 66], 5), ([1, 0], 1),
])
def test_the_gravest_status(statuses: list[int], gravest: int) -> None:
    assert resume.worst(statuses) == gravest
