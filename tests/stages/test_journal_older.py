# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs on the destination is not on record there: the journal is an older one, or was lost."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.copies import bases, standing
from migrator.errors.containers import ContainerExists, OutOfOrder, RunsUnrecorded
from migrator.errors.data import NotBtrfs
from migrator.errors.memory import DumpRefused
from migrator.errors.outcomes import SourceStateUnknown
from migrator.errors.ownership import ForceRefused, TwoCopies
from migrator.errors.this_host import JournalBroken
from migrator.host import btrfs, lxc
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from stages.steps import abandon, end_copy, finish_here, force, give_back, left_running, offer, unrecorded
from tests import btrfs_roots
from tests.migrator.wire import by_op
from tests.stages.answering import ID, Destination, pool, there  # noqa: F401 -- fixtures
from tests.stages.lost_hosts import nothing_real  # noqa: F401 -- a fixture
from tests.stages.snapshots import SENT, disk  # noqa: F401 -- a fixture
from tests.stages.two_hosts import Hosts, hosts, lost, source, tell  # noqa: F401 -- fixtures

PID = 4711


@pytest.fixture
def lives(there: Destination, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that live in what was made of this migration's snapshot, which lies on its disk."""
    path = there.layout.snapshot(1)
    path.mkdir(parents=True)
    (path / "uuid").write_text(SENT)
    found = [PID]
    monkeypatch.setattr(lxc, "container_processes", lambda name: [1, *found] if name in ("", "web") else [])
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(Layout, "is_own", lambda here, root: (
        bool(here.own_snapshots()) and root in [Path(f"/proc/{pid}/root") for pid in found]))
    monkeypatch.setattr(btrfs, "id_of", lambda _: 300)
    monkeypatch.setattr(btrfs, "parent_of", lambda *_: "another")
    return found


def known(there: Destination) -> Migration:
    found = there.journal.by_id(ID, Role.DESTINATION)
    assert found
    return found


def imported(there: Destination) -> Migration:
    there.ask("begin")
    there.imported()
    known(there).note("rounds", rounds=[{"uuid": SENT}])
    return known(there)


def test_what_is_tried_out_in_its_very_place_is_not_removed(there: Destination, lives: list[int],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    imported(there)
    monkeypatch.setattr(btrfs, "parent_of", lambda *_: btrfs.info(there.layout.snapshot(1)).uuid)
    monkeypatch.setattr(left_running, "live_in", lambda _, rootfs: lives if rootfs == there.layout.rootfs else [])
    with pytest.raises(RunsUnrecorded, match=str(PID)):
        there.ask("abandon")


@pytest.mark.parametrize("recorded", [True, False])
def test_a_container_made_from_a_round_to_try_it_keeps_nobody_from_giving_back(
        there: Destination, lives: list[int], monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    """The source would stay frozen for it. A round that the journal lacks may be the one of the dump."""
    migration = imported(there)
    monkeypatch.setattr(btrfs, "parent_of", lambda *_: btrfs.info(there.layout.snapshot(1)).uuid)
    if recorded:
        there.ask("abandon")
        assert known(there).state is State.ABANDONED
    else:
        migration.note("rounds", rounds=[{"uuid": "of another"}])
        with pytest.raises(RunsUnrecorded, match=str(PID)):
            there.ask("abandon")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), NotBtrfs(path="root")])
def test_what_does_not_tell_of_which_round_it_was_made_runs(
        there: Destination, lives: list[int], monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """It may be the container itself, made from the increment of the dump: the source would run a second copy."""
    def parent_of(*_: object) -> str:
        raise error

    imported(there)
    monkeypatch.setattr(btrfs, "parent_of", parent_of)
    with pytest.raises(RunsUnrecorded, match=str(PID)):
        there.ask("abandon")


@pytest.mark.parametrize("typed", [True, False])
def test_what_runs_does_so_by_an_older_journal_too(there: Destination, lives: list[int], typed: bool) -> None:
    """It was put back from a backup: by that it has only been imported."""
    migration = imported(there)
    with pytest.raises(RunsUnrecorded, match=str(PID)) as error:
        if typed:
            abandon.give_up_here(migration)
        else:
            there.ask("abandon")
    assert "migrator rollback web" in error.value.hint
    assert known(there).state is State.IMPORTED and there.layout.snapshot(1).is_dir()
    lives.clear()
    there.ask("abandon")
    assert known(there).state is State.ABANDONED


def test_what_was_put_aside_is_another_container(there: Destination, lives: list[int],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    imported(there)
    aside = there.layout.aside()
    aside.mkdir()
    monkeypatch.setattr(left_running, "_is_in", lambda folders, pid: pid == PID and folders == [aside])
    there.ask("abandon")
    assert known(there).state is State.ABANDONED


def test_what_was_begun_to_be_given_up_is(there: Destination, lives: list[int]) -> None:
    """The token is back already."""
    imported(there).move(Event.ABANDON, given_up_here=False, on_disk=True, kept=[])
    assert there.ask("abandon")["known"] is True


def test_a_disk_that_is_away_keeps_nobody(there: Destination, lives: list[int]) -> None:
    imported(there)
    there.pool.rename(there.pool.with_name("away"))
    there.pool.mkdir()
    there.ask("abandon")
    assert known(there).state is State.ABANDONING


def test_what_runs_is_not_unknown(there: Destination, lives: list[int]) -> None:
    """The journal was lost. By "unknown" a forced rollback of the source would go on."""
    for _ in range(2):
        with pytest.raises(RunsUnrecorded, match=str(PID)):
            there.ask("abandon")
    lives.clear()
    assert there.ask("abandon")["known"] is False


def test_what_runs_of_another_migration_is_nobodys_business(there: Destination, lives: list[int]) -> None:
    assert there.ask("abandon", id="feedface")["known"] is False
    assert there.journal.by_id("feedface", Role.DESTINATION)


@pytest.mark.parametrize("attempt", [1, 2])
def test_the_offer_of_what_runs_is_not_refused(there: Destination, lives: list[int], attempt: int) -> None:
    """Made once more, as its answer was lost. By a refusal the source would thaw; and what tells whose that is goes."""
    imported(there).move(Event.RECEIVE_DUMP, attempt=1)
    increment = there.layout.snapshot(2)
    increment.mkdir()
    (increment / "uuid").write_text("of the dump")
    for _ in range(2):
        with pytest.raises(RunsUnrecorded, match=str(PID)):
            there.ask("own", attempt=attempt)
    assert known(there).state is State.RECEIVING_DUMP and offer.attempt(known(there)) == 1 and increment.is_dir()
    lives.clear()
    with pytest.raises(DumpRefused):
        there.ask("own", attempt=attempt)
    assert known(there).state is State.IMPORTED and offer.attempt(known(there)) == attempt and not increment.exists()


def test_the_offer_of_what_runs_is_not_refused_by_who_has_lost_its_journal(there: Destination,
                                                                          lives: list[int]) -> None:
    with pytest.raises(RunsUnrecorded):
        there.ask("abandon")
    with pytest.raises(RunsUnrecorded, match=str(PID)):
        there.ask("own")


def test_nobody_is_told_to_remove_what_runs(there: Destination, lives: list[int]) -> None:
    """As who restores it once more, by an older journal, would be: no fence tells any more that it is the same."""
    migration = imported(there)
    unrecorded.require_ours(migration, there.layout)
    (there.layout.container / "config").write_text("lxc.uts.name = web\n")
    with pytest.raises(RunsUnrecorded):
        unrecorded.require_ours(migration, there.layout)
    lives.clear()
    with pytest.raises(ContainerExists):
        unrecorded.require_ours(migration, there.layout)


@pytest.fixture
def runs_there(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that live on hostb in what was brought there. On the source there is nothing to be ended."""
    found = [PID]
    monkeypatch.setattr(left_running, "in_own", lambda _: found)
    monkeypatch.setattr(finish_here, "_make_ours", lambda *_: None)
    monkeypatch.setattr(end_copy, "stop_and_fence", lambda _: None)
    monkeypatch.setattr(bases, "prune", lambda *_, **__: [])
    return found


def typed(source: Migration, hosts: Hosts, given: str | None = None) -> None:
    """`migrator finish`, on the source."""
    end_copy.carry_out(source, hosts["hostb"], force=given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("older", "taken"), [
    (State.RECEIVING, True), (State.IMPORTED, False), (State.RECEIVING_DUMP, True), (State.OWNED, False)])
def test_what_runs_is_kept_with_the_id(source: Migration, hosts: Hosts, runs_there: list[int], older: State,
                                       taken: bool) -> None:
    """By the journal there nothing but the source's copy could be kept, and that is the older one."""
    there = hosts["hostb"].destination
    for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN):
        if there.state is not older:
            there.take(event)
    if taken:
        source.move(Event.TAKEN)
    with pytest.raises(RunsUnrecorded) as refused:
        give_back.roll_back(source, lambda: tell(source, hosts["hostb"]))
    assert f"migrator finish web -P /pool --force {ID}" in refused.value.hint and "lxc-copy -R" in refused.value.hint
    with pytest.raises(RunsUnrecorded):
        typed(source, hosts)
    for given in ("", "web"):
        with pytest.raises(ForceRefused, match="but the journal there does not say so"):
            typed(source, hosts, given)
    assert source.state in (State.OFFERED, State.DUMPED) and there.state is older
    typed(source, hosts, ID)
    assert (source.state, there.state) == (State.FINISHED, State.FINISHED)


def test_so_where_the_journal_was_lost(source: Migration, hosts: Hosts, runs_there: list[int]) -> None:
    source.move(Event.TAKEN)
    lost(hosts)
    with pytest.raises(RunsUnrecorded):
        give_back.roll_back(source, lambda: tell(source, hosts["hostb"]))
    with pytest.raises(RunsUnrecorded):
        typed(source, hosts)
    typed(source, hosts, ID)
    assert source.state is State.FINISHED and hosts["hostb"].destination.state is State.ABANDONED


@pytest.mark.parametrize("is_lost", [True, False])
def test_what_does_not_run_there_is_not_ended_here(source: Migration, hosts: Hosts, runs_there: list[int],
                                                   is_lost: bool) -> None:
    source.move(Event.TAKEN)
    if is_lost:
        lost(hosts)
    runs_there.clear()
    with pytest.raises(OutOfOrder):
        typed(source, hosts, ID)
    assert source.state is State.DUMPED


@pytest.mark.parametrize("older", [State.RECEIVING, State.RESTORING])
def test_what_has_stopped_once_the_end_had_begun(source: Migration, hosts: Hosts, runs_there: list[int],
                                                 older: State) -> None:
    """That it runs there was said, and the copy here is ended: there is no way back."""
    source.move(Event.TAKEN)
    source.move(Event.FINISH)
    if older is State.RESTORING:
        until_restoring(known(hosts["hostb"].destination))
    runs_there.clear()
    with pytest.raises(OutOfOrder):
        typed(source, hosts)
    typed(source, hosts, ID)
    assert source.state is State.FINISHED and hosts["hostb"].destination.state is older


def until_restoring(there: Migration) -> None:
    for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN,
                  Event.RESTORE):
        there.move(event)


def test_it_is_recorded_at_once_or_not_at_all(source: Migration, hosts: Hosts, runs_there: list[int],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Never that a restore is at work, of which nobody could tell, without images, that it has come up long since."""
    source.move(Event.TAKEN)
    honest = Migration.move

    def full(migration: Migration, event: Event, **detail: object) -> None:
        if event is Event.RESTORED:
            raise JournalBroken(path="journal.db", reason="database or disk is full")
        honest(migration, event, **detail)

    with monkeypatch.context() as patched:
        patched.setattr(Migration, "move", full)
        with pytest.raises(JournalBroken):
            typed(source, hosts, ID)
    assert (source.state, known(hosts["hostb"].destination).state) == (State.FINISHING, State.RECEIVING)
    typed(source, hosts)
    assert (source.state, known(hosts["hostb"].destination).state) == (State.FINISHED, State.FINISHED)


def test_what_an_older_version_has_left_half_recorded(source: Migration, hosts: Hosts, runs_there: list[int]) -> None:
    """By the journal there a restore is at work. This host has ended its copy for what lives there."""
    source.move(Event.TAKEN)
    source.move(Event.FINISH)
    until_restoring(known(hosts["hostb"].destination))
    typed(source, hosts)
    assert (source.state, known(hosts["hostb"].destination).state) == (State.FINISHED, State.FINISHED)


def test_what_may_be_half_restored_is_not_kept_for_it(source: Migration, hosts: Hosts, runs_there: list[int]) -> None:
    source.move(Event.TAKEN)
    until_restoring(known(hosts["hostb"].destination))
    with pytest.raises(OutOfOrder, match="does not run on the destination yet"):
        typed(source, hosts, ID)
    assert (source.state, known(hosts["hostb"].destination).state) == (State.DUMPED, State.RESTORING)


def test_the_answer_to_an_offer_is_that_nothing_is_known(source: Migration, hosts: Hosts,
                                                         runs_there: list[int]) -> None:
    """It stays frozen, and offered."""
    hosts["hostb"].destination.take(Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP)
    there = SimpleNamespace(peer_host="hostb", call_and_go=by_op(lambda op, *, first, then, within, **fields: (
        hosts["hostb"].ask(op, **fields))))
    with pytest.raises(SourceStateUnknown, match="but the journal there does not say so"):
        offer.make(source, there)  # type: ignore[arg-type]
    assert source.state is State.OFFERED


# What leads from an offer to where nobody has the token but the source.
NOT_OFFERED = {
    State.DUMPING: [Event.REFUSED],
    State.PREPARED: [Event.REFUSED, Event.THAW],
    State.PREPARING: [Event.REFUSED, Event.THAW, Event.SEND],
    State.ROLLING_BACK: [Event.ROLL_BACK],
    State.ROLLED_BACK: [Event.ROLL_BACK, Event.ROLLED_BACK],
}


@pytest.mark.parametrize("state", NOT_OFFERED)
@pytest.mark.parametrize("is_lost", [True, False])
def test_what_was_not_handed_over_is_not_ended_for_it(source: Migration, hosts: Hosts, runs_there: list[int],
                                                      monkeypatch: pytest.MonkeyPatch, state: State,
                                                      is_lost: bool) -> None:
    """It runs here. Who lives there has made a container of what has arrived."""
    monkeypatch.setattr(standing, "restore_fence", lambda _: pytest.fail("what runs here gets a fence"))
    for event in NOT_OFFERED[state]:
        source.move(event)
    if is_lost:
        lost(hosts)
    with pytest.raises(OutOfOrder, match=r"nothing has been migrated|has not been handed over"):
        typed(source, hosts, ID)
    assert source.state is state


@pytest.mark.parametrize("state", [State.DUMPING, State.PREPARED, State.PREPARING])
def test_what_was_not_offered_is_given_up_all_the_same(source: Migration, hosts: Hosts, runs_there: list[int],
                                                       nothing_real: list[str], state: State) -> None:
    """As where somebody tries what has arrived: what he has made of it stays, and is no second copy."""
    for event in NOT_OFFERED[state]:
        source.move(event)
    there = hosts["hostb"].destination
    done = give_back.roll_back(source, lambda: tell(source, hosts["hostb"]))
    assert source.state is State.ROLLED_BACK and source.owes and not done.data["destination_told"]
    assert "something other than web itself lives in it: it runs, as process 4711" in done.text
    assert there.state is State.RECEIVING and runs_there == [PID]
    with pytest.raises(OutOfOrder, match="something other than web itself lives in what has arrived") as late:
        force.tell_late(source, lambda: tell(source, hosts["hostb"]))
    assert "migrator resume web" in late.value.hint
    runs_there.clear()
    assert force.tell_late(source, lambda: tell(source, hosts["hostb"]))
    found = source.journal.by_id(ID, Role.SOURCE)
    assert found and not found.owes and known(there).state is State.ABANDONED


def test_what_was_rolled_back_by_force_has_a_second_copy_then(source: Migration, hosts: Hosts, runs_there: list[int],
                                                              nothing_real: list[str]) -> None:
    give_back.roll_back(source, None)
    with pytest.raises(TwoCopies):
        force.tell_late(source, lambda: tell(source, hosts["hostb"]))
