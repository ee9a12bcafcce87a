# SPDX-License-Identifier: GPL-2.0-or-later
"""A rollback: who is asked, what is recorded before anything runs, and what stays for the next attempt."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from migrator import aftermath, btrfs, cli, container_config, criu, lxc, network, no_memory, thawing
from migrator.btrfs import Subvolume
from migrator.errors import (
    AlreadyRuns,
    CommandTimeout,
    ConnectionLost,
    JournalBroken,
    NoMigration,
    NotKnownThere,
    SourceStateUnknown,
    SourceStillStopped,
    SourceStoppedUnknown,
    StartFailed,
    UsageError,
)
from migrator.journal import Journal, Migration
from migrator.layout import Layout, locked
from migrator.protocol import Connection
from migrator.states import Event, Owner, Role, State
from stages import force, import_data, rollback
from tests.stages.test_answers import UUID, Destination, pool, there  # noqa: F401 -- fixtures
from tests.stages.test_heal import dumping, journal, offered, owned  # noqa: F401 -- a fixture

SENT = "11111111-2222-3333-4444-555555555555"
CUT = ConnectionLost(destination="root@hostb", reason="cut")


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders in the place of subvolumes; the uuid of each is what its file `uuid` says."""

    def info(path: Path) -> Subvolume:
        return Subvolume(path, uuid=(path / "uuid").read_text(), received_uuid="", read_only=True,
                         generation=int(path.suffix[1:]))

    def delete(path: Path) -> None:
        if path.exists():
            shutil.rmtree(path)

    monkeypatch.setattr(btrfs, "is_subvolume", Path.is_dir)
    monkeypatch.setattr(btrfs, "info", info)
    monkeypatch.setattr(btrfs, "delete", delete)


def snapshot(migration: Migration, number: int, uuid: str) -> Path:
    path = layout_of(migration).snapshot(number)
    path.mkdir(parents=True)
    (path / "uuid").write_text(uuid)
    return path


def layout_of(migration: Migration) -> Layout:
    return Layout(migration.lxcpath, migration.name, migration.id)


def fence(migration: Migration) -> Callable[[], str]:
    folder = migration.lxcpath / migration.name
    folder.mkdir()
    container_config.fence(folder, "lxc.uts.name = web\n", migration.id, "no")
    return lambda: container_config.fence_of((folder / "config").read_text())


@pytest.fixture
def thaws(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The state on record at each thaw."""
    done: list[str] = []

    def thaw(migration: Migration) -> bool:
        found = migration.journal.by_id(migration.id, migration.role)
        assert found
        done.append(str(found.state))
        return True

    monkeypatch.setattr(rollback, "thaw_source", thaw)
    monkeypatch.setattr(rollback, "where", lambda _: "It runs on here.")
    return done


def refuses(error: Exception) -> Callable[..., str]:
    def tell(*_: object) -> str:
        raise error
    return tell


def recorded(migration: Migration) -> Migration:
    found = migration.journal.by_id(migration.id, migration.role)
    assert found
    return found


# --- roll_back ------------------------------------------------------------------------------------------------


def test_the_word_is_on_record_before_it_thaws(journal: Journal, thaws: list[str]) -> None:
    migration = offered(journal)
    fenced = fence(migration)
    kept, gone = snapshot(migration, 1, SENT), snapshot(migration, 2, UUID)
    (layout_of(migration).spool).mkdir(parents=True)
    layout_of(migration).image_folders()[0].mkdir(parents=True)
    told = rollback.roll_back(migration, lambda: SENT)
    assert thaws == ["rolling-back"]
    assert told.data == {"migration": "0badc0de", "name": "web", "stage": "rollback", "already": False, "thawed": True,
                         "destination_told": True, "forced": False, "kept": [str(kept)]}
    assert told.text.startswith("It runs on here. Kept") and str(kept) in told.text
    assert fenced() == "" and kept.is_dir() and not gone.exists() and not layout_of(migration).spool.exists()
    assert not layout_of(migration).image_folders()[0].exists()
    found = recorded(migration)
    assert found.state is State.ROLLED_BACK and found.owner is Owner.SOURCE and not found.owes
    assert {key: found.detail[key] for key in ("abandoned", "forced", "held", "kept")} == {
        "abandoned": True, "forced": False, "held": True, "kept": ["0badc0de.1"]}


def test_what_the_destination_does_not_keep_goes(journal: Journal, thaws: list[str]) -> None:
    migration = offered(journal)
    gone = snapshot(migration, 1, SENT)
    told = rollback.roll_back(migration, lambda: "")
    assert told.text == "It runs on here." and told.data["kept"] == []
    assert not gone.exists() and not layout_of(migration).folder.exists()


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("taken", [False, True])
def test_without_its_word_what_was_offered_stays_frozen(journal: Journal, thaws: list[str], taken: bool,
                                                        memory: bool) -> None:
    migration = offered(journal)
    if taken:
        migration.move(Event.TAKEN)
    migration.note("memory", memory=memory)
    before = migration.state
    with pytest.raises(SourceStateUnknown) as unknown:
        rollback.roll_back(migration, refuses(CUT))
    assert type(unknown.value) is (SourceStateUnknown if memory else SourceStoppedUnknown)
    assert unknown.value.cause is CUT and "migrator rollback web" in unknown.value.hint
    assert thaws == [] and recorded(migration).state is before


def test_it_already_runs_there(journal: Journal, thaws: list[str]) -> None:
    migration = dumping(journal)
    with pytest.raises(AlreadyRuns):
        rollback.roll_back(migration, refuses(AlreadyRuns(name="web", destination="hostb", next="x")))
    assert thaws == [] and recorded(migration).state is State.DUMPING


def test_before_the_offer_nobody_else_is_needed(journal: Journal, thaws: list[str]) -> None:
    migration = dumping(journal)
    migration.note("rounds", rounds=[{"bytes": 1}, {}])
    kept, gone = snapshot(migration, 1, SENT), snapshot(migration, 2, UUID)
    told = rollback.roll_back(migration, refuses(CUT))
    assert thaws == ["rolling-back"] and told.data["destination_told"] is False and told.data["forced"] is False
    assert told.text.startswith("It runs on here. root@hostb could not be told (")
    assert "clean up there with: migrator rollback web" in told.text
    assert kept.is_dir() and not gone.exists()
    found = recorded(migration)
    assert found.state is State.ROLLED_BACK and found.owes and found.detail["kept"] == ["0badc0de.1"]
    assert found.detail["abandoned"] is False and found.detail["forced"] is False


def test_forced_it_asks_nobody(journal: Journal, thaws: list[str]) -> None:
    migration = offered(journal)
    kept = snapshot(migration, 1, SENT)
    migration.note("kept", kept=[kept.name])
    told = rollback.roll_back(migration, None)
    assert told.data["forced"] is True and told.data["destination_told"] is False
    assert recorded(migration).owes and recorded(migration).detail["forced"] is True and kept.is_dir()


@pytest.mark.parametrize("detail", [{"abandoned": True}, {"forced": True, "abandoned": False}])
def test_what_is_on_record_is_not_asked_for_again(journal: Journal, thaws: list[str], detail: dict[str, Any]) -> None:
    """It broke off between the record and the thaw."""
    migration = offered(journal)
    migration.move(Event.ROLL_BACK, held=True, kept=[], **detail)
    told = rollback.roll_back(migration, lambda: pytest.fail("it is asked again"))
    assert thaws == ["rolling-back"] and recorded(migration).state is State.ROLLED_BACK
    assert told.data["forced"] is bool(detail.get("forced")) and recorded(migration).owes is bool(detail.get("forced"))


def test_a_full_disk_does_not_keep_it_frozen(journal: Journal, thaws: list[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """What the attempt has made goes, all of it: room is what the records need."""
    migration = dumping(journal)
    migration.note("rounds", rounds=[{"bytes": 1}])
    sent = snapshot(migration, 1, SENT)
    honest = Migration.move

    def move(of: Migration, event: Event, **detail: Any) -> None:
        if sent.exists():
            raise JournalBroken(path=journal.path, reason="database or disk is full")
        honest(of, event, **detail)

    monkeypatch.setattr(Migration, "move", move)
    told = rollback.roll_back(migration, refuses(CUT))
    assert thaws == ["dumping"] and not sent.exists() and told.data["kept"] == []
    found = recorded(migration)
    assert found.state is State.ROLLED_BACK and found.detail["kept"] == [] and found.owes


def test_a_force_that_cannot_be_recorded_does_not_happen(journal: Journal, thaws: list[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    migration = offered(journal)

    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path=journal.path, reason="database or disk is full")

    monkeypatch.setattr(Migration, "move", full)
    with pytest.raises(JournalBroken):
        rollback.roll_back(migration, None)
    assert thaws == []


def earlier(journal: Journal, migration: Migration, id_: str, peer: str = "root@hostb") -> tuple[Migration, Path]:
    """One that was given up before, with the base that it has kept."""
    made = journal.create(id=id_, role=migration.role, name="web", lxcpath=migration.lxcpath, peer=peer,
                          event=Event.SEND if migration.role is Role.SOURCE else Event.RECEIVE, rounds=[])
    base = snapshot(made, 1, "0" * 8 + SENT[8:])
    for event in ((Event.ROLL_BACK, Event.ROLLED_BACK) if migration.role is Role.SOURCE
                  else (Event.ABANDON, Event.ABANDONED)):
        made.move(event, kept=[base.name], abandoned=True)
    return made, base


@pytest.mark.parametrize(("uuid", "told", "left"), [(SENT, True, False), ("", True, True), (SENT, False, True)])
def test_only_a_newer_base_that_both_have_takes_an_earlier_ones_place(journal: Journal, thaws: list[str], uuid: str,
                                                                      told: bool, left: bool) -> None:
    migration = dumping(journal)
    migration.note("peer", destination_host="root@hostb", rounds=[{"bytes": 1}])
    _, base = earlier(journal, migration, "00000001")
    snapshot(migration, 1, SENT)
    rollback.roll_back(migration, (lambda: uuid) if told else refuses(CUT))
    assert base.is_dir() is left


@pytest.mark.parametrize("uuid", [SENT, ""])
def test_who_hears_of_it_late_tells_what_it_keeps(journal: Journal, thaws: list[str], uuid: str) -> None:
    migration = dumping(journal)
    migration.note("peer", destination_host="root@hostb", rounds=[{"bytes": 1}, {"bytes": 1}])
    _, base = earlier(journal, migration, "00000001")
    one, two = snapshot(migration, 1, SENT), snapshot(migration, 2, UUID)
    rollback.roll_back(migration, refuses(CUT))
    assert one.is_dir() and two.is_dir() and base.is_dir()
    told = force.tell_late(migration, lambda: uuid)
    assert told and told.data["destination_told"] is True and "hostb knows now" in told.text
    assert one.is_dir() is bool(uuid) and not two.exists() and base.is_dir() is (not uuid)
    assert not recorded(migration).owes


def test_a_base_is_not_worth_a_rollback(journal: Journal, thaws: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    migration = offered(journal)
    snapshot(migration, 1, SENT)

    def broken(_: Path) -> Subvolume:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as bad:
        bad.setattr(btrfs, "info", broken)
        bad.setattr(rollback, "drop_attempt", lambda *_: None)
        assert rollback.roll_back(migration, lambda: SENT).data["kept"] == []


# --- what is asked --------------------------------------------------------------------------------------------


class There:
    peer_host = "hostb"

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        self.asked.append((op, fields))
        return self.answer


def tell(migration: Migration, there: There) -> str:
    return rollback.tell(migration, cast("Connection", there))


def test_it_says_which_and_what_it_has(journal: Journal) -> None:
    migration = offered(journal)
    migration.note("names", other_name="shop", ticket="t1")
    snapshot(migration, 1, SENT)
    _, _ = earlier(journal, migration, "00000001")
    there = There({"known": True, "ticket": "t1", "kept": SENT})
    assert tell(migration, there) == SENT
    assert there.asked == [("abandon", {
        "id": "0badc0de", "name": "shop", "source_name": "web", "lxcpath": "/pool",
        "source_host": rollback.this_host(), "held": [SENT]})]


def test_what_it_has_may_not_be_known(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    migration = dumping(journal)

    def broken(_: Path) -> Subvolume:
        raise OSError(5, "Input/output error")

    snapshot(migration, 1, SENT)
    monkeypatch.setattr(btrfs, "info", broken)
    there = There({"known": True, "ticket": ""})
    assert tell(migration, there) == "" and there.asked[0][1]["held"] == []


@pytest.mark.parametrize("answer", [
    {}, {"known": False, "ticket": "t1"}, {"known": 1, "ticket": "t1"}, {"known": True, "ticket": ""}, {"known": True},
    {"known": True, "ticket": "another"},
])
def test_whose_word_is_none(journal: Journal, answer: dict[str, Any]) -> None:
    migration = offered(journal)
    migration.note("ticket", ticket="t1")
    with pytest.raises(NotKnownThere) as refused:
        tell(migration, There(answer))
    assert refused.value.fields["id"] == "0badc0de" and refused.value.fields["destination"] == "hostb"


# --- the thaw -------------------------------------------------------------------------------------------------


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []

    def act(word: str) -> Any:
        return lambda *args, **_: done.append(" ".join([word, *(str(each) for each in args if isinstance(each, str))]))

    monkeypatch.setattr(criu, "wait_for_dump", act("dump has ended:"))
    monkeypatch.setattr(thawing, "thaw", act("thawed"))
    monkeypatch.setattr(network, "hear", act("heard"))
    monkeypatch.setattr(aftermath, "start_from_disk", act("started from disk"))
    monkeypatch.setattr(aftermath, "memory_is_here", lambda _: True)
    unfence = container_config.unfence

    def unfenced(folder: Path, migration: str) -> None:
        done.append("unfenced")
        unfence(folder, migration)

    monkeypatch.setattr(container_config, "unfence", unfenced)
    return done


def test_it_thaws_what_it_has_frozen(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    migration = dumping(journal)
    thawed: list[thawing.Frozen] = []
    monkeypatch.setattr(thawing, "thaw", thawed.append)
    waited: list[tuple[str, list[Path]]] = []
    monkeypatch.setattr(criu, "wait_for_dump", lambda name, folders: waited.append((name, folders)))
    assert rollback.thaw_source(migration) is True
    assert thawed == [thawing.Frozen("0badc0de", "web", migration.lxcpath, 1, Path("/nowhere"), ())]
    assert waited == [("web", layout_of(migration).image_folders())] and acts == []
    assert [(each.step, each.phase) for each in migration.events()][-2:] == [("thaw", "begin"), ("thaw", "done")]


def test_the_record_of_a_thaw_is_not_needed(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    migration = dumping(journal)

    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path=journal.path, reason="full")

    monkeypatch.setattr(Migration, "_event", full)
    assert rollback.thaw_source(migration) is True and "thawed" in acts


def test_what_was_never_frozen_is_left_alone(journal: Journal, acts: list[str]) -> None:
    migration = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=journal.path.parent,
                               peer="root@hostb", event=Event.SEND, rounds=[])
    assert rollback.thaw_source(migration) is False and acts == []


@pytest.mark.parametrize("ports", [[], [{"name": "veth1"}]])
def test_after_a_reboot_it_starts_from_its_disk(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                                ports: list[object]) -> None:
    migration = dumping(journal)
    migration.note("ports", ports=ports)
    fenced = fence(migration)
    monkeypatch.setattr(aftermath, "memory_is_here", lambda _: False)
    assert rollback.thaw_source(migration) is False
    assert acts == ["unfenced", *(["heard 0badc0de"] if ports else []), "started from disk"] and fenced() == ""


@pytest.mark.parametrize("answer", [True, False, StartFailed(name="web", reason="?", log="x"),
                                    CommandTimeout(command="lxc-start", seconds=1)])
def test_what_was_stopped_is_started_again(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                           answer: bool | Exception) -> None:
    migration = dumping(journal)
    migration.note("memory", memory=False)

    def start(of: Migration) -> bool:
        assert of is migration
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(no_memory, "start_again", start)
    if isinstance(answer, Exception):
        with pytest.raises(SourceStillStopped) as stopped:
            rollback.thaw_source(migration)
        assert stopped.value.cause is answer and stopped.value.__cause__ is answer
        assert "migrator resume web" in stopped.value.hint and "migrator rollback web" in stopped.value.hint
        assert rollback.this_host() in str(stopped.value)
    else:
        assert rollback.thaw_source(migration) is answer
    assert acts == []


@pytest.mark.parametrize(("state", "text"), [
    ("RUNNING", "web runs on here."), ("STOPPED", "web is STOPPED here. Start it with: lxc-start -P {} web"),
])
def test_where_it_is(journal: Journal, monkeypatch: pytest.MonkeyPatch, state: str, text: str) -> None:
    migration = dumping(journal)

    class Container:
        def __init__(self, name: str, lxcpath: Path) -> None:
            assert (name, lxcpath) == ("web", migration.lxcpath)
            self.state = state

    monkeypatch.setattr(lxc, "Container", Container)
    assert rollback.where(migration) == text.format(migration.lxcpath)


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def typed(journal: Journal, monkeypatch: pytest.MonkeyPatch, thaws: list[str],
          tmp_path: Path) -> Callable[..., cli.Result]:
    """`migrator rollback web` on this host; nobody can be reached."""
    monkeypatch.setattr(rollback, "DEFAULT_PATH", journal.path)
    monkeypatch.setattr(rollback, "connected", refuses(CUT))
    monkeypatch.setattr(rollback, "locked", lambda name: locked(name, tmp_path / "run" / "lock"))
    monkeypatch.setattr("os.geteuid", lambda: 0)

    def run(**more: Any) -> cli.Result:
        honest = {"name": "web", "lxcpath": str(tmp_path), "destination": None, "dry_run": False, "force": None,
                  "machine_is_off": False}
        return rollback.run(argparse.Namespace(**honest | more))

    return run


def connected_to(there: There, seen: list[str]) -> Any:
    def connect(_: argparse.Namespace, destination: str) -> Any:
        seen.append(destination)
        return contextlib.nullcontext(there)
    return connect


@pytest.mark.parametrize("given", [None, "10.0.0.2"])
def test_typed_on_the_source(journal: Journal, typed: Callable[..., cli.Result], thaws: list[str],
                             monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    migration = offered(journal)
    seen: list[str] = []
    monkeypatch.setattr(rollback, "connected", connected_to(There({"known": True, "ticket": "", "kept": ""}), seen))
    migration.note("ticket", ticket="t")
    with pytest.raises(SourceStateUnknown):
        typed(destination=given)
    monkeypatch.setattr(rollback, "connected", connected_to(There({"known": True, "ticket": "t"}), seen))
    assert typed(destination=given).data["destination_told"] is True
    assert seen == [given or "root@hostb"] * 2 and thaws == ["rolling-back"]
    assert recorded(migration).state is State.ROLLED_BACK


def test_typed_again(journal: Journal, typed: Callable[..., cli.Result], thaws: list[str]) -> None:
    migration = offered(journal)
    migration.move(Event.ROLL_BACK, abandoned=True)
    migration.move(Event.ROLLED_BACK)
    assert typed().data == {"migration": "0badc0de", "name": "web", "stage": "rollback", "already": True}
    assert thaws == []


def test_typed_again_where_the_destination_does_not_know(journal: Journal, typed: Callable[..., cli.Result],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    migration = dumping(journal)
    typed()
    assert recorded(migration).owes
    with pytest.raises(ConnectionLost):
        typed()
    monkeypatch.setattr(rollback, "connected", connected_to(There({"known": True, "ticket": ""}), []))
    assert typed().data["destination_told"] is True and not recorded(migration).owes


@pytest.mark.parametrize("state", [State.FINISHING, State.FINISHED])
def test_typed_too_late(journal: Journal, typed: Callable[..., cli.Result], thaws: list[str], state: State) -> None:
    migration = offered(journal)
    migration.move(Event.TAKEN)
    migration.move(Event.FINISH)
    if state is State.FINISHED:
        migration.move(Event.FINISHED)
    with pytest.raises(AlreadyRuns) as refused:
        typed()
    expected = "migrator finish web" if state is State.FINISHING else "migrator status web"
    assert refused.value.fields["next"] == expected and refused.value.fields["destination"] == "hostb"
    assert thaws == []


def test_typed_where_nothing_was_moved(typed: Callable[..., cli.Result]) -> None:
    with pytest.raises(NoMigration) as refused:
        typed()
    assert refused.value.fields["next"] == "migrator prepare-data web -d HOST"


def test_tried_out(journal: Journal, typed: Callable[..., cli.Result], thaws: list[str]) -> None:
    migration = offered(journal)
    kept, gone = snapshot(migration, 1, SENT), snapshot(migration, 2, UUID)
    migration.note("rounds", rounds=[{"bytes": 1}])
    shown = typed(dry_run=True)
    assert [each["argv"] for each in shown.data["dry_run"]] == [
        ["tee", "/nowhere/cgroup.freeze"], ["btrfs", "subvolume", "delete", str(gone)]]
    assert thaws == [] and kept.is_dir() and gone.is_dir() and recorded(migration).state is State.OFFERED


@pytest.mark.parametrize(("given", "elsewhere"), [(None, False), ("root@hostb", False), ("root@hostc", True)])
@pytest.mark.parametrize("off", [False, True])
def test_forced_it_is_passed_on(journal: Journal, typed: Callable[..., cli.Result], monkeypatch: pytest.MonkeyPatch,
                                given: str | None, elsewhere: bool, off: bool) -> None:
    migration = offered(journal)
    seen: list[Any] = []

    def forced(of: Migration, id_: str, ask: Callable[[], str], **more: bool) -> cli.Result:
        with pytest.raises(ConnectionLost):
            ask()
        seen.append((of.id, id_, more))
        return cli.Result({}, "")

    monkeypatch.setattr(force, "roll_back", forced)
    typed(force="0badc0de", destination=given, machine_is_off=off)
    typed(force="", destination=given, machine_is_off=off)
    more = {"elsewhere": elsewhere, "off": off}
    assert seen == [(migration.id, "0badc0de", more), (migration.id, "", more)]


def test_typed_on_the_destination(journal: Journal, typed: Callable[..., cli.Result],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    migration = owned(journal)
    monkeypatch.setattr(import_data, "drop_attempt", lambda *_: None)
    assert "dry_run" in typed(dry_run=True).data
    assert recorded(migration).state is State.OWNED
    given = typed()
    assert recorded(migration).state is State.ABANDONED and recorded(migration).detail["given_up_here"] is True
    assert given.data == {"migration": "0badc0de", "name": "web", "stage": "rollback", "already": False,
                          "next": "migrator rollback web   (on hosta)"}
    with pytest.raises(NoMigration):
        typed()  # it has ended here, and this host was no source


def test_what_has_come_here_and_gone_on_is_rolled_back_as_a_source(journal: Journal, typed: Callable[..., cli.Result],
                                                                   thaws: list[str]) -> None:
    came = owned(journal)
    came.move(Event.ABANDON)
    came.move(Event.ABANDONED)
    journal.create(id="00000002", role=Role.SOURCE, name="web", lxcpath=journal.path.parent, peer="root@hostc",
                   event=Event.SEND, rounds=[], destination_lxcpath="/pool")
    assert typed().data["migration"] == "00000002" and thaws == ["rolling-back"]


# --- on the destination ---------------------------------------------------------------------------------------


def received(there: Destination, *uuids: str) -> tuple[Migration, list[Path]]:
    """So many rounds have arrived."""
    there.ask("begin")
    there.imported()
    migration = there.journal.by_id("0badc0de", Role.DESTINATION)
    assert migration
    migration.note("rounds", rounds=[{"uuid": uuid} for uuid in uuids])
    return migration, [snapshot(migration, number, uuid) for number, uuid in enumerate(uuids, 1)]


@pytest.mark.parametrize(("held", "kept"), [([SENT], SENT), ([], ""), (None, ""), ([UUID, SENT], UUID)])
def test_it_keeps_the_newest_that_both_have(there: Destination, held: list[str] | None, kept: str) -> None:
    migration, (one, two) = received(there, SENT, UUID)
    _, base = earlier(there.journal, migration, "00000001", peer="hosta")
    answer = there.ask("abandon", held=held)
    assert answer == {"state": State.ABANDONED, "kept": kept, "known": True, "ticket": migration.ticket}
    assert answer["ticket"]
    assert [path.is_dir() for path in (one, two)] == [kept == SENT, kept == UUID]
    assert base.is_dir() is (not kept)
    found = recorded(migration)
    assert found.detail["given_up_here"] is False
    assert found.detail["kept"] == {SENT: ["0badc0de.1"], UUID: ["0badc0de.2"], "": []}[kept]
    assert not there.layout.container.exists() and not there.layout.spool.exists()
    assert there.ask("abandon", held=held)["kept"] == kept, "safe to repeat"


def test_it_was_typed_there_first(there: Destination) -> None:
    """What it keeps is what it had imported; the source, which comes later, says what it has itself."""
    migration, (one, two) = received(there, SENT, UUID)
    _, base = earlier(there.journal, migration, "00000001", peer="hosta")
    rollback.give_up_here(migration)
    assert two.is_dir() and not one.exists() and not base.exists()
    found = recorded(migration)
    assert found.state is State.ABANDONED and found.detail["given_up_here"] is True
    assert there.ask("abandon", held=[SENT])["kept"] == "" and not two.exists()
    assert recorded(migration).detail["given_up_here"] is True


def test_typed_there_again_nothing_more_goes(there: Destination) -> None:
    migration, (two,) = received(there, SENT)
    rollback.give_up_here(migration)
    rollback.give_up_here(migration)
    assert two.is_dir()


def test_what_would_go_is_shown(there: Destination) -> None:
    migration, (one, two) = received(there, SENT, UUID)
    three = snapshot(migration, 3, "3" * 8 + SENT[8:])  # half received
    shown = rollback.give_up_here(migration, dry_run=True)
    assert [each["argv"][-1] for each in shown.data["dry_run"]] == [str(one), str(three)]
    migration.note("rounds", rounds=[])
    shown = rollback.give_up_here(migration, dry_run=True)
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
    assert refused.value.fields["next"] == "migrator finish shop"
    assert recorded(migration).state is state and there.layout.container.is_dir()


def test_what_has_given_way_keeps_what_it_has(there: Destination) -> None:
    """It had run here, and was stopped when the source had been forced to go on without it."""
    migration, (one,) = received(there, SENT)
    there.take(Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE, Event.RESTORED)
    migration.refresh()
    migration.note("given_way", given_way=True)
    assert there.ask("abandon")["state"] == State.RESTORED
    assert one.is_dir() and there.layout.container.is_dir()


@pytest.mark.parametrize("here", [False, True])
def test_a_restore_that_was_killed_is_settled_first(there: Destination, monkeypatch: pytest.MonkeyPatch,
                                                    here: bool) -> None:
    from stages import settling

    migration, _ = received(there, SENT)
    there.take(Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE)
    migration.refresh()
    asked: list[bool] = []

    def settle(of: Migration, *, start: bool) -> None:
        asked.append(start)
        of.move(Event.RESTORE_FAILED)

    monkeypatch.setattr(settling, "settle", settle)
    if here:
        rollback.give_up_here(migration)
    else:
        there.ask("abandon")
    assert asked == [not here] and recorded(migration).state is State.ABANDONED


def test_an_attempt_that_nobody_knows_is_remembered(there: Destination) -> None:
    unknown = {"state": State.ABANDONED, "kept": "", "known": False, "ticket": ""}
    assert there.ask("abandon") == unknown
    with locked("web"):
        pass  # nothing says that the caller has to do with a container of that name
    found = there.journal.by_id("0badc0de", Role.DESTINATION)
    assert found and found.never_began and found.ended
    assert (found.name, found.lxcpath, found.peer) == ("web", there.pool, "hosta")
    assert found.detail["caller"] == there.service.grant.caller
    assert there.ask("abandon") == unknown and len(there.journal.of_caller(there.service.grant.caller)) == 1
    with pytest.raises(UsageError, match="has ended"):
        there.ask("begin")


def test_one_whose_record_broke_off_is_completed(there: Destination) -> None:
    there.journal.create(id="0badc0de", role=Role.DESTINATION, name="web", lxcpath=there.pool, peer="hosta",
                         event=Event.ABANDON, never_began=True, caller=there.service.grant.caller)
    assert there.ask("abandon")["state"] == State.ABANDONED
    found = there.journal.by_id("0badc0de", Role.DESTINATION)
    assert found and found.state is State.ABANDONED


def test_it_may_begin_while_the_lock_is_waited_for(there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = there.service.find
    looks: list[object] = []

    def find(fields: Any) -> Migration | None:
        looks.append(fields)
        if len(looks) == 1:
            return None
        if len(looks) == 2:
            there.journal.create(id="0badc0de", role=Role.DESTINATION, name="web", lxcpath=there.pool, peer="hosta",
                                 event=Event.RECEIVE, rounds=[], ticket="t", caller=there.service.grant.caller)
        return honest(fields)

    monkeypatch.setattr(there.service, "find", find)
    assert there.ask("abandon") == {"state": State.ABANDONED, "kept": "", "known": True, "ticket": "t"}
