# SPDX-License-Identifier: GPL-2.0-or-later
"""For how long a connection keeps others off a container: a peer must keep nobody off one that may stand frozen."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.copies import bases, resume_rules
from migrator.errors import MigratorError
from migrator.errors.connection import ConnectionLost, NotAllowed
from migrator.errors.containers import ContainerExists, InvalidName
from migrator.errors.data import NoSpace
from migrator.errors.this_host import Busy
from migrator.record import grant, migration_paths
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, IllegalMove, Role, State
from migrator.remote.answering import REST, Service
from migrator.transfer.rpc import Takeover
from tests.stages.callers import ID, OTHER, Here, here, peer  # noqa: F401 -- a fixture

EARLIER = "0000000e"


def kept_off(here: Here, lxcpath: Path | None = None) -> bool:
    """Whether root, typing a command here, has to wait."""
    with Journal(here.journal.path), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(migration_paths.locked("web", lxcpath=lxcpath or here.pool))
        except Busy:
            return True
        return False


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for."""
    monkeypatch.setattr(migration_paths, "MOMENT_LIMIT", 0.0)


@pytest.fixture
def ask(here: Here, moment: None) -> Iterator[Callable[..., Any]]:
    """A request of a peer's, over one connection that stands as long as the test."""
    both = peer("hosta", "receive", f"lxcpath={here.pool}", f"lxcpath={here.second}")
    honest = here.caller(both)
    with contextlib.ExitStack() as stack:
        here.stack = stack
        yield lambda op, **fields: honest(op, stays=True, **fields)


class Silent:
    """A source that does not say that it goes on."""

    timeout = 1.0

    def receive(self, **_: float) -> None:
        raise ConnectionLost(destination="hosta", reason="it ended")


def goes_out(here: Here) -> Migration:
    """The container of that name goes from here to another host: it may stand frozen."""
    made = here.journal.create(id=OTHER, role=Role.SOURCE, name="web", lxcpath=here.pool, peer="root@hostc",
                               event=Event.SEND, rounds=[], destination_host="hostc", ticket="ab" * 16)
    made.move(Event.SENT)
    made.move(Event.FREEZE)
    made.move(Event.OFFER)
    return made


def test_another_container_of_that_name_is_not_waited_for(here: Here, ask: Callable[..., Any]) -> None:
    """In an LXC path of root's alone it may stand frozen, and the transfer into this one take hours."""
    ask("begin")
    assert kept_off(here), "who else brings it there waits"
    assert not kept_off(here, here.second)


def test_one_connection_may_bring_both(here: Here, ask: Callable[..., Any]) -> None:
    ask("begin")
    ask("begin", id=OTHER, lxcpath=str(here.second))
    assert kept_off(here) and kept_off(here, here.second)
    ask("abandon", id=OTHER, lxcpath=str(here.second))
    assert kept_off(here) and not kept_off(here, here.second)


def test_what_was_given_up_is_let_go(here: Here, ask: Callable[..., Any]) -> None:
    ask("begin")
    assert kept_off(here)
    ask("abandon", held=[])
    assert not kept_off(here)


def test_nor_is_it_kept_where_something_is_left_of_it_for_now(here: Here, ask: Callable[..., Any],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def resists(*_: object) -> None:
        raise OSError("resists")

    ask("begin")
    monkeypatch.setattr("stages.steps.put_away.drop_attempt", resists)
    assert ask("abandon", held=[])["state"] == State.ABANDONING
    assert not kept_off(here)


@pytest.mark.parametrize("op", ["running", "finish", "abandon", "restore", "own", "received"])
def test_what_has_ended_is_not_locked_for_good(here: Here, ask: Callable[..., Any], op: str) -> None:
    """Also where the answer goes on after the first part of it."""
    here.begun(peer("hosta", "receive"))
    here.caller(peer("hosta", "receive"))("abandon", held=[])
    answer = None
    with contextlib.suppress(MigratorError, IllegalMove):
        answer = ask(op, held=[])
    assert not kept_off(here)
    if isinstance(answer, Takeover):
        with contextlib.suppress(MigratorError):
            answer.run(Silent())  # type: ignore[arg-type]
        assert not kept_off(here)


@pytest.mark.parametrize("state", [State.ABANDONED, State.FINISHED])
@pytest.mark.parametrize("op", ["begin", "begin another", "running", "finish", "abandon", "restore", "own", "transfer",
                                "dump-begin", "dump-drop", "import", "received"])
def test_what_may_stand_frozen_is_never_locked(here: Here, ask: Callable[..., Any], op: str, state: State) -> None:
    """Not for a moment: who asks again and again would have the lock most of the time."""
    honest = peer("hosta", "receive")
    here.begun(honest)
    if state is State.ABANDONED:
        here.caller(honest)("abandon", held=[])
    else:
        came = here.journal.by_id(ID, Role.DESTINATION)
        assert came
        for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN,
                      Event.RESTORE, Event.RESTORED, Event.FINISHED):
            came.move(event, rounds=[{"uuid": "x"}], attempt=1, restored_at=1.0)
    goes_out(here)
    with migration_paths.locked("web", lxcpath=here.pool):  # by who has frozen it
        try:
            answer = ask("begin", id=EARLIER) if op == "begin another" else ask(op, held=[])
            if isinstance(answer, Takeover):
                answer.run(Silent())  # type: ignore[arg-type]
        except Busy:
            pytest.fail("it has tried to lock it")
        except (MigratorError, IllegalMove):  # it has ended
            pass
    assert not kept_off(here)


def test_its_bases_stay_meanwhile(here: Here, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes out from here may start from one of them."""
    dropped: list[str] = []
    here.begun(peer("hosta", "receive"))
    ask("abandon", held=[])
    monkeypatch.setattr(bases, "drop", lambda migration, **_: dropped.append(migration.id))
    ask("abandon", held=[])
    assert dropped == [ID], "else they go by what the source has of them"
    dropped.clear()
    goes_out(here)
    assert ask("abandon", held=[])["state"] == State.ABANDONED
    assert not dropped


def test_the_hosts_own_containers_are_not_kept_locked(here: Here) -> None:
    here.layout.container.mkdir()
    (here.layout.container / "config").write_text("lxc.uts.name = web\n")
    ask = here.caller(peer("hosta", "receive"))
    with pytest.raises(ContainerExists):
        ask("begin", stays=True)
    with migration_paths.locked("web", lxcpath=here.pool):  # its connection still stands
        pass


def test_a_refusal_leaves_no_lock(here: Here) -> None:
    """Else who may bring containers could keep everybody off any of them, for as long as its connection stands."""
    ask = here.caller(peer("hosta", "receive"))
    here.begun(peer("hostc", "receive"))  # which nobody works on at this moment
    with pytest.raises(NotAllowed):
        ask("begin", id=OTHER, stays=True)
    with pytest.raises(MigratorError):
        ask("begin", id=OTHER, name="large", disk_bytes=1 << 60, stays=True)
    assert ask("abandon", id=OTHER, name="own", stays=True)["state"] == State.ABANDONED  # it has never heard of that
    for name in ("web", "large", "own"):
        with migration_paths.locked(name, lxcpath=here.pool):
            pass
    # What it has begun is its own.
    ask("begin", id="00000007", name="shop", stays=True)
    with pytest.raises(Busy), migration_paths.locked("shop", lxcpath=here.pool):
        pass


# --- who is asked, as the source ------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"never": True}, {"within": 60.0}], ids=str)
def test_the_source_is_not_kept_locked_by_whom_it_answers(here: Here, moment: None, fields: dict[str, Any]) -> None:
    """The destination may not even be allowed to bring anything here."""
    asking = peer("hostc")
    made = goes_out(here)
    made.note("told", destination_fingerprint=asking.caller.removeprefix("peer:"))
    if "never" in fields:
        made.move(Event.ROLL_BACK, abandoned=False, forced=True)
        made.move(Event.ROLLED_BACK)
    with contextlib.ExitStack() as stack:
        here.stack = stack
        answer = here.caller(asking)("source-state", stays=True, id=OTHER, **fields)
        assert answer["leave"] == fields.get("within", 0.0) and not kept_off(here)
    made.refresh()
    assert made.owes is False and (made.state in resume_rules.LETS_RUN) is ("within" in fields)


# --- who asks again and again ---------------------------------------------------------------------------------


class Rest:
    """A clock on which nothing happens but rest."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.mark.parametrize("restricted", [True, False])
def test_who_asks_again_and_again_rests(here: Here, moment: None, restricted: bool,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who has to lock it, as a watchdog does, would hardly ever find it free."""
    rest = Rest()
    monkeypatch.setattr("migrator.remote.answering.REST", REST)
    granted = peer("hosta", "receive") if restricted else grant.ROOT
    with contextlib.ExitStack() as stack:
        service = Service(here.journal, stack, granted, lambda: rest.now, rest.sleep)
        for _ in range(5):
            with service.locking("web", here.pool) as let_go:
                let_go()
        with migration_paths.locked("web", lxcpath=here.pool):
            for _ in range(5):
                with pytest.raises(Busy):
                    service.lock("web", here.pool)
        assert rest.now == pytest.approx(100.0 + (9 * REST if restricted else 0))
        rest.now += REST
        service.lock("web", here.pool)
        service.lock("web", here.pool)  # which it has
        assert rest.now == pytest.approx(100.0 + REST + (9 * REST if restricted else 0))


def test_an_import_ends_before_its_container_is_let_go(here: Here, moment: None,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of the second migration of one connection, whose container it has locked after the first's import."""
    locked: list[bool] = []

    def wait(*_: object) -> bool:
        locked.append(kept_off(here))
        return True

    monkeypatch.setattr("migrator.transfer.live_import.Behind.wait", wait)
    with contextlib.ExitStack() as stack:
        service = Service(here.journal, stack)
        for _ in range(2):
            service.lock("web", here.pool)
            service.import_behind(here.pool / "disk-1", here.pool / "target")
            service.end_request()  # as after `abandon`: nothing goes on
        service.lock("web", here.pool)
        service.import_behind(here.pool / "disk-1", here.pool / "target")
        locked.clear()
    assert locked[:1] == [True]


def test_what_is_refused_leaves_no_lock_files(here: Here, moment: None) -> None:
    """/run is small, and any name will do: what is recorded has its files, and is bounded."""
    ask = here.caller(peer("hosta", "receive"))
    for number in range(3):
        with pytest.raises(NoSpace):
            ask("begin", name=f"web{number}", disk_bytes=1 << 62)
        with pytest.raises(InvalidName):
            ask("begin", name=f"web{number}", source_lxcpath="..")
    assert list((here.pool.parent / "run" / "lock").iterdir()) == []
    ask("begin")
    assert len(list((here.pool.parent / "run" / "lock").iterdir())) == 3
