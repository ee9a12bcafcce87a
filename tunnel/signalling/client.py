# SPDX-License-Identifier: GPL-2.0-or-later
"""A peer's connection to a rendezvous: ring a peer, pass sealed offers, be rung.

The rendezvous is not trusted: whom a message is from is its claim, until `seal.Opener` has proved it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tunnel.candidates import candidate
from tunnel.identity import tunnel_config
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.tunnel_config import Server
from tunnel.signalling.link import (
    DATA_MAX,
    ID_HEX,
    REPLACED,
    TAKES_NO_MORE,
    Link,
    ServerInfo,
    statement,
    unavailable,
)
from tunnel.tunnel_errors import PeerAbsent, RendezvousUnavailable

if TYPE_CHECKING:
    from tunnel.relay.relay_client import RelayToken

TIMEOUT = 5.0  # seconds, to connect to one server, and for each answer
QUEUE_MAX = 64  # messages not yet taken; more are dropped
LINE_HEX = 16  # characters of the name of a connection


@dataclasses.dataclass(frozen=True)
class Message:
    """A message for this host: from the identity with the id `sender`, over its connection `line`."""

    sender: bytes
    line: str
    data: bytes


class Signalling:
    """A connection over which this host has presented itself; made by `connect`."""

    def __init__(self, link: Link, identity: Identity) -> None:
        self._link = link
        self._identity = identity
        self._refs = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._inbox: asyncio.Queue[Message | RendezvousUnavailable] = asyncio.Queue(QUEUE_MAX + 1)
        self._ended: RendezvousUnavailable | None = None
        self._reader: asyncio.Task[None] | None = None
        self.replaced = False  # ended by the server, because the same identity waits there over a newer connection

    @property
    def server(self) -> Server:
        """The server that this connection leads to."""
        return self._link.server

    @property
    def ended(self) -> bool:
        """Whether the connection can no longer be used."""
        return self._ended is not None

    @property
    def info(self) -> ServerInfo:
        """What the server has said about itself."""
        return self._link.info

    @classmethod
    async def connect(cls, servers: Sequence[Server], identity: Identity, *, peer: PublicIdentity | None = None,
                      waits: bool = False, timeout: float = TIMEOUT) -> Signalling:
        """Connect to the first server that answers, or, with `peer`, the first at which that peer waits.

        With `waits` this host can be rung here from now on. Raises RendezvousUnavailable with every server's reason.
        """
        reasons: list[str] = []
        fallback: Signalling | None = None
        for server in servers:
            try:
                found = await cls._connect(server, identity, waits=waits, timeout=timeout)
                if not peer or await found.finds(peer):
                    if fallback:
                        await fallback.close()
                    return found
                if fallback:
                    await found.close()
                else:
                    fallback = found
            except RendezvousUnavailable as error:
                reasons.append(str(error.fields["reason"]))
        if fallback:
            return fallback
        raise RendezvousUnavailable(reason="; ".join(reasons) or "none is known", config=tunnel_config.PATH)

    @classmethod
    async def _connect(cls, server: Server, identity: Identity, *, waits: bool, timeout: float) -> Signalling:
        link = await Link.open(server, timeout)
        try:
            signature = identity.sign(statement(link.challenge, link.certificate))
            await link.send({"type": "present", "identity": identity.public.to_text(),
                             "signature": strict_json.encode(signature), "waits": waits})
            answer = await link.receive(timeout)
        except BaseException:
            await link.close()
            raise
        if answer.get("type") != "welcome":
            await link.close()
            raise unavailable(server, _said(answer))
        signalling = cls(link, identity)
        signalling._reader = asyncio.create_task(signalling._read())
        return signalling

    async def ring(self, peer: PublicIdentity, data: bytes, name: str = "") -> None:
        """Send to wherever that peer waits at this server; raises PeerAbsent and RendezvousUnavailable.

        `name` is what the error calls the peer.
        """
        answer = await self._ask({"type": "send", "to": peer.id.hex(), "data": strict_json.encode(_checked(data))})
        self._delivered(answer, name or peer.fingerprint)

    async def send(self, peer: PublicIdentity, data: bytes, line: str, *, or_ring: bool = False) -> None:
        """Send over the very connection of the peer's from which a message came; raises as `ring` does.

        With `or_ring`, if too much is sent there: others who know the connection's name may be doing so, but rings have
        places of their own.
        """
        answer = await self._ask(
            {"type": "send", "to": peer.id.hex(), "line": line, "data": strict_json.encode(_checked(data))}
        )
        if or_ring and answer.get("reason") == TAKES_NO_MORE:
            await self.ring(peer, data)
            return
        self._delivered(answer, peer.fingerprint)

    async def finds(self, peer: PublicIdentity) -> bool:
        """Whether that peer waits at this server; raises RendezvousUnavailable."""
        return (await self._ask({"type": "find", "to": peer.id.hex()})).get("ok") is True

    async def relay_token(self, peer: PublicIdentity, session: bytes) -> RelayToken:
        """The right to be forwarded to and from that peer in that session; raises RendezvousUnavailable.

        The peer asks for its own. The server sees a hash of the session's id, never the id.
        """
        hashed = hashlib.blake2b(session, digest_size=16, person=b"migrator-rel").digest()
        answer = await self._ask({"type": "token", "to": peer.id.hex(), "session": strict_json.encode(hashed)})
        if answer.get("ok") is not True:
            raise unavailable(self.server, _said(answer))
        from tunnel.relay.relay_client import RelayToken

        try:
            own = {address for _, address in candidate.own_addresses()}
            return RelayToken.from_json(answer, self._link.address, self.server.port, own=own, pin=self.server.pin)
        except (Malformed, ValueError, KeyError, TypeError) as error:
            raise unavailable(self.server, f"its relay token is malformed: {error}") from None

    async def receive(self, timeout: float | None = None) -> Message:
        """The next message; raises TimeoutError, and RendezvousUnavailable once the connection has ended."""
        async with asyncio.timeout(timeout):
            found = await self._inbox.get()
        if isinstance(found, RendezvousUnavailable):
            self._inbox.put_nowait(found)  # for the next caller
            raise found
        return found

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Every message, until the connection ends with RendezvousUnavailable."""
        while True:
            yield await self.receive()

    async def close(self) -> None:
        """End the connection; safe to repeat."""
        self._end(unavailable(self.server, "the connection was closed"))  # at once: closing may take its time
        if self._reader:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._link.close()

    async def __aenter__(self) -> Signalling:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._ended:
            raise self._ended
        ref = next(self._refs)
        future = self._answers[ref] = asyncio.get_running_loop().create_future()
        try:
            await self._link.send(question | {"ref": ref})
            return await asyncio.wait_for(future, TIMEOUT)
        except TimeoutError:
            raise unavailable(self.server, f"no answer within {TIMEOUT:g} seconds") from None
        finally:
            del self._answers[ref]

    def _delivered(self, answer: dict[str, Any], name: str) -> None:
        if answer.get("ok") is True:
            return
        if answer.get("reason") == "absent":
            raise PeerAbsent(name=name, server=self.server)
        raise unavailable(self.server, _said(answer))

    async def _read(self) -> None:
        try:
            while True:
                self._take(await self._link.receive())
        except RendezvousUnavailable as error:
            self._end(error)

    def _take(self, message: dict[str, Any]) -> None:
        """One message from the server. A malformed or unknown one is dropped: nothing depends on it."""
        with contextlib.suppress(Malformed, ValueError):
            if message.get("type") == "answer":
                future = self._answers.get(strict_json.integer(message, "ref", 1, 2**53))
                if future and not future.done():
                    future.set_result(message)
            elif message.get("type") == "message" and self._inbox.qsize() < QUEUE_MAX:
                sender = bytes.fromhex(strict_json.text(message, "from", ID_HEX))
                line = strict_json.text(message, "line", LINE_HEX)
                self._inbox.put_nowait(Message(sender, line, strict_json.data(message, "data", DATA_MAX)))
            elif message.get("type") == "refused":
                self.replaced = message.get("reason") == REPLACED
                self._end(unavailable(self.server, _said(message)))

    def _end(self, error: RendezvousUnavailable) -> None:
        if self._ended:
            return
        self._ended = error
        self._inbox.put_nowait(error)  # _take leaves one place for it
        for future in self._answers.values():
            if not future.done():
                future.set_exception(error)


def _checked(data: bytes) -> bytes:
    if len(data) > DATA_MAX:
        raise ValueError("more than a message can carry")
    return data


def _said(answer: dict[str, Any]) -> str:
    """A refusal's reason, made safe to show."""
    reason = answer.get("reason")
    return "it refused: " + (reason[:100] if isinstance(reason, str) and reason.isprintable() else "no reason given")
