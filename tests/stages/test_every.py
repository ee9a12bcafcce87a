# SPDX-License-Identifier: GPL-2.0-or-later
"""`resume --all`, and what the other host is asked in it: one that lies, or hangs, keeps it from no other container."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.base.result import Result
from migrator.cli import parse
from migrator.errors import InternalError, MigratorError
from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.errors.containers import OutOfOrder
from migrator.record import container_lock
from migrator.record.grant import ROOT
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State
from migrator.transfer.messages import MigrationState, SourceState
from migrator.transfer.wire_codec import decoded
from stages import resume
from stages.steps import ask_source, ask_state, restore_here, resume_destination, resume_source, settling
from stages.steps.ask_source import QUICKLY
from tests.migrator.wire import by_op
from tests.stages.journals import journal, owned  # noqa: F401 -- a fixture

# ruff: noqa: F811 -- fixtures

ALL = resume.ResumeOptions(at_boot=True)
LIES: list[Any] = [{}, {"state": "thawing"}, {"state": 7}, {"state": ["owned"]}, {"state": ""}, {"state": {}}]


def record(journal: Journal, name: str, role: Role, caller: str = ROOT.caller) -> None:
    event = Event.SEND if role is Role.SOURCE else Event.RECEIVE
    journal.create(id=f"{len(journal.all()) + 1:08x}", role=role, name=name, lxcpath=Path("/pool"), peer="hosta",
                   event=event, rounds=[], caller=caller)


@pytest.fixture
def one(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Has every migration resumed; those with an error of that name fail. Returns those that had their turn."""
    monkeypatch.setattr(resume, "DEFAULT_PATH", journal.path)
    turns: list[str] = []
    errors: dict[str, Exception] = {}

    def done(_: object, name: str, *__: object, **___: object) -> Result:
        turns.append(name)
        if name in errors:
            raise errors[name]
        return Result({"name": name}, f"{name} is done.")

    def every(**failing: Exception) -> list[str]:
        errors.update(failing)
        return turns

    monkeypatch.setattr(resume, "one", done)
    yield every


@pytest.mark.parametrize("error", [
    ValueError("'thawing' is not a valid State"), KeyError("state"), FileNotFoundError(2, "No such file"),
    ConnectionLost(destination="hosta", reason="cut"), RecursionError(), OSError(28, "No space left on device"),
], ids=lambda error: type(error).__name__)
def test_one_that_fails_stops_none_of_the_others(journal: Journal, one: Callable[..., list[str]],
                                                 error: Exception) -> None:
    for name in ("first", "second"):
        record(journal, name, Role.SOURCE)
    turns = one(first=error)
    done = resume.every(ALL)
    assert turns == ["first", "second"]
    failed, other = done.data["migrations"]
    assert failed["status"] == done.status != 0 and failed["error"]["message"] and "result" not in failed
    assert other["status"] == 0 and other["result"] == {"name": "second"}
    assert "first: not done" in done.text and "second is done." in done.text


def test_who_may_stand_still_here_has_the_first_turn(journal: Journal, one: Callable[..., list[str]]) -> None:
    """A peer may have begun many, of which each is asked about."""
    for number in range(3):
        record(journal, f"peers{number}", Role.DESTINATION, "peer:1234")
    record(journal, "came", Role.DESTINATION)
    record(journal, "goes", Role.SOURCE)
    record(journal, "peers3", Role.DESTINATION, "peer:1234")
    record(journal, "goes2", Role.SOURCE)
    turns = one()
    resume.every(ALL)
    assert turns == ["goes", "goes2", "came", "peers0", "peers1", "peers2", "peers3"]


# --- what the other host says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", LIES, ids=str)
@pytest.mark.parametrize("message", [MigrationState, SourceState])
def test_a_state_is_read_strictly(message: type[MigrationState | SourceState], answer: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decoded(message, answer)


def test_which_are_states() -> None:
    assert [decoded(MigrationState, {"state": each}).state for each in (*State, None)] == [*State, None]


def test_no_question_about_a_state_waits_for_ever(journal: Journal) -> None:
    """Signs of life do not prolong it."""
    asked: list[Any] = []

    @by_op
    def call_within(*asked_: Any, **fields: Any) -> dict[str, Any]:
        asked.append((*asked_, fields))
        return {"state": None}

    there = SimpleNamespace(call_within=call_within)  # and nothing else
    assert ask_state.state(there, owned(journal)) is None  # type: ignore[arg-type]
    assert asked == [(ask_state.LIMIT, "state", {"id": "0badc0de"})]


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What it answers; `limit` is how long it was waited for."""
    said: dict[str, Any] = {}

    @contextmanager
    def connected(*_: object) -> Iterator[Any]:
        @by_op
        def call_within(limit: float, op: str, **__: object) -> Any:
            assert (limit, op) == (ask_state.LIMIT, "source-state")
            return said

        yield SimpleNamespace(peer_host="hosta", call_within=call_within)

    monkeypatch.setattr(ask_source, "connected", connected)
    monkeypatch.setattr(ask_source, "fingerprint", lambda _: "")
    return said


@pytest.mark.parametrize("answer", [*LIES, {"state": "dumped", "leave": "60"}, {"state": "dumped", "leave": None}],
                         ids=str)
def test_a_source_that_lies_lets_nothing_run(journal: Journal, source: dict[str, Any], answer: dict[str, Any]) -> None:
    source |= answer
    migration = owned(journal, ticket="ab" * 16)
    with pytest.raises(ProtocolError):
        ask_source.ask(QUICKLY, migration)
    assert ask_source.state_of_source(QUICKLY, migration) is None
    with pytest.raises(MigratorError, match="does not follow the protocol"):
        ask_source.leave_for(QUICKLY, migration, 60.0)


# --- what is run on it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/pool", "/x   (on y", "/it's", '/a "b'])
def test_a_command_is_never_read_out_of_an_advice(journal: Journal, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """The LXC path is the source's own word."""
    migration = owned(journal, source_lxcpath=path, lxcpath_given=True, other_name="db")
    ran: list[list[str]] = []

    def run(_args: object, _migration: object, argv: list[str]) -> dict[str, Any]:
        ran.append(argv)
        return {}

    monkeypatch.setattr(ask_source, "ask", lambda *_: State.DUMPED)
    monkeypatch.setattr(ask_source, "_run_on_source", run)
    ask_source.act(QUICKLY, migration, Result({}, "Known."))
    assert ran == [["migrator", "resume", "db", "-P", path, "--migration", "0badc0de", "--json"]]
    assert settling.gone(migration).hint.count("--force 0badc0de   (on hosta)") == 1


@pytest.fixture
def on_source(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], dict[str, Any]]], list[list[str]]]:
    """Has what is run there answered so, as --json; returns the commands."""
    ran: list[list[str]] = []

    def serve(argv: list[str]) -> list[str]:
        ran.append(argv)
        return argv

    @contextmanager
    def connect(*_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(serve=serve)

    def answered(answer: Callable[[list[str]], dict[str, Any]]) -> list[list[str]]:
        monkeypatch.setattr(ask_source, "_said", lambda argv, *_: json.dumps(answer(argv)).encode())
        return ran

    monkeypatch.setattr("migrator.remote.ssh.connect", connect)
    monkeypatch.setattr(ask_source, "ask", lambda *_: State.DUMPED)
    return answered


def test_a_source_goes_on_with_this_migration_alone(
        journal: Journal, monkeypatch: pytest.MonkeyPatch, on_source: Callable[..., list[list[str]]]) -> None:
    """Where that is in an LXC path that was given there alone, another container may have its name in the usual one."""
    given, usual = journal.path.parent / "given", journal.path.parent / "usual"
    for path in (given, usual):
        path.mkdir()
    here = owned(journal, source_lxcpath=str(given), lxcpath_given=False)
    with Journal(journal.path.parent / "source.db") as there:
        for id_, path in ((here.id, given), ("dddddddd", usual)):
            there.create(id=id_, role=Role.SOURCE, name="web", lxcpath=path, peer="root@hostb", event=Event.SEND,
                         rounds=[])
        taken_up: list[str] = []

        def on_source_(_: object, __: object, ___: object, migration: Migration, **____: object) -> Result:
            taken_up.append(migration.id)
            return Result({}, "")

        monkeypatch.setattr(resume, "DEFAULT_PATH", there.path)
        monkeypatch.setattr(container_lock, "LOCKS", journal.path.parent / "lock")
        monkeypatch.setattr(resume_source, "go_on", on_source_)
        monkeypatch.setattr("migrator.host.lxc.default_lxcpath", lambda: usual)
        monkeypatch.setattr("stages.steps.arguments.require_root", lambda _: None)

        def answer(argv: list[str]) -> dict[str, Any]:
            try:
                done = parse(argv[1:]).run()
                assert done
                return done.data
            except MigratorError as error:
                return {"error": error.to_json()}

        on_source(answer)
        ask_source.act(QUICKLY, here, Result({}, "Known."))
        assert taken_up == [here.id]
        there.forget(there.all()[0])  # it has ended, and another one has begun in its place
        there.create(id="eeeeeeee", role=Role.SOURCE, name="web", lxcpath=given, peer="root@hostc", event=Event.SEND,
                     rounds=[])
        with pytest.raises(OutOfOrder, match="the newest migration of web here is eeeeeeee"):
            ask_source.act(QUICKLY, here, Result({}, "Known."))
        assert taken_up == [here.id]


def test_an_older_source_goes_on_by_name_and_path(journal: Journal, on_source: Callable[..., list[list[str]]]) -> None:
    """It must not be left with a frozen container for the sake of an option that it does not know."""
    here = owned(journal, source_lxcpath="/given", lxcpath_given=False)

    def answer(argv: list[str]) -> dict[str, Any]:
        if "--migration" not in argv:
            return {"state": "rolled-back"}
        return {"error": {"code": "usage-error", "message": f"unrecognized arguments: --migration {here.id}",
                          "status": 2}}

    ran = on_source(answer)
    assert ask_source.act(QUICKLY, here, Result({}, "Known.")).data["source"] == {"state": "rolled-back"}
    assert ran[1:] == [["migrator", "resume", "web", "-P", "/given", "--json"]]


def test_what_a_source_says_otherwise_is_told(journal: Journal, on_source: Callable[..., list[list[str]]]) -> None:
    ran = on_source(lambda _: {"error": {"code": "internal-error", "fields": {"reason": "out of luck"}, "status": 2}})
    with pytest.raises(InternalError, match="out of luck"):
        ask_source.act(QUICKLY, owned(journal, source_lxcpath="/given"), Result({}, "Known."))
    assert len(ran) == 1


class Said:
    """What is printed there, in parts; an error where one comes."""

    def __init__(self, *parts: bytes | Exception, endless: bytes = b"") -> None:
        self.parts, self.endless = list(parts), endless
        self.limits: list[float] = []

    def settimeout(self, seconds: float) -> None:
        self.limits.append(seconds)

    def readinto(self, view: memoryview) -> int:
        part = self.parts.pop(0) if self.parts else self.endless
        if isinstance(part, Exception):
            raise part
        view[:len(part)] = part
        return len(part)


def said(stream: Said, limit: float = 600.0) -> bytes:
    return ask_source._said(stream, limit, "hosta")  # type: ignore[arg-type]


def test_only_the_end_of_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_source, "SAID_MAX", 10)
    assert said(Said(b"0123456789abc", b"def", b"g")) == b"789abcdefg"


def test_who_goes_on_for_ever_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second later."""
    seconds = iter(range(1000))
    monkeypatch.setattr("stages.steps.ask_source.time.monotonic", lambda: float(next(seconds)))
    stream = Said(endless=b".")
    with pytest.raises(ConnectionLost, match="within 5 seconds"):
        said(stream, 5.0)
    assert stream.limits == [4.0, 3.0, 2.0, 1.0]


def test_what_ends_it() -> None:
    lost = ConnectionLost(destination="hosta", reason="cut")
    assert said(Said(b"{}\n", lost)) == said(Said(b"{}\n", OSError(5, "?"))) == b"{}\n"
    for error in (lost, OSError(5, "?"), TimeoutError()):
        with pytest.raises(ConnectionLost):
            said(Said(error))
    with pytest.raises(ConnectionLost, match="within 600 seconds"):
        said(Said(b"{}\n", TimeoutError()))


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"null", b'"x"', b"{", b"[" * 100_000])
@pytest.mark.parametrize("among_others", [False, True])
def test_what_is_no_result(journal: Journal, monkeypatch: pytest.MonkeyPatch, text: bytes,
                           among_others: bool) -> None:
    limits: list[float] = []

    @contextmanager
    def connect(*_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(serve=lambda _: None)

    def _said(_: object, limit: float, __: str) -> bytes:
        limits.append(limit)
        return text

    monkeypatch.setattr("migrator.remote.ssh.connect", connect)
    monkeypatch.setattr(ask_source, "_said", _said)
    asking = dataclasses.replace(QUICKLY, among_others=among_others)
    with pytest.raises(InternalError, match="answered"):
        ask_source._run_on_source(asking, owned(journal), ["migrator", "resume", "web", "--json"])
    assert limits == [ask_source.AMONG_OTHERS if among_others else ask_source.SOURCE_LIMIT]


# --- what is here ---------------------------------------------------------------------------------------------


def test_a_configuration_on_a_disk_that_is_not_mounted_yet(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    migration = owned(journal)
    migration.move(Event.RESTORE)
    migration.move(Event.RESTORED, restored_at=1.0)
    config = migration.lxcpath / "web" / "config"
    config.unlink()
    config.symlink_to("/nonexistent/web.config")
    monkeypatch.setattr(restore_here, "carry_out", lambda *_, **__: pytest.fail("it runs"))
    with pytest.raises(MigratorError, match=r"web/config cannot be read: No such file"):
        resume_destination.go_on(QUICKLY, migration)
