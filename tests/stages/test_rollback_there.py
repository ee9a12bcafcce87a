# SPDX-License-Identifier: GPL-2.0-or-later
"""What the destination is asked for a rollback, whose word counts, and what it does."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.errors import UsageError
from migrator.errors.containers import AlreadyRuns, NotKnownThere
from migrator.host import btrfs, lxc
from migrator.host.btrfs import Subvolume
from migrator.record import callers
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import locked
from migrator.record.next_commands import this_host
from migrator.record.states import Event, Role, State
from stages.steps import abandon
from tests.stages.answering import UUID, Destination, pool, there  # noqa: F401 -- fixtures
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture
from tests.stages.snapshots import SENT, There, disk, earlier, recorded, snapshot, tell  # noqa: F401 -- a fixture


def test_it_says_which_and_what_it_has(journal: Journal) -> None:
    migration = offered(journal)
    migration.note("names", other_name="shop", ticket="t1")
    snapshot(migration, 1, SENT)
    _, _ = earlier(journal, migration, "00000001")
    there = There({"known": True, "ticket": "t1", "kept": SENT})
    assert tell(migration, there) == SENT
    assert there.asked == [("abandon", {
        "id": "0badc0de", "name": "shop", "source_name": "web", "lxcpath": "/pool",
        "source_host": this_host(), "held": [SENT], "gone": False})]


def test_what_it_has_may_not_be_known(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    migration = dumping(journal)

    def broken(_: Path) -> Subvolume:
        raise OSError(5, "Input/output error")

    snapshot(migration, 1, SENT)
    monkeypatch.setattr(btrfs, "info", broken)
    there = There({"known": True, "ticket": ""})
    assert tell(migration, there) == "" and there.asked[0][1]["held"] == []


@pytest.mark.parametrize("answer", [
    {}, {"known": False, "ticket": "t1"}, {"known": True, "ticket": ""}, {"known": True},
    {"known": True, "ticket": "another"},
])
def test_whose_word_is_none(journal: Journal, answer: dict[str, Any]) -> None:
    migration = offered(journal)
    migration.note("ticket", ticket="t1")
    with pytest.raises(NotKnownThere) as refused:
        tell(migration, There(answer))
    assert refused.value.fields == {"destination": "hostb", "id": "0badc0de", "name": "web", "peer": "root@hostb"}


# --- on the destination ---------------------------------------------------------------------------------------


def received(there: Destination, *uuids: str) -> tuple[Migration, list[Path]]:
    """So many rounds have arrived, and are on its disk."""
    there.ask("begin")
    there.imported()
    migration = there.journal.by_id("0badc0de", Role.DESTINATION)
    assert migration
    migration.note("rounds", rounds=[{"uuid": uuid} for uuid in uuids])
    for uuid in uuids:
        migration.note("imported", on_disk_uuid=uuid)
    return migration, [snapshot(migration, number, uuid) for number, uuid in enumerate(uuids, 1)]


@pytest.mark.parametrize(("held", "kept"), [([SENT], SENT), ([], ""), ([UUID, SENT], UUID)])
def test_it_keeps_the_newest_that_both_have(there: Destination, held: list[str], kept: str) -> None:
    migration, (one, two) = received(there, SENT, UUID)
    _, base = earlier(there.journal, migration, "00000001", peer="hosta")
    answer = there.ask("abandon", held=held)
    assert answer == {"state": State.ABANDONED, "kept": kept, "known": True, "ticket": migration.ticket}
    assert answer["ticket"]
    assert [path.is_dir() for path in (one, two)] == [kept == SENT, kept == UUID]
    assert base.is_dir() is (not kept)
    found = recorded(migration)
    assert found.ending.given_up_here is False
    assert found.copy.kept == {SENT: ["0badc0de.1"], UUID: ["0badc0de.2"], "": []}[kept]
    assert not there.layout.container.exists() and not there.layout.spool.exists()
    assert there.ask("abandon", held=held)["kept"] == kept, "safe to repeat"


@pytest.mark.parametrize("typed", [True, False], ids=["typed there", "asked"])
@pytest.mark.parametrize(("number", "on_disk"), [(2, False), (3, False), (3, True)])
def test_what_may_not_be_on_its_disk_is_not_kept(there: Destination, number: int, on_disk: bool, typed: bool) -> None:
    """It was received whole, and a power cut came before its import had synced it, or before anything was made of it.

    Files in it may be empty then, and nothing would notice when the next attempt starts from it.
    """
    uuid = "3" * 8 + SENT[8:]
    migration, [one] = received(there, SENT)
    migration.note("rounds", rounds=[{"uuid": SENT}, {"uuid": uuid}])
    newest = snapshot(migration, number, uuid)
    with migration.step("rootfs") as done:
        done.on_disk_uuid = uuid if on_disk else None
    if typed:
        abandon.give_up_here(migration)
    answer = there.ask("abandon", held=[SENT, uuid])
    assert answer["kept"] == (uuid if on_disk else SENT)
    assert (one.is_dir(), newest.is_dir()) == (not on_disk, on_disk)
    newest.mkdir(exist_ok=True)  # the next power cut takes its removal back
    (newest / "uuid").write_text(uuid)
    assert there.ask("abandon", held=[SENT, uuid])["kept"] == (uuid if on_disk else SENT)
    assert (uuid in there.ask("subvolumes")["subvolumes"]) is on_disk


@pytest.mark.parametrize("upon", [True, False], ids=["received upon it", "another container's"])
def test_what_tells_whose_the_earlier_one_was_goes_last(there: Destination, upon: bool) -> None:
    """A container that has never arrived has another origin with each attempt: its first round tells, which goes."""
    migration, (one, two) = received(there, SENT, UUID)
    first, base = earlier(there.journal, migration, "00000001", peer="hosta")
    first.note("origin", origin="00000001")
    (one / "of").write_text((base / "uuid").read_text() if upon else "")
    (two / "of").write_text(SENT)
    there.ask("abandon", held=[UUID])
    assert two.is_dir() and not one.exists() and base.is_dir() is not upon


def test_it_was_typed_there_first(there: Destination) -> None:
    """What it keeps is what it had imported; the source, which comes later, says what it has itself."""
    migration, (one, two) = received(there, SENT, UUID)
    _, base = earlier(there.journal, migration, "00000001", peer="hosta")
    assert "nothing of it is left except what" in abandon.give_up_here(migration).text
    assert two.is_dir() and not one.exists() and not base.exists()
    found = recorded(migration)
    assert found.state is State.ABANDONED and found.ending.given_up_here is True
    assert there.ask("abandon", held=[SENT])["kept"] == "" and not two.exists()
    assert recorded(migration).ending.given_up_here is True


def test_typed_there_again_nothing_more_goes(there: Destination) -> None:
    migration, (two,) = received(there, SENT)
    abandon.give_up_here(migration)
    abandon.give_up_here(migration)
    assert two.is_dir()


def test_what_would_go_is_shown(there: Destination) -> None:
    migration, (one, two) = received(there, SENT, UUID)
    three = snapshot(migration, 3, "3" * 8 + SENT[8:])  # half received
    shown = abandon.give_up_here(migration, dry_run=True)
    assert [each["argv"][-1] for each in shown.data["dry_run"]] == [str(one), str(three)]
    migration.note("rounds", rounds=[])
    shown = abandon.give_up_here(migration, dry_run=True)
    assert [each["argv"] for each in shown.data["dry_run"]] == [
        ["btrfs", "subvolume", "delete", str(path)] for path in (one, two, three)]
    assert recorded(migration).state is State.IMPORTED


@pytest.mark.parametrize("state", [State.RESTORED, State.FINISHED])
def test_what_runs_here_is_not_given_up(there: Destination, state: State) -> None:
    migration, _ = received(there, SENT)
    there.take(Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE, Event.RESTORED)
    if state is State.FINISHED:
        there.take(Event.FINISHED)
    migration.refresh()
    migration.note("names", other_name="shop")
    with pytest.raises(AlreadyRuns) as refused:
        there.ask("abandon")
    assert refused.value.fields["next"] == "migrator finish shop -P /pool   (on hosta)"
    assert recorded(migration).state is state and there.layout.container.is_dir()


@pytest.mark.parametrize(("fenced", "stopped"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("here", [True, False])
def test_what_has_run_here_and_stands_fenced_is_resumed(there: Destination, monkeypatch: pytest.MonkeyPatch,
                                                        fenced: bool, stopped: bool, here: bool) -> None:
    """By who types it here, and what has no fence too; from the source it would only be asked for again."""
    from stages.steps import settling, stopped_here

    migration, _ = received(there, SENT)
    there.take(Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE, Event.RESTORED)
    migration.refresh()
    monkeypatch.setattr(settling, "stands_fenced", lambda _: fenced)
    monkeypatch.setattr(stopped_here, "is_stopped", lambda _: stopped)
    with pytest.raises(AlreadyRuns) as refused:
        if here:
            abandon.give_up_here(migration)
        else:
            there.ask("abandon")
    assert refused.value.fields["next"] == (
        "migrator resume web" if here and (fenced or stopped) else "migrator finish web -P /pool   (on hosta)")


def test_an_import_that_is_under_way_ends_first(there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    migration, (one,) = received(there, SENT)
    found: list[bool] = []
    monkeypatch.setattr(there.service, "end_behind",
                        lambda: found.append(one.is_dir() and recorded(migration).state is State.IMPORTED))
    there.ask("abandon", held=[])
    assert found == [True] and not one.exists()


def test_what_has_given_way_keeps_what_it_has(there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had run here, and was stopped when the source had been forced to go on without it."""
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="STOPPED", rootfs=there.layout.rootfs))
    migration, (one,) = received(there, SENT)
    there.take(Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE, Event.RESTORED)
    migration.refresh()
    migration.note("given_way", given_way=True)
    assert there.ask("abandon")["state"] == State.RESTORED
    assert one.is_dir() and there.layout.container.is_dir()


@pytest.mark.parametrize("here", [False, True])
def test_a_restore_that_was_killed_is_settled_first(there: Destination, monkeypatch: pytest.MonkeyPatch,
                                                    here: bool) -> None:
    from stages.steps import settling

    migration, _ = received(there, SENT)
    there.take(Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE)
    migration.refresh()
    settled: list[str] = []

    def settle(of: Migration) -> None:
        settled.append(of.id)
        of.move(Event.RESTORE_FAILED)

    monkeypatch.setattr(settling, "settle", settle)
    if here:
        abandon.give_up_here(migration)
    else:
        there.ask("abandon")
    assert settled == [migration.id] and recorded(migration).state is State.ABANDONED


def test_an_attempt_that_nobody_knows_is_remembered(there: Destination) -> None:
    unknown = {"state": State.ABANDONED, "kept": "", "known": False, "ticket": ""}
    assert there.ask("abandon") == unknown
    with locked("web", lxcpath=there.pool):
        pass  # nothing says that the caller has to do with a container of that name
    found = there.journal.by_id("0badc0de", Role.DESTINATION)
    assert found and found.never_began and found.ended
    assert (found.name, found.lxcpath, found.peer) == ("web", there.pool, "hosta")
    assert found.caller == there.service.grant.caller
    assert there.ask("abandon") == unknown and callers.count(there.journal, there.service.grant.caller)[0] == 1
    with pytest.raises(UsageError, match="has ended"):
        there.ask("begin")


def test_one_whose_record_broke_off_is_completed(there: Destination) -> None:
    there.journal.create(id="0badc0de", role=Role.DESTINATION, name="web", lxcpath=there.pool, peer="hosta",
                         event=Event.ABANDON, never_began=True, caller=there.service.grant.caller)
    assert there.ask("abandon")["state"] == State.ABANDONED
    found = there.journal.by_id("0badc0de", Role.DESTINATION)
    assert found and found.state is State.ABANDONED


def test_it_may_begin_at_this_very_moment(there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = there.service.find
    looks: list[object] = []

    def find(fields: Any) -> Migration | None:
        looks.append(fields)
        if len(looks) == 1:
            there.journal.create(id="0badc0de", role=Role.DESTINATION, name="web", lxcpath=there.pool, peer="hosta",
                                 event=Event.RECEIVE, rounds=[], ticket="t", caller=there.service.grant.caller)
            return None
        return honest(fields)

    monkeypatch.setattr(there.service, "find", find)
    assert there.ask("abandon") == {"state": State.ABANDONED, "kept": "", "known": True, "ticket": "t"}


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_the_token_is_given_back_where_the_snapshots_cannot_be_read(
        there: Destination, monkeypatch: pytest.MonkeyPatch, typed: bool, after: int) -> None:
    """Their folder has an I/O error, from the first look at it on or a later one: nothing can be kept then."""
    migration, (one,) = received(there, SENT)
    honest, looks = Path.iterdir, [0]

    def iterdir(path: Path) -> Iterator[Path]:
        if path == there.layout.folder:
            looks[0] += 1
            if looks[0] > after:
                raise OSError(errno.EIO, "Input/output error", str(path))
        return honest(path)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "iterdir", iterdir)
        if typed:
            abandon.give_up_here(migration)
        answer = there.ask("abandon", held=[SENT])
        assert (answer["known"], answer["ticket"], answer["kept"]) == (True, migration.ticket, "")
        assert recorded(migration).state in (State.ABANDONING, State.ABANDONED)
    answer = there.ask("abandon", held=[SENT])
    assert answer["state"] == State.ABANDONED and (answer["kept"] == SENT) is one.is_dir()


def test_what_the_source_has_decides_later_where_it_cannot_be_read_now(
        there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was typed there first, and kept what it had; the source's word comes when the disk cannot be read."""
    migration, (one,) = received(there, SENT)
    abandon.give_up_here(migration)

    def broken(path: Path) -> Subvolume:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as disk:
        disk.setattr(btrfs, "info", broken)
        answer = there.ask("abandon", held=[SENT])
        assert answer == {"state": State.ABANDONED, "kept": "", "known": True, "ticket": migration.ticket}
        assert one.is_dir()
    assert there.ask("abandon", held=[SENT])["kept"] == SENT and one.is_dir()


def test_the_token_is_given_back_whatever_the_disk_does(there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read-only by now: what is left goes when it is asked once more."""
    migration, (one,) = received(there, SENT)

    def read_only(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr(btrfs, "delete", read_only)
        for _ in range(2):
            answer = there.ask("abandon", held=[])
            assert answer == {"state": State.ABANDONING, "kept": "", "known": True, "ticket": migration.ticket}
        assert recorded(migration).ending.given_up_here is False
        told = abandon.give_up_here(recorded(migration))
        assert "the next rollback removes what is left of it" in told.text and one.is_dir()
    assert there.ask("abandon", held=[])["state"] == State.ABANDONED and not one.exists()
    assert recorded(migration).ending.given_up_here is True, "that it was typed here stays on record"
