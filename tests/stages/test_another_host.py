# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that has offered the token, and who answers it is another host, or has lost its journal: nothing thaws."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.copies import bases, resume_rules
from migrator.errors.containers import AlreadyMigrating, AlreadyRuns, NotKnownThere, OutOfOrder
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import SourceStateUnknown
from migrator.errors.ownership import ForceRefused, SourceNeeded
from migrator.record.journal import Journal, Migration
from migrator.record.next_commands import this_host
from migrator.record.states import Event, Owner, Role, State
from migrator.transfer.rpc import Connection
from stages import resume
from stages.steps import ask_source, ask_state, drive_next, end_copy, force, give_back, resume_source, send_disk
from stages.steps.ask_source import Asking
from stages.steps.drive_move import Move
from stages.steps.options import MoveOptions, MoveRequest, NamedContainer
from tests.migrator.wire import by_op
from tests.stages.answering import ID, pool  # noqa: F401 -- a fixture
from tests.stages.lost_hosts import ALIVE, SILENT, UNKNOWN, nothing_real  # noqa: F401 -- a fixture
from tests.stages.two_hosts import Host, Hosts, hosts, lost, source, tell  # noqa: F401 -- fixtures

# ruff: noqa: F811 -- fixtures


def also_begun_on(host: Host) -> None:
    """An earlier round had gone there."""
    host.ask("begin")


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("case", ["another", "another that knows it from an earlier round", "lost"])
def test_its_word_thaws_nothing(source: Migration, hosts: Hosts, nothing_real: list[str], case: str,
                                taken: bool) -> None:
    if taken:
        source.move(Event.TAKEN)
    before = source.state
    host = hosts["hostb" if case == "lost" else "hostc"]
    if case == "lost":
        lost(hosts)
    elif "knows" in case:
        also_begun_on(host)
    for _ in range(2):  # it remembers the first time
        with pytest.raises(SourceStateUnknown, match="does not know migration"):
            give_back.roll_back(source, lambda: tell(source, host))
        assert source.state is before and source.owner is not Owner.SOURCE and nothing_real == []
        assert ask_state.state(host, source) is None  # type: ignore[arg-type]


def test_the_host_that_it_went_to_is_believed(source: Migration, hosts: Hosts, nothing_real: list[str]) -> None:
    """By whichever name it is reached."""
    assert give_back.roll_back(source, lambda: tell(source, hosts["hostb"])).data["destination_told"]
    assert source.state is State.ROLLED_BACK and nothing_real == ["thawed"]


def test_resume_does_not_go_on_with_it(source: Migration, hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume_source, "connected", lambda *_: contextlib.nullcontext(hosts["hostc"]))
    monkeypatch.setattr("migrator.copies.after_crash.note", lambda _: "")
    with pytest.raises(SourceStateUnknown, match="does not know migration"):
        resume_source._can_go_on(MoveRequest(NamedContainer("web"), "root@hostc"), source)


def test_what_has_lost_its_journal_is_forced_with_the_id(source: Migration, hosts: Hosts,
                                                         nothing_real: list[str]) -> None:
    lost(hosts)

    def asked() -> str:
        return tell(source, hosts["hostb"])

    with pytest.raises(ForceRefused):
        force.roll_back(source, "", asked)
    with pytest.raises(SourceStateUnknown):  # asked at another address than it was sent to
        force.roll_back(source, ID, asked, recorded=lambda: pytest.fail("it is asked, too"))
    assert nothing_real == []
    assert force.roll_back(source, ID, asked).data["forced"]
    assert source.owes and nothing_real == ["thawed"]
    # The reminder ends when that host says so; not on another one's word, or asked elsewhere.
    also_begun_on(hosts["hostc"])
    for host, elsewhere in (("hostc", False), ("hostb", True)):
        with pytest.raises(NotKnownThere):
            force.tell_late(source, lambda: tell(source, hosts[host]), elsewhere=elsewhere)  # noqa: B023  # at once
        assert source.owes
    told = force.tell_late(source, asked)
    assert told and told.data["destination_told"] is False and "no longer knows" in told.text
    found = source.journal.by_id(ID, Role.SOURCE)
    assert found and not found.owes and force.tell_late(found, lambda: pytest.fail("it is asked")) is None


@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("there", ["alive", "in doubt", "it runs", "silent", "forgotten"])
def test_an_address_that_is_silent_is_not_the_host(source: Migration, hosts: Hosts, nothing_real: list[str],
                                                   there: str, off: bool) -> None:
    """`rollback --force ID -d ADDRESS`: where the container was sent is asked too, each time."""
    asked: list[str] = []

    def elsewhere() -> str:
        asked.append("elsewhere")
        raise SILENT[0]

    def recorded() -> str:
        asked.append("recorded")
        if there in ("it runs", "forgotten"):
            return tell(source, hosts["hostb"])
        raise {"alive": ALIVE, "in doubt": UNKNOWN, "silent": SILENT}[there][0]

    if there == "it runs":
        hosts["hostb"].destination.take(Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP,
                                        Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE, Event.RESTORED)
    elif there == "forgotten":
        lost(hosts)
    forced = there in ("silent", "forgotten") or (off and there == "in doubt")
    with contextlib.nullcontext() if forced else pytest.raises(AlreadyRuns if there == "it runs" else
                                                               SourceStateUnknown):
        assert force.roll_back(source, ID, elsewhere, recorded=recorded, off=off).data["forced"]
    assert asked == ["elsewhere", "recorded"] and nothing_real == (["thawed"] if forced else [])


def test_before_the_offer_the_container_is_ours(source: Migration, hosts: Hosts, nothing_real: list[str]) -> None:
    """It runs on whoever answers; but the host that has the data has not heard of it yet."""
    source.move(Event.REFUSED)
    assert not give_back.roll_back(source, lambda: tell(source, hosts["hostc"])).data["destination_told"]
    assert source.owes
    with pytest.raises(DocumentedError, match="does not know migration"):
        force.tell_late(source, lambda: tell(source, hosts["hostc"]))
    assert source.owes and force.tell_late(source, lambda: tell(source, hosts["hostb"]))
    assert not source.owes


@pytest.mark.parametrize("state", [State.FINISHING, State.DUMPED])
def test_a_copy_that_nobody_asks_for_any_more_is_ended_with_the_id(
    source: Migration, hosts: Hosts, monkeypatch: pytest.MonkeyPatch, state: State,
) -> None:
    """It had run there, which is on record here; the destination has forgotten it since."""
    source.move(Event.TAKEN)
    if state is State.FINISHING:
        source.move(Event.FINISH)
    lost(hosts)
    ended: list[str] = []
    monkeypatch.setattr(end_copy, "stop_and_fence", lambda _: ended.append("fenced"))
    monkeypatch.setattr(bases, "prune", lambda _: None)

    def typed(given: str | None) -> object:
        return end_copy.carry_out(source, hosts["hostb"], force=given).data  # type: ignore[arg-type]

    with pytest.raises(OutOfOrder):
        typed(None)
    if state is State.DUMPED:  # whether it has run there nobody knows
        with pytest.raises(OutOfOrder):
            typed(ID)
        assert source.state is state and ended == []
        return
    for given in ("", "web"):
        with pytest.raises(ForceRefused, match="not finished by force") as refused:
            typed(given)
        assert refused.value.hint.endswith(f"migrator finish web --force {ID}")
    assert source.state is state and ended == []
    assert typed(ID)
    assert source.state is State.FINISHED and ended == ["fenced"]


@pytest.mark.parametrize("knows", [False, True])
def test_another_host_is_none_that_is_lost(source: Migration, hosts: Hosts, nothing_real: list[str],
                                           knows: bool) -> None:
    """Its name means another one by now; the one that it went to lives, and runs it."""
    source.move(Event.TAKEN)
    hosts["hostb"].destination.take(Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP,
                                    Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE, Event.RESTORED)
    if knows:
        also_begun_on(hosts["hostc"])
    with pytest.raises(SourceStateUnknown):
        force.roll_back(source, ID, lambda: tell(source, hosts["hostc"]))
    assert nothing_real == [] and source.state is State.DUMPED


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("knows", [False, True])
def test_where_the_machine_is_off_another_host_says_nothing_of_it(
        source: Migration, hosts: Hosts, nothing_real: list[str], knows: bool, elsewhere: bool) -> None:
    """As one that was set up anew at its address; but not one that the migration was begun with, too."""
    source.move(Event.TAKEN)
    if knows:
        also_begun_on(hosts["hostc"])

    def tells() -> str:
        return tell(source, hosts["hostc"])

    for _ in range(2):  # it remembers the first time
        with pytest.raises(SourceStateUnknown) as refused:
            force.roll_back(source, ID, tells, recorded=tells if elsewhere else None)
        assert ("--machine-is-off" in refused.value.hint) is not knows and nothing_real == []
    with pytest.raises(SourceStateUnknown) if knows else contextlib.nullcontext():
        assert force.roll_back(source, ID, tells, recorded=tells if elsewhere else None, off=True).data["forced"]
    assert nothing_real == ([] if knows else ["thawed"]) and (knows or source.owes)


@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("name", ["hostb", "hostx"])
def test_who_knows_it_is_believed(source: Migration, hosts: Hosts, nothing_real: list[str], name: str,
                                  off: bool) -> None:
    """By its ticket, whatever it is called by now, and whatever was said of it."""
    source.move(Event.TAKEN)
    hosts["hostb"].peer_host = name
    hosts["hostb"].destination.take(Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP,
                                    Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE, Event.RESTORED)
    with pytest.raises(AlreadyRuns):
        force.roll_back(source, ID, lambda: tell(source, hosts["hostb"]), off=off)
    assert nothing_real == [] and source.state is State.DUMPED


@pytest.mark.parametrize(("answers", "state", "ticket", "off", "runs"), [
    ("hosta", None, "", False, True),  # it has lost its journal
    ("hostx", None, "", False, False), ("hostx", None, "", True, True),  # set up anew in its place
    *(("hostx", state, "2" * 32, off, False) for state in (State.DUMPED, State.ROLLED_BACK) for off in (False, True)),
    *(("hostx", State.DUMPED, "1" * 32, off, False) for off in (False, True)),  # it was given another name
])
def test_where_the_source_is_off_another_host_says_nothing_of_it(
        pool: Path, monkeypatch: pytest.MonkeyPatch, answers: str, state: State | None, ticket: str, off: bool,
        runs: bool) -> None:
    there = SimpleNamespace(peer_host=answers, tunnel=None,
                            call_within=by_op(lambda *_, **__: {"state": state, "ticket": ticket}))
    monkeypatch.setattr(ask_source, "connected", lambda *_: contextlib.nullcontext(there))
    with Journal(pool / "destination.db") as journal:
        migration = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=pool, peer="root@hosta",
                                   event=Event.RECEIVE, ticket="1" * 32)
        for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN):
            migration.move(event)

        def let_run() -> bool:
            return force.let_run(migration, ID, lambda: ask_source.ask(Asking(), migration), off=off)

        if runs:
            assert let_run()
            return
        with pytest.raises((NotKnownThere, OutOfOrder)) as refused:
            let_run()
        works = f"migrator restore-dump web --force {ID} --machine-is-off"
        assert (works in refused.value.hint) is (state is None) and migration.ending.forced_at is None


@pytest.mark.parametrize(("answers", "peer", "counts"), [
    ("hosta", "hosta", True), ("hosta", "root@hosta", True), ("hostx", "hosta", False), ("HERE", "HERE", False),
    ("hostx", "peer:hosta", True),  # which its key has told
])
def test_who_does_not_know_it_must_be_the_source(pool: Path, monkeypatch: pytest.MonkeyPatch, answers: str, peer: str,
                                                 counts: bool) -> None:
    answers, peer = (each.replace("HERE", this_host()) for each in (answers, peer))
    there = SimpleNamespace(peer_host=answers, tunnel=None, call_within=by_op(lambda *_, **__: {"state": None}))
    monkeypatch.setattr(ask_source, "connected", lambda *_: contextlib.nullcontext(there))
    with Journal(pool / "destination.db") as journal:
        migration = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=pool, peer=peer,
                                   event=Event.RECEIVE)
        with contextlib.nullcontext() if counts else pytest.raises(NotKnownThere):
            assert ask_source.ask(Asking(), migration) is None


MINE, OTHERS = "1" * 32, "2" * 32


@pytest.mark.parametrize(("state", "ticket", "counts"), [
    *((state, MINE, True) for state in (State.DUMPED, State.ROLLED_BACK, State.PREPARED)),
    *((state, OTHERS, False) for state in (State.DUMPED, State.ROLLED_BACK, State.PREPARED, State.FINISHED)),
    *((state, None, False) for state in sorted(resume_rules.LETS_RUN)),
    *((state, "", True) for state in sorted(resume_rules.TAKEN_BACK)),  # by a key that does not say whose it is
    (State.PREPARING, "", True),  # it has not recorded the first answer yet
])
def test_who_says_that_it_may_run_has_the_ticket(pool: Path, monkeypatch: pytest.MonkeyPatch, state: State,
                                                 ticket: str | None, counts: bool) -> None:
    """Another host may be reached by the source's name, and answer what it likes."""
    answer = {"state": state, "leave": 60.0} | ({} if ticket is None else {"ticket": ticket})
    there = SimpleNamespace(peer_host="hosta", tunnel=None, call_within=by_op(lambda *_, **__: answer))
    monkeypatch.setattr(ask_source, "connected", lambda *_: contextlib.nullcontext(there))
    with Journal(pool / "destination.db") as journal:
        migration = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=pool, peer="root@hosta",
                                   event=Event.RECEIVE, ticket=MINE)
        with contextlib.nullcontext() if counts else pytest.raises(NotKnownThere):
            assert ask_source.ask(Asking(), migration) is state
        if not counts:
            with pytest.raises(SourceNeeded):
                ask_source.leave_for(Asking(), migration, 60.0)
        migration.learn(ticket="")  # an older version has begun it
        assert ask_source.ask(Asking(), migration) is state


@pytest.mark.parametrize("state", [None, State.DUMPED, State.ROLLED_BACK])
@pytest.mark.parametrize(("fingerprint", "counts"), [("THEIRS", True), ("another's", False), ("", True)])
def test_a_source_that_is_a_peer_is_known_by_its_fingerprint(pool: Path, monkeypatch: pytest.MonkeyPatch,
                                                             state: State | None, fingerprint: str,
                                                             counts: bool) -> None:
    """Its name may be that of another one by now; over SSH (--source) there is none."""
    there = SimpleNamespace(peer_host="hosta", tunnel=None,
                            call_within=by_op(lambda *_, **__: {"state": state, "ticket": MINE}))
    monkeypatch.setattr(ask_source, "connected", lambda *_: contextlib.nullcontext(there))
    monkeypatch.setattr(ask_source, "fingerprint", lambda _: fingerprint)
    with Journal(pool / "destination.db") as journal:
        migration = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=pool, peer="peer:hosta",
                                   event=Event.RECEIVE, ticket=MINE, caller="peer:THEIRS")
        with contextlib.nullcontext() if counts else pytest.raises(NotKnownThere):
            assert ask_source.ask(Asking(), migration) is state
# --- a migration goes on with the host that it has begun with -------------------------------------------------


def resumed(pool: Path, journal: Journal, migration: Migration, where: str) -> Move:
    """`migrator resume web -d WHERE`, up to the first connection."""
    options = resume.ResumeOptions(NamedContainer("web"), where)
    (pool / "config").write_text("lxc.uts.name = web\n")
    container = SimpleNamespace(name="web", lxcpath=pool, config_file=pool / "config", mapped_root=0)
    return Move("resume", options.request(migration), MoveOptions.resumed(migration, options.given), journal,
                container, migration)  # type: ignore[arg-type]


@pytest.mark.parametrize("answered", [False, True])
def test_another_host_takes_up_nothing(pool: Path, hosts: Hosts, answered: bool) -> None:
    """Every record names the first one: whose silence would then let a rollback by force make two copies."""
    with Journal(pool / "journal.db") as journal:
        migration = journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=pool, peer="root@hostc", bridges={},
                                   event=Event.SEND, destination_host="hostc", rounds=[], one_shot=True, options={},
                                   destination_lxcpath=str(pool / "hostb"))
        if answered:
            migration.move(Event.SEND, ticket=hosts["hostc"].ask("begin")["ticket"])
        ticket, move = migration.ticket, resumed(pool, journal, migration, "root@hostb")
        there: Any = hosts["hostb"]
        for step in (lambda: drive_next.next_stage(move, there),
                     lambda: send_disk.carry_out(move.request, journal, migration, move.container, there, 1)):
            with pytest.raises(AlreadyMigrating, match="to root@hostc") as refused:
                step()
            assert "migrator resume web" in refused.value.hint
        assert there.destination.state is None and migration.ticket == ticket
        right = cast("Connection", hosts["hostc"])
        assert drive_next.next_stage(resumed(pool, journal, migration, "root@hostc"), right) == "prepare-data"


@pytest.mark.parametrize(("where", "answers", "goes_on"), [
    ("root@10.0.3.2", "hostc", True),  # the same host, as its ticket proves
    ("root@hostc", "hostx", True),  # it was given another name since
    ("root@hostc", "forgotten", True),  # it is that host, and has lost its journal
    ("root@hostc", "hostx, forgotten", False),  # its name means another one by now
    ("root@10.0.3.2", "forgotten", False),  # nothing proves it
])
def test_who_is_the_host_that_it_began_with(pool: Path, hosts: Hosts, where: str, answers: str, goes_on: bool) -> None:
    with Journal(pool / "journal.db") as journal:
        migration = journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=pool, peer="root@hostc",
                                   event=Event.SEND, destination_host="hostc", rounds=[], options={})
        there = hosts["hostc"]
        ticket = there.ask("begin")["ticket"]
        migration.move(Event.SEND, ticket="of a journal that was lost" if "forgotten" in answers else ticket)
        there.peer_host = "hostx" if "hostx" in answers else "hostc"
        expected = (contextlib.nullcontext() if goes_on else
                    pytest.raises(AlreadyMigrating if "10.0.3.2" in where else NotKnownThere))
        with expected:
            assert drive_next.next_stage(resumed(pool, journal, migration, where),
                                         cast("Connection", there)) == "prepare-data"


@pytest.mark.parametrize(("ticket", "answered", "recorded", "found", "same_place", "is_it"), [
    ("t", "t", "", "", False, True), ("t", "t", "key", "another", False, True),
    ("t", "u", "", "", True, True), ("t", "u", "", "", False, False), ("t", "", "", "", True, True),
    ("", "", "", "", True, True), ("", "", "", "", False, False), ("", "u", "", "", False, False),
    ("t", "u", "key", "key", False, True), ("t", "u", "key", "another", True, False), ("", "", "key", "", True, False),
    ("t", "u", "", "key", True, False),  # it has begun over SSH
])
def test_what_proves_which_host_it_is(ticket: str, answered: str, recorded: str, found: str, same_place: bool,
                                      is_it: bool) -> None:
    assert resume_rules.is_recorded_host(ticket, answered, recorded, found, same_place=same_place) is is_it
