"""A session, from the first offer to a tunnel that carries something: `open_tunnel` here, `accept` there."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from tunnel import candidates, gathering, health, interface, leftovers, offers, signalling, status, wireguard
from tunnel.channel import Called, Calling, Channel, Tell
from tunnel.config import Server
from tunnel.echo import Echo
from tunnel.errors import NoPath, OfferRejected, PeerRefuses, RendezvousUnavailable, TunnelError
from tunnel.gathering import Local
from tunnel.identity import Identity
from tunnel.keys import Ours, SessionKeys
from tunnel.offers import Side
from tunnel.outlook import Policy
from tunnel.peers import Peer, Peers
from tunnel.ports import Ports
from tunnel.prober import Attempt, Path
from tunnel.relay import RelayToken
from tunnel.seal import SESSION_SIZE, Opener
from tunnel.signalling import Signalling
from tunnel.tunnel import Tunnel
from tunnel.wire import Malformed

ANSWER_LIMIT = 15.0  # seconds that a peer may take to answer an offer
GO_LIMIT = 10.0  # and to begin once it has the answer
UP_LIMIT = 10.0  # and to have its interface up once there is a path
ECHO_LIMIT = 12.0  # until something comes through the tunnel: two of WireGuard's handshakes
RENEW_INTERVAL = 3.0
SESSIONS_MAX = 16  # that one agent serves at a time
SESSIONS_EACH = 4  # of one peer

# Called with each tunnel that is up; the tunnel is closed when it returns.
Handler = Callable[[Tunnel], Coroutine[Any, Any, None]]
T = TypeVar("T")


def _quiet(_text: str) -> None:
    """For who does not want to know."""


def _sweep() -> None:
    """Remove what killed processes have left; raises LeftoversRemain."""
    leftovers.sweep()
    status.sweep()


# --- Initiator ---


async def open_tunnel(peer: Peer, identity: Identity, servers: Sequence[Server], policy: Policy = "prefer-direct", *,
                      program: str = "", tell: Tell = _quiet) -> Tunnel:
    """A tunnel to a paired peer, over which an echo has come back; the caller closes it.

    `servers` are tried in order, first those at which the peer waits. Raises RendezvousUnavailable, PeerAbsent,
    PeerSilent, PeerRefuses, NoPath, and what `interface.up` and `health.first_answer` raise. Nothing is left behind
    then, nor when it is cancelled.
    """
    begun = time.monotonic()
    await asyncio.to_thread(_sweep)
    backend = await asyncio.to_thread(wireguard.backend)
    channel = Calling(identity, peer, secrets.token_bytes(SESSION_SIZE), servers, tell)
    try:
        ours = Ours(channel.session, "initiator", identity.public.id)
        local, token = await _gathered(channel, policy)
        try:
            said = {"program": program, **offers.keys(ours.public), **offers.side(local, policy)}
            await channel.send("offer", said)
            body = await channel.receive("answer", "refusal", timeout=ANSWER_LIMIT)
            keys, theirs, agreed = _read(channel, ours, body, policy)
            attempt = Attempt(local, theirs.remote(), keys.probe(0), "initiator", agreed, token)
            attempt.start()
            path = await _unless_refused(channel, attempt.result(), channel.send("go", {"attempt": 0}))
        except BaseException:
            local.sender.close()
            raise
        return await _up(channel, keys, path, agreed, backend, begun)
    except Malformed as error:
        await channel.close()
        raise PeerRefuses(name=peer.name, reason=f"its answer makes no sense: {error}") from None
    except BaseException:
        await channel.close()
        raise


async def _gathered(channel: Channel, policy: Policy) -> tuple[Local, RelayToken | None]:
    """A fresh port with all that can be known of it, and the right to use the relay."""
    reflectors = await channel.reflectors()
    ports = Ports.open()
    try:
        async with asyncio.TaskGroup() as group:
            gather = group.create_task(gathering.gather(ports, reflectors))
            token = group.create_task(channel.relay_token()) if policy != "direct-only" else None
    except BaseException:
        ports.close()
        raise
    return gather.result(), token.result() if token else None


def _read(channel: Channel, ours: Ours, body: dict[str, Any], policy: Policy) -> tuple[SessionKeys, Side, Policy]:
    """What the peer's offer or answer says; raises Malformed and PeerRefuses."""
    if body["type"] == "refusal":
        raise _refusal(channel, body)
    own = {address for _, address in candidates.own_addresses()}
    side = offers.read_side(body, own)
    keys = ours.agree(offers.read_keys(body, channel.peer.public.id))
    try:
        return keys, side, offers.agreed(policy, side.policy)
    except ValueError as error:
        raise NoPath(reason=str(error)) from None


async def _unless_refused(channel: Channel, work: Coroutine[Any, Any, T], first: Awaitable[None]) -> T:
    """The outcome of `work`, or the peer's refusal if that comes first; `first` is done meanwhile."""
    working, refused = asyncio.create_task(work), asyncio.create_task(_refused(channel))
    async with _ended_with_block(working, refused):
        await first
        await asyncio.wait([working, refused], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            refused.result()
        return await working


@contextlib.asynccontextmanager
async def _ended_with_block(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    """However the block is left, the tasks have ended after it."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _refused(channel: Channel) -> None:
    raise _refusal(channel, await channel.receive("refusal", timeout=3600))


def _refusal(channel: Channel, body: dict[str, Any]) -> TunnelError:
    """What the peer's refusal is to the user."""
    said = body.get("reason")
    reason = said[:200] if isinstance(said, str) and said.isprintable() else "no reason given"
    if body.get("code") == NoPath.code():  # it has only given up a moment sooner
        return NoPath(reason=reason)
    return PeerRefuses(name=channel.peer.name, reason=reason)


async def _up(channel: Channel, keys: SessionKeys, path: Path, policy: Policy, backend: wireguard.Backend,
              begun: float) -> Tunnel:
    """WireGuard over the path, and the first echo.

    A handshake that nobody hears is not repeated for five seconds, so the responder is up first (and silent, see
    `interface.up`), and the initiator waits for its word.
    """
    made: interface.Interface | None = None
    echo: Echo | None = None
    try:
        if channel.role == "initiator":
            await _peer_up(channel)
            made = await interface.up(keys, path, channel.role, backend=backend)
        else:
            made = await interface.up(keys, path, channel.role, backend=backend)
            await channel.send("up")
        echo = Echo.open(made.local_address, made.remote_address, made.echo_port)
        await health.first_answer(made, echo, limit=ECHO_LIMIT)
        tunnel = Tunnel(channel, keys, made, echo, path, policy, round((time.monotonic() - begun) * 1000, 1))
        await tunnel.start()
    except BaseException:
        if echo:
            echo.close()
        path.close()
        if made:
            await made.close()
        raise
    return tunnel


async def _peer_up(channel: Channel) -> None:
    body = await channel.receive("up", "refusal", timeout=UP_LIMIT)
    if body["type"] == "refusal":
        raise _refusal(channel, body)


# --- Responder ---


async def accept(identity: Identity, peers: Peers, servers: Sequence[Server], handler: Handler, *,
                 policy: Policy = "prefer-direct", once: bool = False, program: str = "",
                 tell: Tell = _quiet) -> None:
    """Wait for paired peers at all servers and serve their sessions, until cancelled; with `once`, a single one.

    Whoever is not paired gets no answer at all. Raises LeftoversRemain and WireGuardMissing before it waits.
    """
    await asyncio.to_thread(_sweep)
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
        self.served = asyncio.Event()  # a session has come to its end
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
        self._waiting: asyncio.Task[None] | None = None
        self._renewed = 0.0

    def renew(self) -> None:
        """Wait over new connections; the rendezvous takes the newest for the right one. Not too often."""
        if self._waiting and time.monotonic() - self._renewed < RENEW_INTERVAL:
            return
        if self._waiting:
            self._renewed = time.monotonic()
            self._waiting.cancel()  # its connections end in their own time
        self._waiting = self._spawn(self._wait())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _wait(self) -> None:
        async for over, message in signalling.wait(self._servers, self._identity, self._tell):
            try:
                self._rung(over, message)
            except TunnelError as error:  # the store of peers cannot be read
                self._tell(str(error))

    def _rung(self, over: Signalling, message: signalling.Message) -> None:
        peer = self._peers.by_id(message.sender)
        if peer is None:
            self._tell(f"a host that is not paired has rung (its id begins with {message.sender[:4].hex()})")
            self._openers.pop(message.sender, None)
            return
        opener = self._openers.setdefault(peer.public.id, Opener(self._identity, peer.public))
        try:
            sealed = opener.open(message.data, role="initiator")
            kind = offers.type_of(sealed.body)
        except (OfferRejected, Malformed) as error:
            self._tell(f"from {peer.name}, or in its name: {error}")
            return
        if known := self._sessions.get(sealed.session):
            if known.peer.public == peer.public:
                known.take(sealed, over, message.line)
        elif kind == "offer":
            channel = Called(self._identity, peer, sealed.session, self._tell, over, message.line, self.renew)
            self._begin(channel, sealed.body)

    def _begin(self, channel: Called, offer: dict[str, Any]) -> None:
        of_peer = sum(each.peer.public == channel.peer.public for each in self._sessions.values())
        if len(self._sessions) >= SESSIONS_MAX or of_peer >= SESSIONS_EACH:
            self._spawn(self._refuse(channel, "it serves too many sessions already"))
        else:
            self._sessions[channel.session] = channel
            self._spawn(self._serve(channel, offer))

    async def _serve(self, channel: Called, offer: dict[str, Any]) -> None:
        name = channel.peer.name
        try:
            tunnel = await _answer(channel, offer, self._policy, self._program)
            self._tell(f"{name} is connected: {tunnel.path.kind}, {tunnel.path.reason}")
            try:
                await _until_ended(self._handler(tunnel), tunnel)
            finally:
                await tunnel.close()
            self._tell(f"{name} has gone")
        except TunnelError as error:
            self._tell(f"{name}: {error}")
            await self._refuse(channel, str(error.fields.get("reason", error.message)), error.code())
        except Malformed as error:
            self._tell(f"{name} sends an offer that makes no sense: {error}")
        except Exception as error:  # one session shall not end the others
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


async def _until_ended(work: Coroutine[Any, Any, None], tunnel: Tunnel) -> None:
    """Do `work` for as long as the tunnel stands."""
    working, ended = asyncio.create_task(work), asyncio.create_task(tunnel.ended.wait())
    async with _ended_with_block(working, ended):
        await asyncio.wait([working, ended], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()


async def _answer(channel: Called, offer: dict[str, Any], policy: Policy, program: str) -> Tunnel:
    """The responder's side of `open_tunnel`; raises TunnelError and Malformed."""
    begun = time.monotonic()
    backend = await asyncio.to_thread(wireguard.backend)
    ours = Ours(channel.session, "responder", channel.identity.public.id)
    keys, theirs, agreed = _read(channel, ours, offer, policy)
    local, token = await _gathered(channel, agreed)
    try:
        attempt = Attempt(local, theirs.remote(), keys.probe(0), "responder", agreed, token)
        # Its NAT is opened before the initiator learns where to send to: see tunnel.punch.
        attempt.start()
        said = {"program": program, **offers.keys(ours.public), **offers.side(local, agreed)}

        async def go() -> None:
            await channel.receive("go", timeout=GO_LIMIT, attempt=0)
            attempt.go()

        async with _ended_with_block(asyncio.create_task(go())):
            await _send_answer(channel, said)
            path = await attempt.result()
    except BaseException:
        local.sender.close()
        raise
    return await _up(channel, keys, path, agreed, backend, begun)


async def _send_answer(channel: Called, said: dict[str, Any]) -> None:
    try:
        await channel.send("answer", said)
    except RendezvousUnavailable as error:
        raise NoPath(reason=f"the answer could not be sent: {error}") from error
