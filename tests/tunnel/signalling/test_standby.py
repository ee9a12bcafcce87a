# SPDX-License-Identifier: GPL-2.0-or-later
"""An agent at its rendezvous: renewals while one is down, and others that wait with the same identity."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.tunnel.clock import eventually, look, pass_time, standing
from tests.tunnel.serving import Serving, serving
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer
from tunnel.identity.tunnel_config import Server
from tunnel.rendezvous.limits import Limits, Rate
from tunnel.session.channel import Called
from tunnel.signalling.client import Signalling
from tunnel.signalling.link import Link, unavailable
from tunnel.signalling.standby import BACKOFF, Waiting
from tunnel.tunnel_errors import RendezvousUnavailable

NOBODY = Server.parse("wss://rendezvous.example")
RENEWALS = 100
PLENTY = Limits(connections_per_address=1000, connects=Rate(1000, 1000), lines_per_identity=100)


class Connecting:
    """Stands for `Signalling.connect`: how many are under way, and what becomes of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = self.pending = self.most = 0
        self.fails = asyncio.Semaphore(0)
        monkeypatch.setattr(Signalling, "connect", self)

    async def __call__(self, servers: list[Server], *_: Any, **__: Any) -> Signalling:
        self.begun += 1
        self.pending += 1
        self.most = max(self.most, self.pending)
        try:
            await self.fails.acquire()
        finally:
            self.pending -= 1
        raise unavailable(servers[0], "it is down")


def tasks() -> int:
    return len(asyncio.all_tasks())


@standing
async def test_renewals_while_a_server_is_down_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = Connecting(monkeypatch)
    waiting = Waiting([NOBODY], Identity.generate())
    await eventually(lambda: connecting.pending == 1)
    before = tasks()
    for _ in range(RENEWALS):
        waiting.renew()
        await asyncio.sleep(0)
    assert tasks() == before, "a try that is under way is let come to its end: a path may be slow"
    connecting.fails.release()
    await eventually(lambda: connecting.begun == 2)  # at once, as it was asked for meanwhile
    connecting.fails.release()
    await eventually(lambda: connecting.pending == 0)
    for number in range(3, 6):
        await look()
        assert connecting.begun == number - 1, "now in its turn"
        waiting.renew()  # or when there may be another path
        await eventually(lambda number=number: connecting.begun == number)  # type: ignore[misc]
        connecting.fails.release()
        await eventually(lambda: connecting.pending == 0)
    assert (connecting.most, tasks()) == (1, before)
    await waiting.close()


@standing
async def test_renewals_while_the_new_connection_does_not_come_add_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one stays, as it may be alive after all."""
    host, guest = Identity.generate(), Identity.generate()
    said: list[str] = []
    connect = Signalling.connect
    async with serving() as there:
        waiting = Waiting([there.server], host, said.append)
        await eventually(lambda: said)
        connecting = Connecting(monkeypatch)
        waiting.renew()
        await eventually(lambda: connecting.pending == 1)
        for _ in range(RENEWALS):
            waiting.renew()
        await look()
        assert connecting.begun == 1
        connecting.fails.release()
        await eventually(lambda: connecting.begun == 2)
        assert connecting.pending == 1
        async with await connect([there.server], guest) as caller:
            assert await caller.finds(host.public)
        await waiting.close()


@standing
async def test_a_renewal_begins_with_the_shortest_pause_again(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = Connecting(monkeypatch)
    said: list[str] = []
    waiting = Waiting([NOBODY], Identity.generate(), said.append)
    for number in range(1, 4):
        await eventually(lambda number=number: connecting.begun == number)  # type: ignore[misc]
        connecting.fails.release()
        await eventually(lambda number=number: len(said) == number)  # type: ignore[misc]
        await look()
        pass_time(BACKOFF[1])
    await eventually(lambda: connecting.begun == 4)
    waiting.renew()
    connecting.fails.release()
    connecting.fails.release()
    await eventually(lambda: len(said) == 5)
    assert [text.rpartition("next try in ")[2] for text in said] == ["1 s", "2 s", "4 s", "8 s", "1 s"]
    await waiting.close()


@standing
async def test_a_renewal_is_no_other_that_has_taken_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rendezvous may tell the old connection before the new one has been welcomed."""
    said: list[str] = []
    connect, welcomed = Signalling.connect, asyncio.Event()

    async def slowly(*arguments: Any, **options: Any) -> Signalling:
        found = await connect(*arguments, **options)
        await welcomed.wait()
        return found

    async with serving() as there:
        waiting = Waiting([there.server], Identity.generate(), said.append)
        await eventually(lambda: len(said) == 1)
        (old,) = waiting._places[there.server]
        monkeypatch.setattr(Signalling, "connect", slowly)
        waiting.renew()
        await eventually(lambda: old.taken)
        await look()
        welcomed.set()
        await eventually(lambda: len(said) == 2)
        assert old not in waiting._places[there.server]
        await waiting.close()
    assert set(said) == {f"waiting at {there.server}"}


async def waits(there: Serving, host: Identity, on_state: Callable[[str], None] | None = None) -> Waiting:
    """Over a connection that stands."""
    waiting = Waiting([there.server], host, on_state)
    await eventually(lambda: waiting._places[there.server][0].over)
    return waiting


async def called(waiting: Waiting, host: Identity, caller: Signalling, guest: Identity) -> Called:
    """The channel to a caller whose ring has just come."""
    await caller.ring(host.public, b"a ring")
    over, message = await anext(aiter(waiting))
    return Called(host, Peer("caller", guest.public, (), 0.0), os.urandom(16), lambda _: None, over, message.line,
                  waiting.renew, waiting.newest)


@standing
async def test_a_ring_that_came_before_a_renewal_is_answered_after_it() -> None:
    host, guest = Identity.generate(), Identity.generate()
    async with serving(PLENTY) as there, await Signalling.connect([there.server], guest) as caller:
        waiting = await waits(there, host)
        channel = await called(waiting, host, caller, guest)
        first = channel._over
        waiting.renew()
        await eventually(lambda: first.ended)  # the new one may not have been welcomed yet
        await channel.send("refusal")
        assert (await caller.receive()).sender == host.public.id
        assert channel._over is not first
        await waiting.close()
        with pytest.raises(RendezvousUnavailable):
            await channel.send("refusal")


@standing
async def test_what_is_replaced_while_it_answers_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    host, guest = Identity.generate(), Identity.generate()
    async with serving(PLENTY) as there, await Signalling.connect([there.server], guest) as caller:
        waiting = await waits(there, host)
        channel = await called(waiting, host, caller, guest)
        first, send = channel._over, Link.send

        async def lost(link: Link, message: dict[str, Any]) -> None:
            if link is not first._link:
                await send(link, message)

        monkeypatch.setattr(Link, "send", lost)
        sending = asyncio.create_task(channel.send("refusal"))
        await eventually(lambda: first._answers)
        waiting.renew()
        await sending
        assert (await caller.receive()).sender == host.public.id
        await waiting.close()


@standing
async def test_a_ring_that_is_on_its_way_at_a_renewal_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rendezvous has sent it to the old connection, and its host reads of the new one first."""
    host, guest = Identity.generate(), Identity.generate()
    async with serving(PLENTY) as there, await Signalling.connect([there.server], guest) as caller:
        waiting = await waits(there, host)
        (old,) = waiting._places[there.server]
        first, receive, gate = old.over, Link.receive, asyncio.Event()
        assert first

        async def slowly(link: Link, timeout: float | None = None) -> dict[str, Any]:
            found = await receive(link, timeout)
            if link is first._link:
                await gate.wait()
            return found

        monkeypatch.setattr(Link, "receive", slowly)
        await called(waiting, host, caller, guest)  # what it was reading already
        await caller.ring(host.public, b"on its way")
        waiting.renew()
        await eventually(lambda: (new := waiting._places[there.server][0]) is not old and new.over)
        gate.set()
        assert (await anext(aiter(waiting)))[1].data == b"on its way"
        assert old.task
        await old.task
        await waiting.close()


@standing
async def test_who_comes_back_beside_his_successor_does_not_throw_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old connection was lost while the new one was made: both tries are under way at once."""
    host = Identity.generate()
    said: list[str] = []
    connect = Signalling.connect
    gates: list[asyncio.Event] = []

    async def slowly(*arguments: Any, **options: Any) -> Signalling:
        gates.append(asyncio.Event())
        await gates[-1].wait()
        return await connect(*arguments, **options)

    async with serving(PLENTY) as there:
        waiting = await waits(there, host, said.append)
        (old,) = waiting._places[there.server]
        monkeypatch.setattr(Signalling, "connect", slowly)
        waiting.renew()
        await eventually(lambda: len(gates) == 1)
        assert old.over
        await old.over._link.close()
        old.at_once.set()
        await eventually(lambda: len(gates) == 2)
        gates[0].set()
        await eventually(lambda: waiting._places[there.server][0] is not old)
        gates[1].set()
        assert old.task
        await asyncio.gather(old.task, return_exceptions=True)
        assert (await waiting.newest(there.server)) is waiting._places[there.server][0].over
        assert not any("another agent" in line for line in said), said
        await waiting.close()


@standing
async def test_who_is_heard_elsewhere_meanwhile_is_answered_there() -> None:
    """The initiator has come by another server while the connection to the first was looked for."""
    host, guest = Identity.generate(), Identity.generate()
    sent: list[tuple[str, str]] = []

    class Over:
        def __init__(self, server: str) -> None:
            self.server = server

        async def send(self, _: object, __: bytes, line: str) -> None:
            sent.append((self.server, line))

    first: Any = Over("a")
    other: Any = Over("b")

    async def newest(server: Any) -> Any:
        if server == "a":
            channel._over, channel._line = other, "line at b"
        return first if server == "a" else other

    channel = Called(host, Peer("caller", guest.public, (), 0.0), os.urandom(16), lambda _: None, first, "line at a",
                     lambda: None, newest)
    await channel.send("refusal")
    assert sent == [("b", "line at b")]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What was found each time that a `Waiting` has looked whether its place is taken."""
    found: list[bool] = []
    is_taken = Waiting._is_taken

    async def looking(self: Waiting, server: Server) -> bool:
        found.append(await is_taken(self, server))
        return found[-1]

    monkeypatch.setattr(Waiting, "_is_taken", looking)
    return found


async def renewing(waiting: Waiting, condition: Callable[[], object]) -> None:
    """Wait for it while nothing pauses."""

    def holds() -> object:
        waiting.renew()
        return condition()

    await eventually(holds)


def test_who_has_been_replaced_comes_back_when_the_other_has_gone_and_throws_nobody_out(looks: list[bool]) -> None:
    host, guest = Identity.generate(), Identity.generate()
    said: list[str] = []

    @standing
    async def test() -> None:
        async with serving(PLENTY) as there, await Signalling.connect([there.server], guest) as caller:
            waiting = Waiting([there.server], host, said.append)
            await eventually(lambda: len(said) == 1)
            async with await Signalling.connect([there.server], host, waits=True) as other:
                await eventually(lambda: len(said) == 2)
                await renewing(waiting, lambda: len(looks) == 5)
                await caller.ring(host.public, b"to the other")
                assert (await other.receive()).data == b"to the other", "it has its place still"
                assert len(said) == 2, "once is enough"
            await renewing(waiting, lambda: len(said) == 3)
            assert await caller.finds(host.public)
            await waiting.close()
        assert said[0] == said[2] == f"waiting at {there.server}"
        assert said[1].startswith(f"{there.server}: the same identity waits over a newer connection: another agent")

    test()


def test_a_server_under_two_names_ends_as_one_connection(looks: list[bool]) -> None:
    """What no comparison of names can find out: an address and a name, two names, with a fingerprint and without."""
    host = Identity.generate()
    said: list[str] = []

    @standing
    async def test() -> None:
        async with serving(PLENTY) as there, await Signalling.connect([there.server], Identity.generate()) as caller:
            alias = dataclasses.replace(there.server, host="localhost")
            waiting = Waiting([there.server], host, said.append)
            await eventually(lambda: len(said) == 1)
            waiting.go_to([there.server, alias])
            await eventually(lambda: len(said) == 3)
            assert f"waiting at {alias}" in said
            await renewing(waiting, lambda: len(looks) == 5)
            assert all(looks)
            await eventually(lambda: len(waiting._places[alias]) == 1)  # its renewal is over
            assert set(said[3:]) == {f"waiting at {alias}"}, "neither throws the other out"
            waiting.go_to([there.server])
            await renewing(waiting, lambda: said[-1] == f"waiting at {there.server}")
            assert await caller.finds(host.public)
            await waiting.close()

    test()


def test_a_server_that_goes_down_while_another_waits_there_is_told_of() -> None:
    host = Identity.generate()
    said: list[str] = []

    @standing
    async def test() -> None:
        async with serving() as there:
            waiting = Waiting([there.server], host, said.append)
            await eventually(lambda: len(said) == 1)
            async with await Signalling.connect([there.server], host, waits=True):
                await eventually(lambda: len(said) == 2)
        await renewing(waiting, lambda: len(said) > 2)
        assert "next try in" in said[2]
        await waiting.close()

    test()
