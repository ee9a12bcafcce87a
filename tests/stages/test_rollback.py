# SPDX-License-Identifier: GPL-2.0-or-later
"""A rollback: what is recorded before anything runs, how it comes to run, and what stays for the next attempt."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from migrator.copies import after_crash, no_memory, remains, thawing
from migrator.criu import criu_dump
from migrator.errors import MigratorError
from migrator.errors.containers import AlreadyRuns, RunsUnrecorded
from migrator.errors.memory import StartFailed
from migrator.errors.outcomes import SourceStateUnknown, SourceStillStopped, SourceStoppedUnknown
from migrator.errors.this_host import Busy, CommandTimeout, JournalBroken
from migrator.guest import live_steps
from migrator.host import btrfs, lxc, network
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Journal, Migration
from migrator.record.next_commands import this_host
from migrator.record.states import Event, Owner, Role, State
from stages.steps import force, give_back, thaw_again
from tests.migrator.layouts import layout_of
from tests.stages.answering import UUID
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture
from tests.stages.snapshots import CUT, SENT, disk, earlier, fence, recorded, refuses, snapshot, thaws  # noqa: F401 -- fixtures


def test_the_word_is_on_record_before_it_thaws(journal: Journal, thaws: list[str]) -> None:
    migration = offered(journal)
    fenced = fence(migration)
    kept, gone = snapshot(migration, 1, SENT), snapshot(migration, 2, UUID)
    (layout_of(migration).spool).mkdir(parents=True)
    layout_of(migration).image_folders()[0].mkdir(parents=True)
    told = give_back.roll_back(migration, lambda: SENT)
    assert thaws == ["rolling-back"]
    assert told.data == {"migration": "0badc0de", "name": "web", "stage": "rollback", "already": False, "thawed": True,
                         "destination_told": True, "forced": False, "kept": [str(kept)]}
    assert told.text.startswith("It runs on here. Kept") and str(kept) in told.text
    assert fenced() == "" and kept.is_dir() and not gone.exists() and not layout_of(migration).spool.exists()
    assert not layout_of(migration).image_folders()[0].exists()
    found = recorded(migration)
    assert found.state is State.ROLLED_BACK and found.owner is Owner.SOURCE and not found.owes
    assert {key: found.given()[key] for key in ("abandoned", "forced", "held", "kept")} == {
        "abandoned": True, "forced": False, "held": True, "kept": ["0badc0de.1"]}


def test_what_the_destination_does_not_keep_goes(journal: Journal, thaws: list[str]) -> None:
    migration = offered(journal)
    gone = snapshot(migration, 1, SENT)
    told = give_back.roll_back(migration, lambda: "")
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
        give_back.roll_back(migration, refuses(CUT))
    assert type(unknown.value) is (SourceStateUnknown if memory else SourceStoppedUnknown)
    assert unknown.value.cause is CUT and "migrator rollback web" in unknown.value.hint
    assert thaws == [] and recorded(migration).state is before


def test_it_already_runs_there(journal: Journal, thaws: list[str]) -> None:
    migration = dumping(journal)
    with pytest.raises(AlreadyRuns):
        give_back.roll_back(migration, refuses(AlreadyRuns(name="web", destination="hostb", next="x")))
    assert thaws == ["dumping"] and recorded(migration).state is State.DUMPING


def test_before_the_offer_nobody_else_is_needed(journal: Journal, thaws: list[str]) -> None:
    migration = dumping(journal)
    migration.note("rounds", rounds=[{"bytes": 1}, {}])
    kept, gone = snapshot(migration, 1, SENT), snapshot(migration, 2, UUID)
    told = give_back.roll_back(migration, refuses(CUT))
    assert thaws == ["dumping"] and told.data["destination_told"] is False and told.data["forced"] is False
    assert told.text.startswith("It runs on here. root@hostb could not be told (")
    assert "have it remove what it has received: migrator rollback web" in told.text
    assert kept.is_dir() and not gone.exists()
    found = recorded(migration)
    assert found.state is State.ROLLED_BACK and found.owes and found.copy.kept == ["0badc0de.1"]
    assert found.ending.abandoned is False and found.ending.forced is False


LINES = "no\nweb runs on here, and is damaged: type\nNext: migrator finish web"


@pytest.mark.parametrize("answer", [Busy(name=LINES, pid="1"), RunsUnrecorded(name="web", how=LINES)])
def test_what_the_destination_answers_makes_no_lines_of_its_own(journal: Journal, thaws: list[str],
                                                                answer: MigratorError) -> None:
    """They would stand among what this host says."""
    migration = dumping(journal)
    answer.host = "hostb"
    told = give_back.roll_back(migration, refuses(answer))
    assert "web runs on here, and is damaged" in told.text and "\n" not in told.text


def test_forced_it_asks_nobody(journal: Journal, thaws: list[str]) -> None:
    migration = offered(journal)
    kept = snapshot(migration, 1, SENT)
    migration.note("kept", kept=[kept.name])
    told = give_back.roll_back(migration, None)
    assert told.data["forced"] is True and told.data["destination_told"] is False
    assert recorded(migration).owes and recorded(migration).ending.forced is True and kept.is_dir()


@pytest.mark.parametrize("detail", [{"abandoned": True}, {"forced": True, "abandoned": False}])
def test_what_is_on_record_is_not_asked_for_again(journal: Journal, thaws: list[str], detail: dict[str, Any]) -> None:
    """It broke off between the record and the thaw."""
    migration = offered(journal)
    migration.move(Event.ROLL_BACK, held=True, kept=[], **detail)
    told = give_back.roll_back(migration, lambda: pytest.fail("it is asked again"))
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
    told = give_back.roll_back(migration, refuses(CUT))
    assert thaws == ["dumping"] and not sent.exists() and told.data["kept"] == []
    found = recorded(migration)
    assert found.state is State.ROLLED_BACK and found.copy.kept == [] and found.owes


def test_a_force_that_cannot_be_recorded_does_not_happen(journal: Journal, thaws: list[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    migration = offered(journal)

    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path=journal.path, reason="database or disk is full")

    monkeypatch.setattr(Migration, "move", full)
    with pytest.raises(JournalBroken):
        give_back.roll_back(migration, None)
    assert thaws == []


@pytest.mark.parametrize(("uuid", "told", "left"), [(SENT, True, False), ("", True, True), (SENT, False, True)])
def test_only_a_newer_base_that_both_have_takes_an_earlier_ones_place(journal: Journal, thaws: list[str], uuid: str,
                                                                      told: bool, left: bool) -> None:
    migration = dumping(journal)
    migration.note("peer", destination_host="root@hostb", rounds=[{"bytes": 1}])
    _, base = earlier(journal, migration, "00000001")
    snapshot(migration, 1, SENT)
    give_back.roll_back(migration, (lambda: uuid) if told else refuses(CUT))
    assert base.is_dir() is left


@pytest.mark.parametrize("uuid", [SENT, ""])
def test_who_hears_of_it_late_tells_what_it_keeps(journal: Journal, thaws: list[str], uuid: str) -> None:
    migration = dumping(journal)
    migration.note("peer", destination_host="root@hostb", rounds=[{"bytes": 1}, {"bytes": 1}])
    _, base = earlier(journal, migration, "00000001")
    one, two = snapshot(migration, 1, SENT), snapshot(migration, 2, UUID)
    give_back.roll_back(migration, refuses(CUT))
    assert one.is_dir() and two.is_dir() and base.is_dir()
    told = force.tell_late(migration, lambda: uuid)
    assert told and told.data["destination_told"] is True and "hostb now knows" in told.text
    assert one.is_dir() is bool(uuid) and not two.exists() and base.is_dir() is (not uuid)
    assert not recorded(migration).owes


def test_a_base_is_not_worth_a_rollback(journal: Journal, thaws: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    migration = offered(journal)
    snapshot(migration, 1, SENT)

    def broken(_: Path) -> Subvolume:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as bad:
        bad.setattr(btrfs, "info", broken)
        bad.setattr(give_back, "drop_attempt", lambda *_: None)
        assert give_back.roll_back(migration, lambda: SENT).data["kept"] == []


# --- the thaw -------------------------------------------------------------------------------------------------


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []

    def act(word: str) -> Any:
        return lambda *args, **_: done.append(" ".join([word, *(str(each) for each in args if isinstance(each, str))]))

    monkeypatch.setattr(criu_dump, "wait_for_dump", act("dump has ended:"))
    monkeypatch.setattr(thawing, "thaw", act("thawed"))
    monkeypatch.setattr(network, "hear", act("heard"))
    monkeypatch.setattr(after_crash, "start_from_disk", act("started from disk"))
    monkeypatch.setattr(remains, "first_is_here", lambda _: True)
    monkeypatch.setattr(live_steps, "put_back", lambda name, init: done.append(f"put back in {name}: {init}"))
    return done


def test_it_thaws_what_it_has_frozen(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    migration = dumping(journal)
    thawed: list[thawing.Frozen] = []
    monkeypatch.setattr(thawing, "thaw", thawed.append)
    waited: list[tuple[str, list[Path]]] = []
    monkeypatch.setattr(criu_dump, "wait_for_dump", lambda name, folders: waited.append((name, folders)))
    monkeypatch.setattr(live_steps, "put_back", lambda *of: acts.append(f"put back in {of}, {len(thawed)} thawed"))
    assert thaw_again.thaw_source(migration) is True
    assert thawed == [thawing.Frozen("0badc0de", "web", migration.lxcpath, 1, Path("/nowhere"), ())]
    assert waited == [("web", layout_of(migration).dumped_into())]
    assert acts == ["put back in ('web', 1), 1 thawed"], "what was done in the guest before the freeze, and only then"
    assert [(each.step, each.phase) for each in migration.events()][-2:] == [("thaw", "begin"), ("thaw", "done")]


def test_the_record_of_a_thaw_is_not_needed(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    migration = dumping(journal)

    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path=journal.path, reason="full")

    monkeypatch.setattr(Migration, "_event", full)
    assert thaw_again.thaw_source(migration) is True and "thawed" in acts


def test_what_was_never_frozen_is_left_alone(journal: Journal, acts: list[str]) -> None:
    migration = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=journal.path.parent,
                               peer="root@hostb", event=Event.SEND, rounds=[])
    assert thaw_again.thaw_source(migration) is False and acts == []


@pytest.mark.parametrize("ports", [[], [network.Port("eth0", "veth1", "br0")]])
def test_after_a_reboot_it_starts_from_its_disk(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                                ports: list[network.Port]) -> None:
    migration = dumping(journal)
    migration.note("ports", ports=ports)
    monkeypatch.setattr(remains, "first_is_here", lambda _: False)
    assert thaw_again.thaw_source(migration) is False
    assert acts == [*(["heard 0badc0de"] if ports else []), "started from disk"]


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
            thaw_again.thaw_source(migration)
        assert stopped.value.cause is answer and stopped.value.__cause__ is answer
        assert "migrator resume web" in stopped.value.hint and "migrator rollback web" in stopped.value.hint
        assert this_host() in str(stopped.value)
    else:
        assert thaw_again.thaw_source(migration) is answer
    assert acts == []


@pytest.mark.parametrize(("state", "text"), [
    ("RUNNING", "web keeps running here."), ("STOPPED", "web is STOPPED here. Start it with: lxc-start -P {} web"),
])
def test_where_it_is(journal: Journal, monkeypatch: pytest.MonkeyPatch, state: str, text: str) -> None:
    migration = dumping(journal)

    class Container:
        def __init__(self, name: str, lxcpath: Path) -> None:
            assert (name, lxcpath) == ("web", migration.lxcpath)
            self.state, self.rootfs = state, Path("/nowhere")

    monkeypatch.setattr(lxc, "Container", Container)
    assert after_crash.where(migration) == text.format(migration.lxcpath)


def test_where_it_is_when_lxc_does_not_know_of_it(journal: Journal) -> None:
    migration = dumping(journal)
    migration.lxcpath = Path("/nowhere/BOX")
    assert after_crash.where(migration) == (
        "LXC no longer knows of web in /nowhere/BOX: it has been removed or renamed. List the containers"
        " with: lxc-ls -f -P /nowhere/BOX")


@pytest.mark.parametrize(("state", "detail", "ours"), [
    (State.PREPARED, {}, False), (State.PREPARING, {}, False), (State.DUMPING, {}, True), (State.OFFERED, {}, True),
    (State.ROLLING_BACK, {"held": True}, True), (State.ROLLING_BACK, {"held": False}, False),
    (State.ROLLING_BACK, {}, True),  # of an older version
])
def test_who_has_frozen_it(journal: Journal, monkeypatch: pytest.MonkeyPatch, state: State, detail: dict[str, bool],
                           ours: bool) -> None:
    """An earlier dump has failed, and it was thawed: whoever has frozen it since meant that."""
    thawed: list[str] = []
    monkeypatch.setattr(thawing, "thaw", lambda frozen: thawed.append(frozen.name))
    monkeypatch.setattr("migrator.copies.remains.first_is_here", lambda _: True)
    migration = dumping(journal)
    migration.state = state
    migration.learn(**detail)
    assert thaw_again.thaw_source(migration) is ours and thawed == (["web"] if ours else [])
    shown = [each["argv"] for each in give_back.described(migration).data["dry_run"]]
    assert (["tee", "/nowhere/cgroup.freeze"] in shown) is ours
