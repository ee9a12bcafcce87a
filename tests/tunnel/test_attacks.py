# SPDX-License-Identifier: GPL-2.0-or-later
"""A rendezvous that lies, and strangers: they gain nothing, and what they try is reported."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.base import strict_json
from tests.tunnel.clock import as_time_goes_by, eventually, look, pass_time, simulated, standing
from tests.tunnel.serving import LOOPBACK, Serving, serving
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.peers import Peer, Peers
from tunnel.identity.seal import VERSION, Opener, Role, seal
from tunnel.rendezvous.server import SignallingServer
from tunnel.session import responder as agents
from tunnel.session.channel import Calling
from tunnel.signalling import dial
from tunnel.signalling.client import Signalling
from tunnel.tunnel_errors import OfferRejected, PeerSilent, TunnelError

ALICE, BOB, EVE, WITNESS = (Identity.generate() for _ in range(4))
SESSION = bytes(range(16))
OFFER = {"wg": "alice's key", "candidates": [{"address": "192.0.2.1", "port": 7}]}

# Takes what was to be delivered (from, data); gives what is delivered instead.
Lie = Callable[[str, bytes], tuple[str, bytes]]


class LyingServer:
    """Changes what the rendezvous passes on. It sees and may change everything but what is sealed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.lie: Lie = lambda sender, data: (sender, data)
        self.seen: list[bytes] = []
        honest = SignallingServer._pass_on

        def pass_on(server: SignallingServer, line: Any, to: bytes, message: dict[str, Any]) -> dict[str, Any]:
            data = strict_json.decode(message["data"])
            self.seen.append(data)
            sender, changed = self.lie(line.id.hex(), data)
            liar = _Named(line, bytes.fromhex(sender))
            return honest(server, liar, to, message | {"data": strict_json.encode(changed)})  # type: ignore[arg-type]

        patch.setattr(SignallingServer, "_pass_on", pass_on)


class _Named:
    """A line under another's name."""

    def __init__(self, line: Any, id: bytes) -> None:
        self.id, self.name, self.address = id, line.name, line.address


def offer(frm: Identity, to: PublicIdentity, *, role: Role = "initiator", sequence: int = 1,
          body: dict[str, Any] = OFFER, session_id: bytes = SESSION, life: float = 240) -> bytes:
    return seal(frm, to, session=session_id, role=role, sequence=sequence, expires=time.time() + life, body=body)


class Scene:
    """Alice calls, Bob waits, and the server in between does as it likes."""

    def __init__(self, there: Serving, alice: Signalling, bob: Signalling, server: LyingServer) -> None:
        self.there, self.alice, self.bob, self.server = there, alice, bob, server
        self.bobs_opener, self.alices_opener = Opener(BOB, ALICE.public), Opener(ALICE, BOB.public)

    async def bob_opens(self, sent: bytes) -> dict[str, Any]:
        await self.alice.ring(BOB.public, sent)
        message = await self.bob.receive(5)
        return self.bobs_opener.open(message.data, role="initiator").body


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    with pytest.MonkeyPatch.context() as patch:
        server = LyingServer(patch)
        async with (
            serving() as there,
            await Signalling.connect([there.server], ALICE) as alice,
            await Signalling.connect([there.server], BOB, waits=True) as bob,
        ):
            yield Scene(there, alice, bob, server)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@standing
async def test_swapped_keys_and_candidates() -> None:
    """The server puts an offer of its own in the place of Alice's: with its keys, and its candidates."""
    forged = {"wg": "eve's key", "candidates": [{"address": "203.0.113.66", "port": 66}]}
    async with scene() as at:
        for lie in (
            lambda sender, _: (sender, offer(EVE, BOB.public, body=forged)),  # in Alice's name
            lambda _, __: (EVE.public.id.hex(), offer(EVE, BOB.public, body=forged)),  # in its own
            lambda sender, data: (sender, flipped(data, len(data) - 1)),
            lambda sender, data: (sender, flipped(data, 10)),  # the direction
            lambda sender, data: (sender, flipped(data, 20)),  # the fresh public key
            lambda sender, data: (sender, data[:44] + offer(EVE, BOB.public, body=forged)[44:]),
            lambda sender, _: (sender, b""),
        ):
            at.server.lie = lie
            with pytest.raises(OfferRejected):
                await at.bob_opens(offer(ALICE, BOB.public))
        # And no trace of it remains: the true one is opened.
        at.server.lie = lambda sender, data: (sender, data)
        assert await at.bob_opens(offer(ALICE, BOB.public)) == OFFER


@standing
async def test_the_server_cannot_read() -> None:
    async with scene() as at:
        await at.bob_opens(offer(ALICE, BOB.public))
        assert at.server.seen
        for secret in (b"alice's key", b"192.0.2.1", b"candidates", SESSION):
            assert all(secret not in data for data in at.server.seen)


@standing
async def test_replayed_offers() -> None:
    async with scene() as at:
        await at.bob_opens(offer(ALICE, BOB.public))
        first = at.server.seen[0]
        at.server.lie = lambda sender, _: (sender, first)
        with pytest.raises(OfferRejected, match="replay"):
            await at.bob_opens(offer(ALICE, BOB.public, sequence=2))
        # Held back and delivered late.
        at.server.lie = lambda sender, data: (sender, data)
        await at.bob_opens(offer(ALICE, BOB.public, sequence=9))
        with pytest.raises(OfferRejected, match="older"):
            await at.bob_opens(offer(ALICE, BOB.public, sequence=8))
        with pytest.raises(OfferRejected, match="expired"):
            await at.bob_opens(offer(ALICE, BOB.public, sequence=10, life=-1))


@standing
async def test_reflected_offers() -> None:
    async with scene() as at:
        sent = offer(ALICE, BOB.public)
        await at.alice.ring(BOB.public, sent)
        rung = await at.bob.receive(5)
        # Bob's server hands Alice's own offer back to her as his answer.
        at.server.lie = lambda sender, _: (sender, sent)
        await at.bob.send(ALICE.public, offer(BOB, ALICE.public, role="responder"), rung.line)
        answer = await at.alice.receive(5)
        with pytest.raises(OfferRejected, match="reflected"):
            at.alices_opener.open(answer.data, SESSION, role="responder")


@standing
async def test_an_offer_meant_for_somebody_else() -> None:
    """Eve, who is paired with Alice too, passes on to Bob what Alice has offered to her."""
    async with scene() as at:
        to_eve = offer(ALICE, EVE.public)
        at.server.lie = lambda sender, _: (sender, to_eve)
        with pytest.raises(OfferRejected, match="not from this peer to this host"):
            await at.bob_opens(offer(ALICE, BOB.public))
        assert Opener(EVE, ALICE.public).open(to_eve).body == OFFER


@standing
async def test_an_answer_of_another_session() -> None:
    async with scene() as at:
        other = offer(BOB, ALICE.public, role="responder", session_id=bytes(16))
        with pytest.raises(OfferRejected, match="another session"):
            at.alices_opener.open(other, SESSION, role="responder")


# --- Strangers at the agent's door ---


class Agent:
    """The agent as `tunnel.session.setup` has it, but for what comes after an offer was let in."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.peers = Peers(folder / "peers")
        self.peers.pin("witness", WITNESS.public)
        self.let_in: list[dict[str, Any]] = []
        self.said: list[str] = []

        async def answer(channel: Any, body: dict[str, Any], *_: Any) -> Any:
            if channel.peer.public != WITNESS.public:
                self.let_in.append(body)
            raise TunnelError(reason="enough of it")

        patch.setattr(agents, "_answer", answer)
        patch.setattr("tunnel.interface.leftovers.sweep", list)
        patch.setattr("tunnel.wireguard.backend", lambda: None)

    async def wait(self, there: Serving) -> asyncio.Task[None]:
        async def handler(_: Any) -> None:
            raise AssertionError

        waiting = agents.accept(BOB, self.peers, [there.server], handler, tell=self.said.append)
        task = asyncio.create_task(waiting)
        await eventually(lambda: any("waiting at" in line for line in self.said))
        return task


async def rings(there: Serving, frm: Identity, data: bytes) -> list[bytes]:
    """Ring Bob; everything that comes back."""
    async with (
        await Signalling.connect([there.server], frm) as caller,
        await Signalling.connect([there.server], WITNESS) as witness,
    ):
        await caller.ring(BOB.public, data)
        # A peer who rings after that is refused; Bob and the server deal with one thing after the other.
        own = offer(WITNESS, BOB.public, session_id=os.urandom(16), body={"type": "offer", **OFFER})
        await witness.ring(BOB.public, own)
        await witness.receive()
        await caller.finds(BOB.public)
        answers = []
        while caller._inbox.qsize():
            answers.append((await caller.receive()).data)
        return answers


@simulated
async def test_refusals_do_not_heap_up(tmp_path: Path) -> None:
    """To a peer who sends offers without end, over a server that lets nothing back: one at a time."""
    class Channel:
        sent = 0

        def __init__(self, peer: Peer) -> None:
            self.peer, self.session = peer, os.urandom(16)

        async def send(self, _kind: str, _body: dict[str, Any]) -> None:
            Channel.sent += 1
            await lets_through.wait()

    async def handler(_: Any) -> None:
        raise AssertionError

    lets_through = asyncio.Event()
    peers = Peers(tmp_path / "peers")
    for name, identity in (("alice", ALICE), ("eve", EVE)):
        peers.pin(name, identity.public)
    agent = agents._Agent(BOB, peers, [], handler, "prefer-direct", "", lambda _: None)
    served: Any = {os.urandom(16): Channel(peer) for peer in peers.all() for _ in range(agents.SESSIONS_EACH)}
    agent._sessions = served  # of each as many as may be
    for _ in range(5):
        for peer in peers.all():
            channel: Any = Channel(peer)
            agent._begin(channel, {})
        await asyncio.sleep(0.1)
    assert Channel.sent == len(agent._tasks) == 2
    lets_through.set()
    await asyncio.sleep(0.1)
    for peer in peers.all():
        channel = Channel(peer)
        agent._begin(channel, {})
        await asyncio.sleep(0.1)
    assert (Channel.sent, len(agent._tasks)) == (4, 0)


@simulated
async def test_a_peer_begins_no_sessions_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has this host send to addresses that the peer has named."""
    refused: list[str] = []
    time = [1000.0]
    monkeypatch.setattr(agents, "now", lambda: time[0])

    class Channel:
        def __init__(self, peer: Peer) -> None:
            self.peer, self.session = peer, os.urandom(16)

        async def send(self, _kind: str, body: dict[str, Any]) -> None:
            refused.append(f"{self.peer.name}: {body['reason']}")

    async def answer(*_: Any) -> Any:
        raise TunnelError(reason="enough of it")

    async def handler(_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(agents, "_answer", answer)
    peers = Peers(tmp_path / "peers")
    for name, identity in (("alice", ALICE), ("eve", EVE)):
        peers.pin(name, identity.public)
    agent = agents._Agent(BOB, peers, [], handler, "prefer-direct", "", lambda _: None)

    async def begin(name: str, times: int) -> int:
        refused.clear()
        for _ in range(times):
            channel: Any = Channel(peers.get(name))
            agent._begin(channel, {})
            await asyncio.sleep(0.1)
        return sum("in a short time" in each and each.startswith(name) for each in refused)

    burst = int(agents.SESSIONS_PACE.burst)
    assert await begin("eve", burst) == 0
    assert await begin("eve", 5) == 5
    assert await begin("alice", 5) == 0
    time[0] += 31.0
    assert await begin("eve", 5) == 3


def test_an_unpaired_or_removed_peer_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(tmp_path, monkeypatch)
    clock = [1000.0]
    monkeypatch.setattr(agents, "now", lambda: clock[0])
    body = {"type": "offer", **OFFER}

    @standing
    async def test() -> None:
        async with serving() as there:
            task = await agent.wait(there)
            # A stranger: his offer is well made, sealed to Bob, and signed by himself.
            assert await rings(there, EVE, offer(EVE, BOB.public, body=body)) == []
            assert await rings(there, EVE, b"anything") == []
            assert sum("not paired" in line for line in agent.said) == 1, "he does not fill the log"
            clock[0] += agents.STRANGERS_INTERVAL
            # In the name of a peer, over a stranger's connection or with the stranger's keys.
            agent.peers.pin("alice", ALICE.public)
            assert await rings(there, EVE, offer(ALICE, BOB.public, body=body)) == []
            assert await rings(there, ALICE, offer(EVE, BOB.public, body=body)) == []
            assert agent.let_in == []
            assert sum("not paired" in line for line in agent.said) == 2
            # A peer is answered; once it is removed, it is a stranger, without the agent being started anew.
            assert await rings(there, ALICE, offer(ALICE, BOB.public, body=body))
            assert len(agent.let_in) == 1
            agent.peers.remove("alice")
            for sequence, session_id in ((2, SESSION), (1, bytes(16))):
                data = offer(ALICE, BOB.public, sequence=sequence, session_id=session_id, body=body)
                assert await rings(there, ALICE, data) == []
            assert len(agent.let_in) == 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # Nothing secret, and nothing of what a stranger wrote, in what was said.
            said = json.dumps(agent.said)
            assert "192.0.2.1" not in said
            assert "alice's key" not in said
            assert LOOPBACK in said

    test()


def test_a_peer_is_told_that_this_host_is_short_of_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(tmp_path, monkeypatch)
    agent.peers.pin("alice", ALICE.public)

    async def answer(*_: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a/path/of/this/host")

    monkeypatch.setattr(agents, "_answer", answer)

    @standing
    async def test() -> None:
        async with serving() as there:
            task = await agent.wait(there)
            (said,) = await rings(there, ALICE, offer(ALICE, BOB.public, body={"type": "offer", **OFFER}))
            body = Opener(ALICE, BOB.public).open(said, SESSION, role="responder").body
            reason = "it cannot serve a session now: Too many open files"
            assert body == {"type": "refusal", "reason": reason, "code": ""}
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    test()


def test_the_servers_of_a_removed_peer_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of a new one are visited; while the store cannot be read nothing changes. Nothing is started anew."""
    monkeypatch.setattr(dial, "can_be_named", lambda *_: True)  # loopback is where these servers are
    agent = Agent(tmp_path, monkeypatch)

    @standing
    async def test() -> None:
        async with serving() as ours, serving() as theirs:
            task = await agent.wait(ours)
            agent.peers.pin("alice", ALICE.public, [theirs.server.url])
            async with await Signalling.connect([theirs.server], EVE) as witness:

                async def looks_and(waits: bool) -> None:
                    pass_time(agents.LOOK_INTERVAL)
                    while await witness.finds(BOB.public) is not waits:
                        await look()

                await looks_and(True)
                agent.peers.path.chmod(0o644)
                for _ in range(2):
                    await looks_and(True)
                    await eventually(lambda: any("others may access it" in said for said in agent.said))
                agent.peers.path.chmod(0o600)
                agent.peers.remove("alice")
                await looks_and(False)
            async with await Signalling.connect([ours.server], EVE) as witness:
                assert await witness.finds(BOB.public), "the host's own server stays"
            assert sum("others may access it" in said for said in agent.said) == 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    test()


def test_a_peer_of_another_version_is_told_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(tmp_path, monkeypatch)
    old = b"MGS1" + bytes(200)

    @standing
    async def test() -> None:
        async with serving() as there:
            task = await agent.wait(there)
            assert await rings(there, ALICE, old) == []  # a stranger is not
            agent.peers.pin("alice", ALICE.public)
            assert await rings(there, ALICE, old) == [VERSION]
            assert any("version 1" in line for line in agent.said)
            # Never an answer to such an answer: two agents would go on for ever.
            assert await rings(there, ALICE, b"MGS1") == []
            assert agent.let_in == []
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    test()


@standing
async def test_who_calls_a_peer_of_another_version_learns_why() -> None:
    """And nobody but the peer can end its waiting by that word: a true answer that comes later is taken."""
    async with serving() as there, await Signalling.connect([there.server], BOB, waits=True) as bob:
        said: list[str] = []
        channel = Calling(ALICE, Peer("bob", BOB.public, (), 0.0), SESSION, [there.server], said.append)
        await channel.send("offer")
        rung = await bob.receive(5)
        await bob.send(ALICE.public, b"MGS7", rung.line)
        await eventually(lambda: bool(said))
        with pytest.raises(PeerSilent, match="it is of version 7, this host reads 2: both hosts need the same"):
            await as_time_goes_by(channel.receive("answer", timeout=1))
        await bob.send(ALICE.public, offer(BOB, ALICE.public, role="responder", body={"type": "answer"}), rung.line)
        assert (await channel.receive("answer"))["type"] == "answer"
        await channel.close()


def test_a_removed_peer_cannot_answer_either() -> None:
    """Whoever is not pinned cannot be called: there is no opener without a pinned identity."""
    with pytest.raises(OfferRejected):
        Opener(ALICE, BOB.public).open(offer(EVE, ALICE.public, role="responder"))
