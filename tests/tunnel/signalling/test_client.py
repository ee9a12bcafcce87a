# SPDX-License-Identifier: GPL-2.0-or-later
"""Signalling against a real rendezvous on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from migrator.base import strict_json
from tests.tunnel.clock import eventually, look, pass_time, standing
from tests.tunnel.serving import LOOPBACK, serving
from tunnel.identity.own_identity import Identity
from tunnel.identity.tunnel_config import Server
from tunnel.signalling import client, link
from tunnel.signalling.client import Message, Signalling
from tunnel.signalling.link import DATA_MAX, Link, statement
from tunnel.signalling.standby import BACKOFF, Waiting
from tunnel.tunnel_errors import PeerAbsent, RendezvousUnavailable

DEAD = Server.parse(f"wss://{LOOPBACK}:1#sha256:{'0' * 64}")


@standing
async def test_ring_and_answer() -> None:
    host, guest = Identity.generate(), Identity.generate()
    async with (
        serving() as there,
        await Signalling.connect([there.server], host, waits=True) as agent,
        await Signalling.connect([there.server], guest) as caller,
    ):
        await caller.ring(host.public, b"offer")
        rung = await agent.receive(5)
        assert (rung.sender, rung.data) == (guest.public.id, b"offer")
        await agent.send(guest.public, b"answer", rung.line)
        answer = await caller.receive(5)
        assert (answer.sender, answer.data) == (host.public.id, b"answer")


@standing
async def test_answers_go_to_the_connection_that_asked() -> None:
    host, guest = Identity.generate(), Identity.generate()
    async with (
        serving() as there,
        await Signalling.connect([there.server], host, waits=True) as agent,
        await Signalling.connect([there.server], guest, waits=True) as other,
        await Signalling.connect([there.server], guest) as caller,
    ):
        await caller.ring(host.public, b"offer")
        rung = await agent.receive(5)
        await agent.send(guest.public, b"answer", rung.line)
        assert (await caller.receive(5)).data == b"answer"
        await agent.ring(guest.public, b"to whoever waits")
        assert (await other.receive(5)).data == b"to whoever waits", "and nothing before it"


@standing
async def test_the_largest_message_passes() -> None:
    host, guest = Identity.generate(), Identity.generate()
    async with (
        serving() as there,
        await Signalling.connect([there.server], host, waits=True) as agent,
        await Signalling.connect([there.server], guest) as caller,
    ):
        await caller.ring(host.public, bytes(DATA_MAX))
        assert (await agent.receive(5)).data == bytes(DATA_MAX)
        with pytest.raises(ValueError, match="more than"):
            await caller.ring(host.public, bytes(DATA_MAX + 1))


@standing
async def test_absent_peer() -> None:
    host, guest = Identity.generate(), Identity.generate()
    async with serving() as there, await Signalling.connect([there.server], guest) as caller:
        assert not await caller.finds(host.public)
        with pytest.raises(PeerAbsent) as caught:
            await caller.ring(host.public, b"offer", "hostb")
        assert "hostb" in str(caught.value)
        # One that calls, but does not wait, is not rung either.
        async with await Signalling.connect([there.server], host):
            with pytest.raises(PeerAbsent):
                await caller.ring(host.public, b"offer")
        # Nor is a connection reached under a wrong name.
        with pytest.raises(PeerAbsent):
            await caller.send(host.public, b"offer", "0" * 16)


@standing
async def test_servers_that_are_down_are_skipped() -> None:
    async with serving() as there:
        async with await Signalling.connect([DEAD, there.server], Identity.generate()) as found:
            assert found.server == there.server
        with pytest.raises(RendezvousUnavailable) as caught:
            await Signalling.connect([DEAD, DEAD], Identity.generate())
        assert caught.value.fields["reason"].count("127.0.0.1:1") == 2
        with pytest.raises(RendezvousUnavailable, match="none is known"):
            await Signalling.connect([], Identity.generate())


@standing
async def test_the_server_where_the_peer_waits_is_taken() -> None:
    host, guest = Identity.generate(), Identity.generate()
    async with (
        serving() as empty, serving() as there,
        await Signalling.connect([there.server], host, waits=True),
        await Signalling.connect([empty.server, there.server], guest, peer=host.public) as caller,
    ):
        assert caller.server == there.server
        async with await Signalling.connect([empty.server], guest, peer=host.public) as other:
            assert other.server == empty.server


@standing
async def test_another_certificate_is_refused() -> None:
    async with serving() as there, serving() as other:
        wrong = Server.parse(f"wss://{LOOPBACK}:{there.running.ports[0]}#sha256:{other.running.sha256.hex()}")
        with pytest.raises(RendezvousUnavailable, match="not the pinned one"):
            await Signalling.connect([wrong], Identity.generate())
        unpinned = Server.parse(f"wss://{LOOPBACK}:{there.running.ports[0]}")
        with pytest.raises(RendezvousUnavailable, match="not trusted"):
            await Signalling.connect([unpinned], Identity.generate())


@standing
async def test_who_presents_another_identity_is_refused() -> None:
    """The signature has to fit the identity, the challenge, and the certificate of the server that asks."""
    me, other = Identity.generate(), Identity.generate()
    async with serving() as there:
        for wrong in ("signer", "challenge", "certificate", "signature"):
            connection = await Link.open(there.server, 5)
            challenge = bytes(32) if wrong == "challenge" else connection.challenge
            # Another certificate: as it would be passed on by a server in between.
            certificate = bytes(32) if wrong == "certificate" else connection.certificate
            signature = (other if wrong == "signer" else me).sign(statement(challenge, certificate))
            await connection.send({
                "type": "present", "identity": me.public.to_text(), "waits": True,
                "signature": strict_json.encode(bytes(64) if wrong == "signature" else signature),
            })
            answer = await connection.receive(5)
            assert answer == {"type": "refused", "reason": "malformed message: the identity is not proved"}
            await connection.close()


@standing
async def test_reflectors_and_relay_are_announced() -> None:
    async with serving() as there, await Signalling.connect([there.server], Identity.generate()) as found:
        assert found.info.reflectors == tuple((LOOPBACK, port) for port in there.running.udp_ports)
        assert not found.info.relay
        with pytest.raises(RendezvousUnavailable, match="no relay here"):
            await found.relay_token(Identity.generate().public, bytes(16))


@standing
async def test_relay_tokens() -> None:
    one, two = Identity.generate(), Identity.generate()
    async with (
        serving(relay=True) as there,
        await Signalling.connect([there.server], one) as first,
        await Signalling.connect([there.server], two) as second,
    ):
        ours, theirs = await first.relay_token(two.public, bytes(16)), await second.relay_token(one.public, bytes(16))
        assert ours.claim != theirs.claim
        assert ours.key != theirs.key
        assert ours.host == LOOPBACK


@standing
async def test_the_end_of_the_server_is_noticed() -> None:
    async with serving() as there:
        caller = await Signalling.connect([there.server], Identity.generate())
        waiting = asyncio.create_task(caller.receive())
        await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(RendezvousUnavailable):
            await waiting
        waiting = asyncio.create_task(caller.receive())
    with pytest.raises(RendezvousUnavailable):
        await caller.finds(Identity.generate().public)
    await caller.close()
    await asyncio.gather(waiting, return_exceptions=True)


@standing
async def test_waiting_at_every_server_and_coming_back() -> None:
    host, guest = Identity.generate(), Identity.generate()
    said: list[str] = []
    async with serving() as one, serving() as two:
        rung: list[bytes] = []
        waiting = Waiting([DEAD, one.server, two.server], host, said.append)

        async def agent() -> None:
            async for connection, message in waiting:
                rung.append(message.data)
                await connection.send(guest.public, b"yes " + message.data, message.line)

        task = asyncio.create_task(agent())
        await eventually(lambda: sum("waiting at" in line for line in said) == 2)
        await eventually(lambda: any("127.0.0.1:1: " in line and "next try" in line for line in said))
        for there in (one, two):
            async with await Signalling.connect([there.server], guest) as caller:
                await caller.ring(host.public, b"offer")
                assert (await caller.receive(5)).data == b"yes offer"
        # A second agent of the same identity takes over; the first comes back in its turn, and says so.
        async with await Signalling.connect([one.server], host, waits=True):
            await eventually(lambda: any("newer connection" in line for line in said))
        tries = len(said)
        pass_time(0.9 * BACKOFF[0] / 2)
        await look()
        assert len(said) == tries, "not all at the same moment, and none before half the time"
        pass_time(BACKOFF[0])
        await eventually(lambda: sum("waiting at" in line for line in said) == 3)
        await waiting.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert rung == [b"offer", b"offer"]


@standing
async def test_it_can_be_rung_while_it_renews_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one ends when the new one stands, not before, and neither drives the other out again and again."""
    host, guest = Identity.generate(), Identity.generate()
    said: list[str] = []
    held = asyncio.Event()
    connect = Signalling.connect
    async with serving() as there:
        waiting = Waiting([there.server], host, said.append)
        await eventually(lambda: len(said) == 1)

        async def slow(*arguments: Any, **options: Any) -> Signalling:
            await held.wait()
            return await connect(*arguments, **options)

        monkeypatch.setattr(Signalling, "connect", slow)
        waiting.renew()
        async with await connect([there.server], guest) as caller:
            await caller.ring(host.public, b"before")
            held.set()
            await eventually(lambda: len(waiting._places[there.server]) == 1)
            await caller.ring(host.public, b"after")
            rung = [message.data async for _, message in first(2, waiting)]
        assert rung == [b"before", b"after"]
        await waiting.close()
    assert set(said) == {f"waiting at {there.server}"}


async def first(number: int, waiting: Waiting) -> AsyncIterator[tuple[Signalling, Message]]:
    async for each in waiting:
        yield each
        if (number := number - 1) == 0:
            return


@standing
async def test_an_inbox_that_nobody_empties_is_bounded() -> None:
    host, guest = Identity.generate(), Identity.generate()
    async with (
        serving() as there,
        await Signalling.connect([there.server], host, waits=True) as agent,
        await Signalling.connect([there.server], guest) as caller,
    ):
        line = ""
        for number in range(3):
            await caller.ring(host.public, b"%d" % number)
        for _ in range(3):
            line = (await agent.receive(5)).line
        assert line
        for _ in range(client.QUEUE_MAX + 5):
            agent._take({"type": "message", "from": guest.public.id.hex(), "line": line, "data": ""})
        assert agent._inbox.qsize() == client.QUEUE_MAX
        assert await agent.finds(host.public)  # answers still come


def test_what_a_server_may_announce() -> None:
    for host, port in (("224.0.0.1", 3478), ("::", 3478), ("0.0.0.0", 3478),  # noqa: S104
                       ("127.0.0.1", 3478), ("169.254.1.1", 1), ("fe80::1", 1),
                       ("192.0.2.1%x.example.org", 3478), ("2001:db8::1%x.example.org", 3478), ("fe80::2%eth0", 3478),
                       ("example.org", 3478), ("192.0.2.1", 0), ("192.0.2.1", 65536), ("192.0.2.1", True)):
        with pytest.raises(strict_json.Malformed):
            link._reflector({"host": host, "port": port}, "192.0.2.9")
    assert link._reflector({"host": "", "port": 5}, "192.0.2.9") == ("192.0.2.9", 5)
    assert link._reflector({"host": "192.0.2.1", "port": 5}, "192.0.2.9") == ("192.0.2.1", 5)
    assert link._reflector({"host": "fe80::1%eth0", "port": 5}, "fe80::1%eth0") == ("fe80::1%eth0", 5)


@standing
async def test_it_waits_at_other_servers_from_now_on() -> None:
    host, guest = Identity.generate(), Identity.generate()
    said: list[str] = []
    async with serving() as one, serving() as two, serving() as three:
        waiting = Waiting([one.server, two.server, DEAD], host, said.append)
        await eventually(lambda: sum("waiting at" in line for line in said) == 2)
        kept = waiting._places[two.server][0].task
        waiting.go_to([two.server, three.server])
        await eventually(lambda: f"waiting at {three.server}" in said)
        assert [each.task for each in waiting._places[two.server]] == [kept], "where it stays nothing changes"
        assert f"no longer waiting at {one.server}" in said
        for there, waits in ((one, False), (two, True), (three, True)):
            async with await Signalling.connect([there.server], guest) as caller:
                while await caller.finds(host.public) is not waits:
                    await look()
        said.clear()
        pass_time(2 * BACKOFF[1])
        waiting.renew()
        await eventually(lambda: len(said) == 2)
        assert set(said) == {f"waiting at {two.server}", f"waiting at {three.server}"}, "and nowhere else again"
        await waiting.close()
