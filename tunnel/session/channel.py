# SPDX-License-Identifier: GPL-2.0-or-later
"""Sealed messages between the two sides of one session, over the current connection to a rendezvous.

Messages that are forged, replayed, reflected or malformed are reported and otherwise ignored: a rendezvous that tampers
can only make a session fail.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from migrator.base.strict_json import Malformed
from tunnel.identity import seal
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer
from tunnel.identity.seal import Opener, Sealed
from tunnel.identity.tunnel_config import Server
from tunnel.punching.probes import Role
from tunnel.relay.relay_client import RelayToken
from tunnel.session import offers
from tunnel.session.offers import Type
from tunnel.signalling.client import Message, Signalling
from tunnel.tunnel_errors import OfferRejected, PeerAbsent, PeerSilent, RendezvousUnavailable

LIFE = 120.0  # seconds for which a message is valid: allows for hosts' clocks that differ
QUEUE_MAX = 16

T = TypeVar("T")

# Is told in words what has happened.
Tell = Callable[[str], None]


class Channel:
    """One side's end; `Calling` and `Called` know where to send to."""

    def __init__(self, identity: Identity, peer: Peer, session: bytes, role: Role, tell: Tell) -> None:
        self.identity = identity
        self.peer = peer
        self.session = session
        self.role: Role = role
        self.tell = tell
        self._inbox: collections.deque[dict[str, Any]] = collections.deque(maxlen=QUEUE_MAX)  # nobody waited for these
        self._waiting: list[_Waiting] = []
        self._sequence = 0
        self._refused = ""  # why the last message that came in the peer's name was not accepted

    def _seal(self, kind: Type, body: dict[str, Any]) -> bytes:
        self._sequence += 1
        return seal.seal(self.identity, self.peer.public, session=self.session, role=self.role,
                         sequence=self._sequence, expires=time.time() + LIFE, body={"type": kind, **body})

    def _take(self, sealed: Sealed) -> None:
        """A message of this session has arrived."""
        try:
            offers.type_of(sealed.body)
        except Malformed as error:
            self.tell(f"dropped a message from {self.peer.name}: {error}")
            return
        for each in self._waiting:
            if each.wants(sealed.body) and not each.found.done():
                each.found.set_result(sealed.body)
                return
        self._inbox.append(sealed.body)

    async def send(self, kind: Type, body: dict[str, Any] | None = None) -> None:
        """Send a message; raises RendezvousUnavailable and PeerAbsent."""
        raise NotImplementedError

    async def relay_token(self) -> RelayToken | None:
        """The right to use the relay of the rendezvous in this session, if it has one."""
        raise NotImplementedError

    async def reflectors(self) -> Sequence[tuple[str, int]]:
        """The reflectors of the rendezvous."""
        raise NotImplementedError

    async def renew(self) -> None:
        """Reconnect to the rendezvous: the connection may have died with the path, and would notice only much later.

        Raises RendezvousUnavailable.
        """

    async def close(self) -> None:
        """End it; safe to repeat."""

    async def _ask_for_token(self, over: Signalling) -> RelayToken | None:
        return await over.relay_token(self.peer.public, self.session) if over.info.relay else None

    async def receive(self, *kinds: Type, timeout: float | None = None, attempt: int | None = None) -> dict[str, Any]:
        """The next message of one of these kinds (and about that punch); raises PeerSilent after `timeout` seconds."""
        waiting = _Waiting(kinds, attempt, asyncio.get_running_loop().create_future())
        for body in self._inbox:
            if waiting.wants(body):
                self._inbox.remove(body)
                return body
        self._waiting.append(waiting)
        try:
            return await asyncio.wait_for(waiting.found, timeout)
        except TimeoutError:
            reason = f"nothing was heard within {timeout:g} seconds"
            if self._refused:
                reason += f"; what came in its name was rejected: {self._refused}"
            raise PeerSilent(name=self.peer.name, reason=reason) from None
        finally:
            self._waiting.remove(waiting)


@dataclasses.dataclass(eq=False)
class _Waiting:
    """A caller that waits for a message."""

    kinds: Sequence[Type]
    attempt: int | None
    found: asyncio.Future[dict[str, Any]]

    def wants(self, body: dict[str, Any]) -> bool:
        return body["type"] in self.kinds and (self.attempt is None or body.get("attempt") == self.attempt)


async def _granted(channel: Channel, asking: Awaitable[RelayToken | None]) -> RelayToken | None:
    try:
        return await asking
    except RendezvousUnavailable as error:  # a relay that is full: try without
        channel.tell(str(error))
        return None


class Calling(Channel):
    """The initiator's end: has its own connection to a rendezvous, and makes another if that is lost."""

    def __init__(self, identity: Identity, peer: Peer, session: bytes, servers: Sequence[Server], tell: Tell) -> None:
        super().__init__(identity, peer, session, "initiator", tell)
        self._servers = servers
        self._opener = Opener(identity, peer.public)
        self._signalling: Signalling | None = None
        self._line = ""  # the peer's connection; it waits on others too
        self._tasks: set[asyncio.Task[None]] = set()

    async def _connected(self) -> Signalling:
        if self._signalling is None:
            self._signalling = await Signalling.connect(self._servers, self.identity, peer=self.peer.public)
            self._spawn(self._read(self._signalling))
        return self._signalling

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, signalling: Signalling) -> None:
        with contextlib.suppress(RendezvousUnavailable):
            async for message in signalling:
                self._open(message)
        if self._signalling is signalling:
            self._signalling, self._line = None, ""

    def _open(self, message: Message) -> None:
        if message.sender != self.peer.public.id:
            return
        try:
            self._take(self._opener.open(message.data, self.session, role="responder"))
            self._line = message.line
        except OfferRejected as error:
            self._refused = str(error.fields["reason"])
            self.tell(f"from {self.peer.name}, or in its name: {error}")

    async def send(self, kind: Type, body: dict[str, Any] | None = None) -> None:
        signalling = await self._connected()
        data = self._seal(kind, body or {})
        if self._line:
            try:
                await signalling.send(self.peer.public, data, self._line, or_ring=True)
                return
            except PeerAbsent:  # from there; it may wait elsewhere by now
                self._line = ""
        await signalling.ring(self.peer.public, data, self.peer.name)

    async def relay_token(self) -> RelayToken | None:
        return await _granted(self, self._ask_for_token(await self._connected()))

    async def reflectors(self) -> Sequence[tuple[str, int]]:
        return (await self._connected()).info.reflectors

    async def renew(self) -> None:
        old, self._signalling, self._line = self._signalling, None, ""
        if old:
            self._spawn(old.close())  # takes its time if nobody answers
        await self._connected()

    async def close(self) -> None:
        if self._signalling:
            await self._signalling.close()
            self._signalling = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Called(Channel):
    """The responder's end: answers over the server and the initiator's `line` on which it was last heard.

    The connection to that server may have been renewed meanwhile: `newest` returns the current one.
    """

    def __init__(self, identity: Identity, peer: Peer, session: bytes, tell: Tell, over: Signalling, line: str,
                 renew: Callable[[], None], newest: Callable[[Server], Awaitable[Signalling]]) -> None:
        super().__init__(identity, peer, session, "responder", tell)
        self._over = over
        self._line = line
        self._renew = renew
        self._newest = newest

    def take(self, sealed: Sealed, over: Signalling, line: str) -> None:
        """A message of this session has arrived, over this connection."""
        self._over, self._line = over, line
        self._take(sealed)

    async def renew(self) -> None:
        self._renew()

    async def send(self, kind: Type, body: dict[str, Any] | None = None) -> None:
        data = self._seal(kind, body or {})
        await self._ask(lambda over, line: over.send(self.peer.public, data, line))

    async def relay_token(self) -> RelayToken | None:
        return await _granted(self, self._ask(lambda over, _: self._ask_for_token(over)))

    async def reflectors(self) -> Sequence[tuple[str, int]]:
        return self._over.info.reflectors

    async def _ask(self, ask: Callable[[Signalling, str], Awaitable[T]]) -> T:
        over, line = await self._standing()
        try:
            return await ask(over, line)
        except RendezvousUnavailable:
            again = await self._standing()
            if again == (over, line):
                raise
            return await ask(*again)  # the connection was renewed before the answer arrived

    async def _standing(self) -> tuple[Signalling, str]:
        """What to answer over, and by which line. The initiator may be heard over another server meanwhile."""
        while True:
            heard, line = self._over, self._line
            newest = await self._newest(heard.server)
            if (self._over, self._line) == (heard, line):
                self._over = newest
                return newest, line
