# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts as a lost connection, how long the next one is waited for, and that each is told once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from migrator.base import log
from migrator.errors import Interrupted
from migrator.errors.connection import ConnectionLost, HostUnreachable, ProtocolError, RemoteMissing
from migrator.errors.containers import AlreadyRuns
from migrator.errors.data import NoSpace
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import SourceRunsAgain, SourceStateUnknown
from migrator.errors.this_host import Busy
from migrator.remote.destination import ConnectOptions
from stages.steps import reconnect
from stages.steps.reconnect import Link, is_lost
from tunnel.tunnel_errors import PeerAbsent, PeerUnknown, TunnelBroken

LOST = ConnectionLost(destination="beta", reason="it was cut")
BUSY = Busy(name="web", pid=7)
BUSY.host = "beta"


@pytest.mark.parametrize(("error", "lost"), [
    (LOST, True),
    (HostUnreachable(destination="beta", reason="no route"), True),
    (TunnelBroken(name="beta", reason="silence"), True),
    (PeerAbsent(name="beta", server="r"), True),
    (SourceRunsAgain(LOST, name="web", next="x"), True),
    (SourceStateUnknown(BUSY, name="web", destination="beta", rollback="x"), True),
    (BUSY, True),
    (Busy(name="web", pid=7), False),  # another command on this host
    (NoSpace(where="/pool", free="1", needed="2", what="it"), False),
    (SourceRunsAgain(NoSpace(where="/pool", free="1", needed="2", what="it"), name="web", next="x"), False),
    (AlreadyRuns(name="web", destination="beta", next="x"), False),
    (ProtocolError(reason="x"), False),
    (RemoteMissing(destination="beta", reason="x"), False),
    (PeerUnknown(name="beta"), False),
])
def test_what_is_a_lost_connection(error: DocumentedError, lost: bool) -> None:
    assert is_lost(error) is lost


class Clock:
    """A clock that goes on only while something sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += max(seconds, 1e-3)


class There:
    """A connection, as far as a Link looks at it."""

    peer_host = "beta"
    acknowledged = 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def answers() -> list[DocumentedError]:
    """What the next attempts to connect end with; after these they succeed."""
    return []


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch, clock: Clock, answers: list[DocumentedError]) -> Link:
    @contextlib.contextmanager
    def connected(_options: ConnectOptions, _where: str, limit: float | None = None) -> Iterator[There]:
        if answers:
            clock.now += min(3.0, limit or 3.0)
            raise answers.pop(0)
        yield There()

    monkeypatch.setattr(reconnect, "connected", connected)
    return Link(ConnectOptions(), "beta", 60.0, clock)


def waits(link: Link, clock: Clock, error: DocumentedError, left: float | None = None, work: float = 0.0) -> float:
    """How long it tries again after `error`, which comes `work` seconds after each try."""
    begun = clock.now
    end = None if left is None else begun + left
    with pytest.raises(type(error)) as caught:
        while True:
            link.wait_after(error, None if end is None else end - clock.now)
            clock.now += work
            assert clock.now < begun + 100_000, "for ever"
    assert caught.value is error
    return clock.now - begun


def test_the_first_connection_is_not_waited_for(link: Link, clock: Clock) -> None:
    assert waits(link, clock, HostUnreachable(destination="beta", reason="no route")) == 0


def test_another_error_is_not_waited_for(link: Link, clock: Clock) -> None:
    link.connect()
    assert waits(link, clock, NoSpace(where="/pool", free="1", needed="2", what="it")) == 0


def test_never(link: Link, clock: Clock) -> None:
    link._reconnect = 0.0
    link.connect()
    assert waits(link, clock, LOST) == 0


def test_for_as_long_as_was_asked_for(link: Link, clock: Clock) -> None:
    link.connect()
    assert 60 <= waits(link, clock, LOST) <= 61
    assert link.there is None, "a connection that was lost is not used again"


@pytest.mark.parametrize("error", [LOST, BUSY])
def test_as_long_as_it_may_be_frozen(link: Link, clock: Clock, error: DocumentedError) -> None:
    link.connect()
    assert 10 <= waits(link, clock, error, left=10) <= 10.01


def test_a_busy_destination_is_asked_over_the_same_connection(link: Link, clock: Clock) -> None:
    there = link.connect()
    link.wait_after(BUSY)
    assert link.connect() is there


def test_progress_begins_the_time_anew(link: Link, clock: Clock) -> None:
    """Of a link that comes and goes all the time, but carries something each time."""
    for _ in range(50):
        link.connect().acknowledged = 4096
        link.wait_after(LOST)
        clock.now += 30
    assert waits(link, clock, LOST) > 25


@pytest.mark.parametrize("outcome", [False, True])
def test_a_link_that_carries_nothing_to_keep_is_given_up(link: Link, clock: Clock, outcome: bool) -> None:
    """Connections are made, and lost again, before anything, or only parts of a dump, came through."""
    error = SourceRunsAgain(LOST, name="web", next="x") if outcome else LOST
    begun = clock.now
    with pytest.raises(type(error)):
        while clock.now < begun + 10_000:
            link.connect().acknowledged = 4096 if outcome else 0
            link.wait_after(error)
            clock.now += 20
    assert clock.now < begun + 100


def test_what_was_completed_begins_the_time_anew(link: Link, clock: Clock) -> None:
    link.connect()
    link.wait_after(LOST)
    clock.now += 59
    link.connect()
    link.progressed()
    assert 60 <= waits(link, clock, LOST) <= 61


def test_each_loss_is_told_once(link: Link, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(log, "say", lambda kind, _text, **fields: said.append((kind, fields)))
    link.connect()
    for _ in range(2):
        for _ in range(4):
            link.wait_after(LOST)
        link.connect()
    assert [kind for kind, _ in said] == ["waiting", "reconnected"] * 2
    assert said[0][1]["error"]["code"] == "connection-lost" and said[0][1]["seconds_left"] == 60
    assert said[1][1]["tries"] == 4


# --- at once, while a container is frozen here ---


def test_a_connection_that_can_be_had_at_once(link: Link, clock: Clock, answers: list[DocumentedError]) -> None:
    old, begun = link.connect(), clock.now
    answers += [LOST]
    new = link.at_once(SourceRunsAgain(LOST, name="web", next="x"), 60)
    assert new is link.there and new is not old
    assert clock.now - begun < reconnect.BRIDGE


@pytest.mark.parametrize("left", [60.0, 2.0])
def test_one_that_cannot(link: Link, clock: Clock, answers: list[DocumentedError], left: float) -> None:
    link.connect()
    begun = clock.now
    answers += [HostUnreachable(destination="beta", reason="refused") for _ in range(100)]
    with pytest.raises(ConnectionLost):
        link.at_once(LOST, left)
    assert clock.now - begun == pytest.approx(min(left, reconnect.BRIDGE), abs=0.01)
    answers.clear()
    link.wait_after(LOST)  # thawed, it goes on as ever
    link.connect()


@pytest.mark.parametrize("case", ["silence", "tunnel", "another error", "never"])
def test_when_it_is_not_tried(link: Link, clock: Clock, case: str) -> None:
    link._destination = "peer:beta" if case == "tunnel" else "beta"
    link.connect()
    error: DocumentedError = ConnectionLost(destination="beta", reason="x")
    if case == "silence":
        error.__cause__ = TimeoutError()
    elif case == "another error":
        error = NoSpace(where="/pool", free="1", needed="2", what="it")
    elif case == "never":
        link._reconnect = 0.0
    begun = clock.now
    with pytest.raises(type(error)) as caught:
        link.at_once(error, 60)
    assert caught.value is error and clock.now == begun


def test_what_arrives_of_a_dump_is_no_progress(link: Link, clock: Clock) -> None:
    """Else a link that comes and goes would have it frozen and thawed for ever."""
    begun = clock.now
    with pytest.raises(SourceRunsAgain):
        while clock.now < begun + 10_000:
            link.connect().acknowledged = 4096
            link.at_once(LOST, 60).acknowledged = 4096
            clock.now += 5
            link.wait_after(SourceRunsAgain(LOST, name="web", next="x"))
            clock.now += 5
    assert clock.now < begun + 100


@pytest.mark.parametrize("another", [Interrupted(signal="SIGINT"), RemoteMissing(destination="beta", reason="gone")])
def test_what_is_no_lost_connection_ends_it(link: Link, answers: list[DocumentedError],
                                            another: DocumentedError) -> None:
    link.connect()
    answers += [HostUnreachable(destination="beta", reason="refused"), another]
    with pytest.raises(type(another)):
        link.at_once(LOST, 60)
