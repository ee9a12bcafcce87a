# SPDX-License-Identifier: GPL-2.0-or-later
"""What many connections can take from one that has paired: its share of a peer's line, and of the server's memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.tunnel.clock import eventually, look, pass_time, standing
from tests.tunnel.serving import Serving, serving
from tunnel.identity import seal
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer
from tunnel.identity.seal import Opener
from tunnel.rendezvous import server
from tunnel.rendezvous.limits import Limits, Rate
from tunnel.rendezvous.lines import Line
from tunnel.session.channel import Calling
from tunnel.signalling import dial
from tunnel.signalling.client import Signalling
from tunnel.signalling.link import DATA_MAX
from tunnel.tunnel_errors import RendezvousUnavailable

ELSEWHERE = "127.0.0.2"  # another address of the loopback's
FAST = Rate(1e6, 1e6)
ALICE, BOB, EVE = (Identity.generate() for _ in range(3))
SESSION = b"s" * 16


@contextlib.contextmanager
def at(address: str) -> Iterator[None]:
    """From there this host connects meanwhile."""
    async def connected(family: int, kind: int, to: tuple[Any, ...]) -> socket.socket:
        sock = socket.socket(family, kind)
        sock.bind((address, 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, to)
        return sock

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dial, "_connected", connected)
        yield


@contextlib.asynccontextmanager
async def crowd(there: Serving, address: str, size: int) -> AsyncIterator[list[Signalling]]:
    """So many connections from there, of an identity each."""
    async with contextlib.AsyncExitStack() as stack:
        with at(address):
            yield [await stack.enter_async_context(await Signalling.connect([there.server], Identity.generate()))
                   for _ in range(size)]


async def line_of(called: Signalling, caller: Signalling) -> str:
    """The caller rings, is answered, and so knows the line."""
    await caller.ring(BOB.public, b"offer")
    rung = await called.receive()
    await called.send(ALICE.public, b"answer", rung.line)
    return (await caller.receive()).line


async def taken(senders: list[Signalling], line: str, each: int, called: Signalling) -> int:
    """How many of their messages onto that line are passed on."""
    count = 0
    for sender in senders:
        for _ in range(each):
            try:
                await sender.send(BOB.public, b"x", line)
                count += 1
            except RendezvousUnavailable as error:
                assert "takes no more" in str(error)
            while called._inbox.qsize():
                await called.receive()
    return count


@standing
async def test_one_address_leaves_others_their_share_of_a_line() -> None:
    """However many identities are there: below the limit of each of them, and far above what the line takes."""
    async with (
        serving(Limits(lines_per_identity=2)) as there,
        await Signalling.connect([there.server], BOB, waits=True) as bob,
        await Signalling.connect([there.server], ALICE) as alice,
        crowd(there, ELSEWHERE, 8) as eves,
    ):
        line, limits = await line_of(bob, alice), Limits()
        assert await taken(eves, line, 40, bob) == limits.messages_each.burst < limits.brought.burst
        await alice.send(BOB.public, b"go", line)
        assert (await bob.receive()).data == b"go"
        pass_time(1.0)
        assert await taken(eves[:1], line, 20, bob) == limits.messages_each.per_second


@standing
async def test_who_finds_a_line_full_rings_instead() -> None:
    """Several addresses have used it up; rings have places of their own."""
    opener = Opener(BOB, ALICE.public)
    async with (
        serving(Limits(messages_each=FAST, messages=FAST)) as there,
        await Signalling.connect([there.server], BOB, waits=True) as bob,
        crowd(there, ELSEWHERE, 4) as eves,
    ):
        said: list[str] = []
        alice = Calling(ALICE, Peer("bob", BOB.public, (), 0.0), SESSION, [there.server], said.append)
        await alice.send("offer")
        rung = await bob.receive()
        assert opener.open(rung.data, SESSION, role="initiator").body["type"] == "offer"
        answer = seal.seal(BOB, ALICE.public, session=SESSION, role="responder", sequence=1, expires=time.time() + 60,
                           body={"type": "answer"})
        await bob.send(ALICE.public, answer, rung.line)
        assert (await alice.receive("answer"))["type"] == "answer"
        assert await taken(eves, alice._line, 50, bob) == Limits().brought.burst
        await alice.send("go")
        assert opener.open((await bob.receive()).data, SESSION, role="initiator").body["type"] == "go"
        assert said == []
        await alice.close()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """All that the rendezvous has had."""
    found: list[Line] = []

    class Seen(Line):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            found.append(self)

    monkeypatch.setattr(server, "Line", Seen)
    return found


def queued(line: Line) -> list[int]:
    """The sizes of what waits there."""
    waiting: Any = line._queue
    return [len(each) for each in waiting._queue]


@standing
async def test_no_line_holds_more_than_its_part_of_the_memory(lines: list[Line]) -> None:
    """So that nobody's can be used up by others: what there is for all is as much as all of them can have."""
    limits = Limits(messages=FAST, rings=FAST, brought=FAST)
    async with (
        serving(limits) as there,
        await Signalling.connect([there.server], BOB, waits=True) as bob,
        await Signalling.connect([there.server], ALICE) as alice,
    ):
        (slow,) = [each for each in lines if each.id == BOB.public.id]
        slow._writer.cancel()  # it takes nothing
        await eventually(slow._writer.done)
        sent = 0
        with pytest.raises(RendezvousUnavailable, match="takes no more"):
            for _ in range(limits.queue):
                await alice.ring(BOB.public, os.urandom(DATA_MAX))
                sent += 1
        assert sent == 2, "two of the largest have room"
        assert sum(queued(slow)) <= 64 * 1024
        assert limits.queued_bytes * limits.connections <= 64 * 1024 * 1024
        for number in range(limits.queue - sent):
            await alice.ring(BOB.public, b"%d" % number)
        assert bob.ended is False


@standing
async def test_who_asks_many_things_at_once_is_answered_each(lines: list[Line]) -> None:
    """More than its queue holds, while it reads nothing: it waits for room, and so does nobody else."""
    limits = Limits(messages=FAST)
    async with (
        serving(limits) as there,
        await Signalling.connect([there.server], ALICE) as alice,
        await Signalling.connect([there.server], EVE) as other,
    ):
        (slow,) = [each for each in lines if each.id == ALICE.public.id]
        slow._writer.cancel()
        await eventually(slow._writer.done)
        writes = asyncio.get_running_loop().create_future()
        slow._writer = asyncio.ensure_future(writes)
        asked = [asyncio.ensure_future(alice.finds(BOB.public)) for _ in range(3 * limits.queue)]
        await eventually(lambda: len(queued(slow)) == limits.queue)
        for _ in range(5):
            await look()
        assert not await other.finds(BOB.public)
        assert len(queued(slow)) == limits.queue
        slow._writer = asyncio.create_task(slow._write())
        assert await asyncio.gather(*asked) == [False] * 3 * limits.queue
        writes.cancel()


def test_nobody_waits_for_room_on_a_line_that_has_ended() -> None:
    """It is ended in the very turn in which its queue has been filled, before its writer has begun."""
    class Socket:
        async def send(self, _: str) -> None:
            await asyncio.sleep(0)

        async def close(self, _: int) -> None:
            pass

    async def main() -> None:
        line = Line(Socket(), "", Limits(queue=1))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # its writer waits for the first
        asyncio.get_running_loop().call_soon(line.end, "replaced")
        assert line.put({})
        async with asyncio.timeout(30):
            await line.answer({})
        await line.close()

    asyncio.run(main())
