# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairing over a rendezvous: a nameplate is opened or visited, and the state machine handles the messages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

from migrator.base import strict_json
from migrator.base.clock import now
from migrator.base.strict_json import Malformed
from migrator.errors.documented import DocumentedError
from tunnel.identity import tunnel_config
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.tunnel_config import SERVERS_MAX, Server
from tunnel.pairing.codes import Code
from tunnel.pairing.state_machine import LIFE, NOTE_MAX, Pairing, Partner, Side, State
from tunnel.signalling.link import Link, unavailable
from tunnel.tunnel_errors import PairingFailed, RendezvousUnavailable

CONNECT = 5.0  # seconds for each server
STEP = 30.0  # seconds for each answer from the other side, which is a program, not a person

# Raises an error of `peers` if this host cannot or will not be paired with that identity.
Check = Callable[[PublicIdentity], None]
Pin = Callable[[Partner], None]


async def invite(servers: Sequence[Server], identity: Identity, *, show: Callable[[Code, Server], None],
                 check: Check, pin: Pin) -> Partner:
    """Get a code, `show` it, and wait until somebody has paired with it; `pin` is called before the other side is told.

    Raises RendezvousUnavailable, PairingFailed, and what `check` and `pin` raise.
    """
    reasons: list[str] = []
    for server in servers:
        try:
            link, nameplate = await _opened(server)
        except RendezvousUnavailable as error:
            reasons.append(str(error.fields["reason"]))
            continue
        try:
            code = Code.make(nameplate)
            show(code, server)
            machine = Pairing(Side.INVITER, code, identity, _urls(server, servers), now())
            return await _run(link, machine, check, pin)
        finally:
            await link.close()
    raise RendezvousUnavailable(reason="; ".join(reasons) or "none is known", config=tunnel_config.PATH)


async def join(servers: Sequence[Server], code: Code, identity: Identity, *, check: Check, pin: Pin) -> Partner:
    """Pair with the host that has shown the code; raises what `invite` raises.

    The code does not name the server, so each one is asked for the nameplate until one has it.
    """
    reasons: list[str] = []
    refusal = ""
    for server in servers:
        try:
            link = await Link.open(server, CONNECT)
        except RendezvousUnavailable as error:
            reasons.append(str(error.fields["reason"]))
            continue
        try:
            refusal = await _visited(link, code)
            if not refusal:
                machine = Pairing(Side.JOINER, code, identity, _urls(server, servers), now())
                return await _run(link, machine, check, pin)
        finally:
            await link.close()
    if refusal:
        raise PairingFailed(reason=f"{refusal}: it has already been used, has expired, or belongs to another "
                                   "rendezvous server")
    raise RendezvousUnavailable(reason="; ".join(reasons) or "none is known", config=tunnel_config.PATH)


async def _opened(server: Server) -> tuple[Link, str]:
    link = await Link.open(server, CONNECT)
    try:
        await link.send({"type": "pair", "nameplate": ""})
        answer = await link.receive(CONNECT)
    except BaseException:
        await link.close()
        raise
    nameplate = answer.get("nameplate")
    if not isinstance(nameplate, str) or not re.fullmatch("[0-9]{1,6}", nameplate):
        await link.close()
        raise unavailable(server, f"it refused: {_reason(answer)}")
    return link, nameplate


async def _visited(link: Link, code: Code) -> str:
    """Go to the nameplate; returns why not, if nobody waits there."""
    await link.send({"type": "pair", "nameplate": code.nameplate})
    answer = await link.receive(CONNECT)
    return "" if answer.get("type") == "met" else _reason(answer)


async def _run(link: Link, machine: Pairing, check: Check, pin: Pin) -> Partner:
    """Carry messages until both sides are done; any failure burns the code on both sides."""
    try:
        for note in machine.start():
            await _send(link, note)
        while True:
            sent = machine.receive(await _next(link, machine), now())
            # Refused as early as possible: once the other side has pinned this host, its pairing would be one-sided.
            if machine.partner:
                check(machine.partner.public)
            if machine.partner and machine.paired:
                pin(machine.partner)
            for note in sent:
                await _send(link, note)
            if machine.partner and machine.paired:
                return machine.partner
    except (DocumentedError, asyncio.CancelledError):
        await _say_goodbye(link, machine)
        raise


async def _next(link: Link, machine: Pairing) -> bytes:
    # Until somebody comes, a person has to be told the code; after that only programs talk.
    limit = LIFE if machine.state is State.WAITING else STEP
    try:
        async with asyncio.timeout(limit):
            message = await link.receive()
        if message.get("type") == "note":
            return strict_json.data(message, "data", NOTE_MAX)
    except TimeoutError:
        raise machine.burn(f"the other side did not answer within {limit:.0f} seconds") from None
    except Malformed as error:
        raise machine.burn(f"the rendezvous server sent something invalid: {error}") from None
    if message.get("type") == "gone":
        raise machine.burn("the other side went away: the code was wrong there, or the connection was lost")
    raise machine.burn(_reason(message))


async def _send(link: Link, note: bytes) -> None:
    await link.send({"type": "note", "data": strict_json.encode(note)})


async def _say_goodbye(link: Link, machine: Pairing) -> None:
    machine.burn("")
    try:
        async with asyncio.timeout(1.0):
            await _send(link, machine.farewell)
    except (DocumentedError, TimeoutError):
        pass  # it will notice by itself


def _urls(used: Server, servers: Sequence[Server]) -> tuple[str, ...]:
    """Where this host can be rung: the server that served the pairing comes first."""
    return tuple(server.url for server in dict.fromkeys([used, *servers]))[:SERVERS_MAX]


def _reason(answer: dict[str, Any]) -> str:
    reason = answer.get("reason")
    return reason[:100] if isinstance(reason, str) and reason.isprintable() else "no reason given"
