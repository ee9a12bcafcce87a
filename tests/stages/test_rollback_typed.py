# SPDX-License-Identifier: GPL-2.0-or-later
"""`migrator rollback` as it is typed, on either host."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator import __main__ as program
from migrator import cli
from migrator.base.result import Result
from migrator.copies import standing
from migrator.errors.connection import ConnectionLost, HostUnreachable
from migrator.errors.containers import AlreadyRuns, NoMigration, NotKnownThere
from migrator.errors.outcomes import SourceStateUnknown
from migrator.errors.this_host import Busy, NotRoot
from migrator.guest import live_steps
from migrator.host import network
from migrator.host.network import Port
from migrator.record import container_lock
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import locked
from migrator.record.states import Event, Role, State
from migrator.remote.destination import ConnectOptions
from stages import resume
from stages.steps import force, give_back, put_away, resume_source, thaw_again
from stages.steps.options import EndOptions, NamedContainer
from tests.stages.answering import UUID, pool, there  # noqa: F401 -- fixtures
from tests.stages.journals import dumping, journal, offered, owned  # noqa: F401 -- a fixture
from tests.stages.key_presses import press
from tests.stages.snapshots import CUT, SENT, There, disk, recorded, refuses, snapshot, thaws, typed  # noqa: F401 -- fixtures


def connected_to(there: There, seen: list[str]) -> Any:
    def connect(_: ConnectOptions, destination: str) -> Any:
        seen.append(destination)
        return contextlib.nullcontext(there)
    return connect


@pytest.mark.parametrize("given", [None, "10.0.0.2"])
def test_typed_on_the_source(journal: Journal, typed: Callable[..., Result], thaws: list[str],
                             monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    migration = offered(journal)
    seen: list[str] = []
    monkeypatch.setattr(give_back, "connected", connected_to(There({"known": True, "ticket": "", "kept": ""}), seen))
    migration.note("ticket", ticket="t")
    with pytest.raises(SourceStateUnknown):
        typed(destination=given)
    monkeypatch.setattr(give_back, "connected", connected_to(There({"known": True, "ticket": "t"}), seen))
    assert typed(destination=given).data["destination_told"] is True
    assert seen == [given or "root@hostb"] * 2 and thaws == ["rolling-back"]
    assert recorded(migration).state is State.ROLLED_BACK


@pytest.mark.parametrize("command", ["rollback", "resume"])
def test_ctrl_c_once_the_token_is_back_waits_for_the_thaw(
        journal: Journal, typed: Callable[..., Result], thaws: list[str], command: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """While the connection is ended, which may take long: nothing more is asked for that it could break off."""
    migration = offered(journal)

    @contextlib.contextmanager
    def connected(*_: object) -> Iterator[There]:
        yield There({"known": True, "ticket": ""})
        press()

    signal.signal(signal.SIGINT, program._interrupt)
    monkeypatch.setattr(container_lock, "_interrupted", [])
    monkeypatch.setattr(give_back, "connected", connected)
    monkeypatch.setattr(resume_source, "_can_go_on", lambda *_: False)  # it has lost what it would be restored from
    monkeypatch.setattr(standing, "restore_silence", lambda _: None)
    if command == "rollback":
        assert typed().data["thawed"] is True
    else:
        resume_source.go_on(resume.ResumeOptions().request(migration), {}, journal, migration, at_boot=False)
    assert thaws == ["rolling-back"] and recorded(migration).state is State.ROLLED_BACK


@pytest.mark.parametrize("thawed", [True, False])
def test_what_was_done_in_the_guest_right_before_a_freeze_is_put_back(journal: Journal, typed: Callable[..., Result],
                                                                      monkeypatch: pytest.MonkeyPatch,
                                                                      thawed: bool) -> None:
    """A dump that was killed before it froze the container has left it so; a thaw puts it back by itself."""
    dumping(journal)
    put_back: list[str] = []
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: thawed)
    monkeypatch.setattr(live_steps, "put_back_in", lambda name, _: put_back.append(name))
    typed()
    assert put_back == ([] if thawed else ["web"])


def test_typed_again(journal: Journal, typed: Callable[..., Result], thaws: list[str]) -> None:
    migration = offered(journal)
    migration.move(Event.ROLL_BACK, abandoned=True)
    migration.move(Event.ROLLED_BACK)
    assert typed().data == {"migration": "0badc0de", "name": "web", "stage": "rollback", "already": True}
    assert thaws == []


def test_typed_again_where_the_destination_does_not_know(journal: Journal, typed: Callable[..., Result],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    migration = dumping(journal)
    typed()
    assert recorded(migration).owes
    with pytest.raises(ConnectionLost):
        typed()
    monkeypatch.setattr(give_back, "connected", connected_to(There({"known": True, "ticket": ""}), []))
    assert typed().data["destination_told"] is True and not recorded(migration).owes


@pytest.mark.parametrize(("given", "counts"), [(None, True), ("root@hostb", True), ("10.0.0.2", False)])
def test_typed_again_where_the_destination_has_forgotten_it(journal: Journal, typed: Callable[..., Result],
                                                            monkeypatch: pytest.MonkeyPatch, given: str | None,
                                                            counts: bool) -> None:
    """At the address that it was sent to nobody else answers."""
    migration = dumping(journal)
    migration.note("ticket", ticket="t")
    typed()
    monkeypatch.setattr(give_back, "connected", connected_to(There({"known": False}), []))
    with contextlib.nullcontext() if counts else pytest.raises(NotKnownThere):
        assert typed(destination=given).data["destination_told"] is False
    found = recorded(migration)
    assert found.owes is not counts and found.ending.abandoned is counts
    assert found.ending.forgotten_there is counts and (found.events()[-1].step == "forgotten") is counts


@pytest.mark.parametrize(("id_", "given"), [(None, None), ("0badc0de", None), ("0badc0de", "10.0.0.2")])
def test_what_was_removed_there_is_given_back_by_force(journal: Journal, typed: Callable[..., Result],
                                                       monkeypatch: pytest.MonkeyPatch, id_: str | None,
                                                       given: str | None) -> None:
    """Without, the destination keeps its word on record, and its way back; it is told that the source runs it again."""
    migration = offered(journal)
    there = There({"known": True})
    monkeypatch.setattr(give_back, "connected", connected_to(there, []))
    typed(force=id_, destination=given)
    assert [fields["gone"] for _, fields in there.asked] == [id_ is not None]
    recorded(migration).note("abandoned", abandoned=False)
    typed(destination=given)
    assert there.asked[-1][1]["gone"] is True, "it runs here"


def test_forced_at_another_address_it_is_given_back_at_its_own_too(journal: Journal, typed: Callable[..., Result],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    offered(journal)
    there = There({"known": True})

    def connected(_: object, where: str) -> contextlib.AbstractContextManager[There]:
        if where == "10.0.0.2":
            error = HostUnreachable(destination=where, reason="no answer")
            error.silent = True
            raise error
        return contextlib.nullcontext(there)

    monkeypatch.setattr(give_back, "connected", connected)
    assert typed(force="0badc0de", destination="10.0.0.2").data["destination_told"] is True
    assert [fields["gone"] for _, fields in there.asked] == [True]


@pytest.mark.parametrize("state", [State.FINISHING, State.FINISHED])
def test_typed_too_late(journal: Journal, typed: Callable[..., Result], thaws: list[str], state: State) -> None:
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


def test_typed_where_nothing_was_moved(typed: Callable[..., Result]) -> None:
    with pytest.raises(NoMigration) as refused:
        typed()
    assert refused.value.fields["next"] == "migrator prepare-data web -d HOST"


def test_tried_out(journal: Journal, typed: Callable[..., Result], thaws: list[str]) -> None:
    migration = offered(journal)
    *older, kept, gone = (snapshot(migration, number, uuid) for number, uuid in enumerate(("a", "b", SENT, UUID), 1))
    migration.note("rounds", rounds=[{"bytes": 1}] * 3)
    shown = typed(dry_run=True)
    assert [each["argv"] for each in shown.data["dry_run"]] == [
        ["tee", "/nowhere/cgroup.freeze"], *(["btrfs", "subvolume", "delete", str(path)] for path in (*older, gone))]
    assert thaws == [] and kept.is_dir() and gone.is_dir() and recorded(migration).state is State.OFFERED


@pytest.mark.parametrize("stopping", [True, False])
def test_tried_out_for_what_moves_without_its_memory(journal: Journal, typed: Callable[..., Result],
                                                     stopping: bool) -> None:
    """It is started again if it was told to stop."""
    offered(journal).note("stop", memory=False, stopping=stopping)
    assert [each["argv"][0] for each in typed(dry_run=True).data["dry_run"]] == (["lxc-start"] if stopping else [])


def test_tried_out_for_what_hears_nothing(journal: Journal, typed: Callable[..., Result]) -> None:
    """Its silence ends before it is thawed."""
    migration = offered(journal)
    migration.note("ports", ports=[Port("eth0", "veth1", "br0")])
    assert [each["argv"] for each in typed(dry_run=True).data["dry_run"]] == [
        network.hear_command(migration.id), ["tee", "/nowhere/cgroup.freeze"]]


def test_what_is_on_the_command_line_is_what_it_goes_by() -> None:
    """A rollback that lost its --force ID, or took another host for the destination, would not do what was asked."""
    given = cli.parse(["rollback", "-P", "/pool", "web", "-d", "10.0.0.2", "--force", "0badc0de", "--machine-is-off",
                       "--dry-run"])
    container = NamedContainer("web", "/pool")
    assert given.options == EndOptions(container, "10.0.0.2", ConnectOptions(), "0badc0de", machine_is_off=True,
                                       dry_run=True)
    assert cli.parse(["rollback", "-P", "/pool", "web"]).options == EndOptions(container)
    assert cli.parse(["rollback", "-P", "/pool", "web", "--force"]).options == EndOptions(container, force="")


@pytest.mark.parametrize(("given", "elsewhere"), [(None, False), ("root@hostb", False), ("root@hostc", True)])
@pytest.mark.parametrize("off", [False, True])
def test_forced_it_is_passed_on(journal: Journal, typed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch,
                                given: str | None, elsewhere: bool, off: bool) -> None:
    migration = offered(journal)
    seen: list[Any] = []
    asked: list[str] = []

    def connected(_: object, where: str) -> contextlib.AbstractContextManager[Any]:
        asked.append(where)
        raise ConnectionLost(destination=where, reason="x")

    def forced(of: Migration, id_: str, ask: Callable[[], str], *, recorded: Callable[[], str] | None,
               off: bool) -> Result:
        for each in (ask, recorded):
            with pytest.raises(ConnectionLost) if each else contextlib.nullcontext():
                assert each is None or each()
        seen.append((of.id, id_, off))
        return Result({}, "")

    monkeypatch.setattr(give_back, "connected", connected)
    monkeypatch.setattr(force, "roll_back", forced)
    typed(force="0badc0de", destination=given, machine_is_off=off)
    typed(force="", destination=given, machine_is_off=off)
    assert seen == [(migration.id, "0badc0de", off), (migration.id, "", off)]
    assert asked == [given or "root@hostb", *(["root@hostb"] if elsewhere else [])] * 2


def test_typed_on_the_destination(journal: Journal, typed: Callable[..., Result],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    migration = owned(journal)
    monkeypatch.setattr(put_away, "drop_attempt", lambda *_: None)
    assert "dry_run" in typed(dry_run=True).data
    assert recorded(migration).state is State.OWNED
    given = typed()
    assert recorded(migration).state is State.ABANDONED and recorded(migration).ending.given_up_here is True
    assert given.data == {"migration": "0badc0de", "name": "web", "stage": "rollback", "already": False,
                          "next": "migrator rollback web   (on hosta)"}
    with pytest.raises(NoMigration):
        typed()  # it has ended here, and this host was no source


def test_what_has_come_here_and_gone_on_is_rolled_back_as_a_source(journal: Journal, typed: Callable[..., Result],
                                                                   thaws: list[str]) -> None:
    came = owned(journal)
    came.move(Event.ABANDON)
    came.move(Event.ABANDONED)
    journal.create(id="00000002", role=Role.SOURCE, name="web", lxcpath=journal.path.parent, peer="root@hostc",
                   event=Event.SEND, rounds=[], destination_lxcpath="/pool")
    assert typed().data["migration"] == "00000002" and thaws == ["rolling-back"]


def test_only_root_may(journal: Journal, typed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    offered(journal)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NotRoot, match="migrator rollback"):
        typed()


def test_who_works_on_it_is_not_disturbed(journal: Journal, typed: Callable[..., Result], thaws: list[str],
                                          tmp_path: Path) -> None:
    migration = dumping(journal)
    with locked("web", tmp_path / "run" / "lock", lxcpath=migration.lxcpath), pytest.raises(Busy):
        typed()
    assert thaws == [] and recorded(migration).state is State.DUMPING


def test_who_is_kept_off_hears_which_one_it_is(journal: Journal, typed: Callable[..., Result],
                                               monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dumping(journal)
    found: list[container_lock.Holder | None] = []

    def connected(_: object, where: str) -> contextlib.AbstractContextManager[Any]:
        found.append(container_lock.of("web", tmp_path, tmp_path / "run" / "lock"))
        raise CUT

    monkeypatch.setattr(give_back, "connected", connected)
    typed()
    assert [each.lxcpath if each else None for each in found] == [str(tmp_path)]


def test_nobody_has_said_that_the_machine_is_off(journal: Journal, typed: Callable[..., Result],
                                                 thaws: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line that has no word for it does not say it."""
    migration = offered(journal)
    unknown = HostUnreachable(destination="root@hostb", reason="a jump host is down")
    monkeypatch.setattr(give_back, "connected", refuses(unknown))
    with pytest.raises(SourceStateUnknown):
        typed(force="0badc0de")
    assert thaws == [] and recorded(migration).state is State.OFFERED


def test_a_command_line_of_another_kind_forces_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch,
                                                       typed: Callable[..., Result]) -> None:
    """`abort` calls it, and has no option for that."""
    offered(journal)
    with pytest.raises(SourceStateUnknown):
        typed()
