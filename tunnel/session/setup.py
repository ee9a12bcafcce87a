# SPDX-License-Identifier: GPL-2.0-or-later
"""A session, from the first offer to a tunnel that carries traffic.

The side that waits is in `tunnel.session.responder`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from migrator.base.clock import now
from migrator.base.strict_json import Malformed
from tunnel import wireguard
from tunnel.candidates import candidate, gathering
from tunnel.candidates.gathering import Local
from tunnel.candidates.outlook import Policy
from tunnel.candidates.ports import Ports
from tunnel.health import path_health
from tunnel.health.echo import Echo
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer
from tunnel.identity.seal import SESSION_SIZE
from tunnel.identity.tunnel_config import Server
from tunnel.interface import device, leftovers
from tunnel.punching.prober import Attempt, Path
from tunnel.relay.relay_client import RelayToken
from tunnel.session import live_status, offers
from tunnel.session.channel import Calling, Channel, Tell
from tunnel.session.live_tunnel import Tunnel
from tunnel.session.offers import Side
from tunnel.session.session_keys import Ours, SessionKeys
from tunnel.tunnel_errors import NoPath, PeerRefuses, TunnelError

ANSWER_LIMIT = 15.0  # seconds that a peer may take to answer an offer
UP_LIMIT = 10.0  # and to have its interface up once there is a path
ECHO_LIMIT = 12.0  # until something comes through the tunnel: two of WireGuard's handshakes

T = TypeVar("T")


def quiet(_text: str) -> None:
    """For callers that do not want to be told."""


def sweep() -> None:
    """Remove what killed processes have left; raises LeftoversRemain."""
    leftovers.sweep()
    live_status.sweep()


async def open_tunnel(peer: Peer, identity: Identity, servers: Sequence[Server], policy: Policy = "prefer-direct", *,
                      program: str = "", tell: Tell = quiet) -> Tunnel:
    """A tunnel to a paired peer, over which an echo has come back; the caller closes it.

    `servers` are tried in order, those at which the peer waits first. Raises RendezvousUnavailable, PeerAbsent,
    PeerSilent, PeerRefuses, NoPath, and what `device.up` and `path_health.first_answer` raise. Nothing is left behind
    in that case, nor if it is cancelled.
    """
    begun = now()
    await asyncio.to_thread(sweep)
    backend = await asyncio.to_thread(wireguard.backend)
    channel = Calling(identity, peer, secrets.token_bytes(SESSION_SIZE), servers, tell)
    try:
        ours = Ours(channel.session, "initiator", identity.public.id)
        local, token = await gathered(channel, policy)
        try:
            said = {"program": program, **offers.keys(ours.public), **offers.side(local, policy)}
            await channel.send("offer", said)
            body = await channel.receive("answer", "refusal", timeout=ANSWER_LIMIT)
            keys, theirs, agreed = read(channel, ours, body, policy)
            attempt = Attempt(local, theirs.remote(), keys.probe(0), "initiator", agreed, token)
            with contextlib.closing(attempt):
                attempt.start()
                path = await _unless_refused(channel, attempt.result(), channel.send("go", {"attempt": 0}))
        except BaseException:
            local.sender.close()
            raise
        return await up(channel, keys, path, agreed, backend, begun)
    except Malformed as error:
        await channel.close()
        raise PeerRefuses(name=peer.name, reason=f"its answer is invalid: {error}") from None
    except BaseException:
        await channel.close()
        raise


async def gathered(channel: Channel, policy: Policy) -> tuple[Local, RelayToken | None]:
    """A fresh port with everything that can be known about it, and the right to use the relay."""
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


def read(channel: Channel, ours: Ours, body: dict[str, Any], policy: Policy) -> tuple[SessionKeys, Side, Policy]:
    """What the peer's offer or answer says; raises Malformed and PeerRefuses."""
    if body["type"] == "refusal":
        raise refusal(channel, body)
    own = {address for _, address in candidate.own_addresses()}
    side = offers.read_side(body, own)
    keys = ours.agree(offers.read_keys(body, channel.peer.public.id))
    try:
        return keys, side, offers.agreed(policy, side.policy)
    except ValueError as error:
        raise NoPath(reason=str(error)) from None


async def _unless_refused(channel: Channel, work: Coroutine[Any, Any, T], first: Awaitable[None]) -> T:
    """The outcome of `work`, or the peer's refusal if that comes first; `first` is done meanwhile."""
    working, refused = asyncio.create_task(work), asyncio.create_task(_refused(channel))
    async with ended_with_block(working, refused):
        await first
        await asyncio.wait([working, refused], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            refused.result()
        return await working


@contextlib.asynccontextmanager
async def ended_with_block(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    """However the block is left, the tasks have ended after it."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(end: Coroutine[Any, Any, object], work: Coroutine[Any, Any, None]) -> None:
    """Do `work` until it is done, or `end` is; raises what either raises."""
    working, ended = asyncio.create_task(work), asyncio.create_task(end)
    async with ended_with_block(working, ended):
        for task in (await asyncio.wait([working, ended], return_when=asyncio.FIRST_COMPLETED))[0]:
            task.result()


async def _refused(channel: Channel) -> None:
    raise refusal(channel, await channel.receive("refusal", timeout=3600))


def refusal(channel: Channel, body: dict[str, Any]) -> TunnelError:
    """The peer's refusal as an error for the user."""
    said = body.get("reason")
    reason = said[:200] if isinstance(said, str) and said.isprintable() else "no reason given"
    if body.get("code") == NoPath.code():  # it has only given up a moment sooner
        return NoPath(reason=reason)
    return PeerRefuses(name=channel.peer.name, reason=reason)


async def up(channel: Channel, keys: SessionKeys, path: Path, policy: Policy, backend: wireguard.Backend,
              begun: float) -> Tunnel:
    """WireGuard over the path, and the first echo.

    A handshake that nobody hears is not repeated for five seconds, so the responder comes up first (and stays silent,
    see `device.up`), and the initiator waits for its message.
    """
    made: device.Interface | None = None
    echo: Echo | None = None
    try:
        if channel.role == "initiator":
            await _peer_up(channel)
            made = await device.up(keys, path, channel.role, backend=backend)
        else:
            made = await device.up(keys, path, channel.role, backend=backend)
            await channel.send("up")
        echo = Echo.open(made.local_address, made.remote_address, made.echo_port)
        await path_health.first_answer(made, echo, limit=ECHO_LIMIT)
        tunnel = Tunnel(channel, keys, made, echo, path, policy, round((now() - begun) * 1000, 1))
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
        raise refusal(channel, body)
