# SPDX-License-Identifier: GPL-2.0-or-later
"""The side that waits: answers paired peers' offers and serves their sessions, each in a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from migrator.base.clock import now
from migrator.base.strict_json import Malformed
from tunnel import wireguard
from tunnel.candidates.outlook import Policy
from tunnel.identity import seal, tunnel_config
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer, Peers
from tunnel.identity.seal import Opener
from tunnel.identity.tunnel_config import Server
from tunnel.punching.prober import Attempt
from tunnel.rendezvous.limits import Bucket, Buckets, Rate
from tunnel.session import offers
from tunnel.session.channel import Called, Tell
from tunnel.session.live_tunnel import Tunnel
from tunnel.session.session_keys import Ours
from tunnel.session.setup import ended_with_block, gathered, quiet, read, sweep, until, up
from tunnel.signalling import client
from tunnel.signalling.client import Signalling
from tunnel.signalling.standby import Waiting
from tunnel.tunnel_errors import NoPath, OfferRejected, RendezvousUnavailable, TunnelError

GO_LIMIT = 10.0  # seconds that an initiator may take to begin once it has the answer
RENEW_INTERVAL = 3.0  # seconds
LOOK_INTERVAL = 2.0  # seconds between two checks whether to wait at other servers
STRANGERS_INTERVAL = 10.0  # seconds between two log lines about strangers, for each server
PEERS_PACED = 1000
SESSIONS_MAX = 16  # that are served at a time
SESSIONS_EACH = 4  # for one peer
# For the sessions that one peer begins, as each sends to wherever it says. The burst allows for a script that goes
# through many containers.
SESSIONS_PACE = Rate(per_second=1 / 15, burst=30)
# For messages to peers outside of sessions, that is, refusals to begin one and which version is read here: to each
# peer, and to all. A peer that got such answers without end could make the rendezvous drop this host for sending too
# much.
WORDS_EACH = Rate(per_second=1, burst=5)
WORDS = Rate(per_second=3, burst=10)

# Called with each tunnel that is up; the tunnel is closed when it returns.
Handler = Callable[[Tunnel], Coroutine[Any, Any, None]]


async def accept(identity: Identity, peers: Peers, servers: Sequence[Server], handler: Handler, *,
                 policy: Policy = "prefer-direct", once: bool = False, program: str = "",
                 tell: Tell = quiet) -> None:
    """Wait for paired peers and serve their sessions, until cancelled; with `once`, a single one.

    It waits at `servers`, which the user has chosen, and at those named by the hosts that are paired at the time. A
    host that is not paired gets no answer at all. Raises LeftoversRemain, WireGuardMissing and TunnelFileUnusable
    before it waits.
    """
    await asyncio.to_thread(sweep)
    await asyncio.to_thread(wireguard.backend)
    agent = _Agent(identity, peers, servers, handler, policy, program, tell)
    try:
        agent.renew()
        await (agent.served.wait() if once else asyncio.Event().wait())
    finally:
        await agent.close()


class _Agent:
    """Waits for rings, and serves each session in a task of its own."""

    def __init__(self, identity: Identity, peers: Peers, servers: Sequence[Server], handler: Handler, policy: Policy,
                 program: str, tell: Tell) -> None:
        self.served = asyncio.Event()  # a session has ended
        self._identity = identity
        self._peers = peers
        self._servers = servers
        self._handler = handler
        self._policy: Policy = policy
        self._program = program
        self._tell = tell
        self._openers: dict[bytes, Opener] = {}
        self._sessions: dict[bytes, Called] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: Waiting | None = None
        self._saying: asyncio.Task[None] | None = None
        self._paces = Buckets(SESSIONS_PACE, PEERS_PACED, now)
        self._words_each = Buckets(WORDS_EACH, PEERS_PACED, now)
        self._words = Bucket(WORDS, now)
        self._refusing: dict[bytes, asyncio.Task[None]] = {}  # by the id of the peer
        self._renewed = 0.0
        self._told: dict[tuple[Server, str], float] = {}  # when strangers were last logged

    def renew(self) -> None:
        """Wait over new connections; the rendezvous takes the newest for the right one. Not too often."""
        if self._waiting is None:
            self._waiting = Waiting(self._everywhere(), self._identity, self._tell)
            self._spawn(self._wait(self._waiting))
            self._spawn(self._follow(self._waiting))
        elif now() - self._renewed >= RENEW_INTERVAL:
            self._renewed = now()
            self._waiting.renew()

    def _everywhere(self) -> list[Server]:
        return tunnel_config.together(self._servers, (server for peer in self._peers.all() for server in peer.servers))

    async def _follow(self, waiting: Waiting) -> None:
        """Where a peer can be rung was its choice: this host stops connecting there once the peer is removed."""
        told = ""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            try:
                waiting.go_to(self._everywhere())
                told = ""
            except TunnelError as error:  # the store of peers cannot be read: everything stays as it is
                if str(error) != told:
                    told = str(error)
                    self._tell(told)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _wait(self, waiting: Waiting) -> None:
        async for over, message in waiting:
            try:
                self._rung(over, message)
            except TunnelError as error:  # the store of peers cannot be read
                self._tell(str(error))

    def _rung(self, over: Signalling, message: client.Message) -> None:
        peer = self._peers.by_id(message.sender)
        if peer is None:
            self._tell_of_strangers(over, "", "a host that is not paired has called (its id begins with"
                                              f" {message.sender[:4].hex()})")
            self._openers.pop(message.sender, None)
            return
        opener = self._openers.setdefault(peer.public.id, Opener(self._identity, peer.public))
        try:
            sealed = opener.open(message.data, role="initiator")
            kind = offers.type_of(sealed.body)
        except (OfferRejected, Malformed) as error:
            self._tell_of_strangers(over, peer.name, f"from {peer.name}, or in its name: {error}")
            self._say_version(over, peer, message)
            return
        if known := self._sessions.get(sealed.session):
            if known.peer.public == peer.public:
                known.take(sealed, over, message.line)
        elif kind == "offer":
            assert self._waiting  # noqa: S101 - where this came from
            channel = Called(self._identity, peer, sealed.session, self._tell, over, message.line, self.renew,
                             self._waiting.newest)
            self._begin(channel, sealed.body)

    def _tell_of_strangers(self, over: Signalling, as_: str, text: str) -> None:
        """Rate-limit the log: otherwise a stranger could, over a server of his own, leave room for nothing else in it.

        `as_`: the peer in whose name the message came.
        """
        if now() - self._told.get((over.server, as_), -STRANGERS_INTERVAL) >= STRANGERS_INTERVAL:
            self._told[over.server, as_] = now()
            self._tell(text)

    def _say_version(self, over: Signalling, peer: Peer, message: client.Message) -> None:
        """Tell a peer whose offers are of another version which one is read here, so that it does not have to guess.

        Only in answer to an offer, never to such a message itself, and one at a time: whoever can forge one can forge
        many.
        """
        if seal.other_version(message.data) is None or len(message.data) <= len(seal.VERSION):
            return
        if (self._saying is None or self._saying.done()) and self._may_say(peer):

            async def say() -> None:
                with contextlib.suppress(TunnelError):
                    await over.send(peer.public, seal.VERSION, message.line)

            self._saying = self._spawn(say())

    def _may_say(self, peer: Peer) -> bool:
        """Whether the peer may get one more message outside of a session; sessions are limited by themselves."""
        return self._words_each.take(peer.public.id) and self._words.take()

    def _begin(self, channel: Called, offer: dict[str, Any]) -> None:
        reason = ""
        of_peer = sum(each.peer.public == channel.peer.public for each in self._sessions.values())
        if len(self._sessions) >= SESSIONS_MAX or of_peer >= SESSIONS_EACH:
            reason = "it serves too many sessions already"
        elif not self._paces.take(channel.peer.public.id):
            reason = "too many sessions were begun in a short time; try again in a minute"
        if reason:
            # One at a time for each peer: it may send offers without end, over a server that lets nothing back.
            before = self._refusing.get(channel.peer.public.id)
            if (before is None or before.done()) and self._may_say(channel.peer):
                self._refusing[channel.peer.public.id] = self._spawn(self._refuse(channel, reason))
        else:
            self._sessions[channel.session] = channel
            self._spawn(self._serve(channel, offer))

    async def _serve(self, channel: Called, offer: dict[str, Any]) -> None:
        name = channel.peer.name
        try:
            tunnel = await _answer(channel, offer, self._policy, self._program)
            self._tell(f"{name} is connected: {tunnel.path.kind}, {tunnel.path.reason}")
            try:
                await until(tunnel.ended.wait(), self._handler(tunnel))
            finally:
                await tunnel.close()
            self._tell(f"{name} has disconnected")
        except TunnelError as error:
            self._tell(f"{name}: {error}")
            await self._refuse(channel, str(error.fields.get("reason", error.message)), error.code())
        except Malformed as error:
            self._tell(f"{name} sent an invalid offer: {error}")
        except OSError as error:  # out of descriptors, for example
            self._tell(f"{name}: {type(error).__name__}: {error}")
            await self._refuse(channel, f"it cannot serve a session now: {error.strerror or type(error).__name__}")
        except Exception as error:  # one session must not end the others
            self._tell(f"{name}: {type(error).__name__}: {error}")
        finally:
            self._sessions.pop(channel.session, None)
            self.served.set()

    async def _refuse(self, channel: Called, reason: str, code: str = "") -> None:
        with contextlib.suppress(TunnelError):
            await channel.send("refusal", {"reason": reason[:200], "code": code})

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._waiting:
            await self._waiting.close()


async def _answer(channel: Called, offer: dict[str, Any], policy: Policy, program: str) -> Tunnel:
    """The responder's side of `open_tunnel`; raises TunnelError and Malformed."""
    begun = now()
    backend = await asyncio.to_thread(wireguard.backend)
    ours = Ours(channel.session, "responder", channel.identity.public.id)
    keys, theirs, agreed = read(channel, ours, offer, policy)
    local, token = await gathered(channel, agreed)
    with contextlib.closing(Attempt(local, theirs.remote(), keys.probe(0), "responder", agreed, token)) as attempt:
        # Its NAT is opened before the initiator learns where to send to: see tunnel.punching.punch.
        attempt.start()
        said = {"program": program, **offers.keys(ours.public), **offers.side(local, agreed)}

        async def go() -> None:
            await channel.receive("go", timeout=GO_LIMIT, attempt=0)
            attempt.go()

        async with ended_with_block(asyncio.create_task(go())):
            await _send_answer(channel, said)
            path = await attempt.result()
    return await up(channel, keys, path, agreed, backend, begun)


async def _send_answer(channel: Called, said: dict[str, Any]) -> None:
    try:
        await channel.send("answer", said)
    except RendezvousUnavailable as error:
        raise NoPath(reason=f"the answer could not be sent: {error}") from error
