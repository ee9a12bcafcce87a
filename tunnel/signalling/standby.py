# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that can be rung: it waits at every rendezvous that it knows, for as long as desired."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence

from migrator.base.clock import now
from tunnel.identity.own_identity import Identity
from tunnel.identity.tunnel_config import Server
from tunnel.signalling.client import QUEUE_MAX, TIMEOUT, Message, Signalling
from tunnel.signalling.link import REPLACED, unavailable
from tunnel.tunnel_errors import RendezvousUnavailable

BACKOFF = (1.0, 60.0)  # seconds between tries: the first, the longest
STABLE = 30.0  # seconds after which a connection counts as good, and the next try comes soon again


class _Place:
    """Waits at one server, over one connection after the other."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.over: Signalling | None = None  # its current connection
        self.taken = False  # its last one was ended, because the same identity waits over a newer one
        self.at_once = asyncio.Event()  # do not pause before the next try


class Waiting:
    """Be rung at every server at once, forever: what arrived, and the connection to answer over.

    A server that is down is tried again, less and less often. If the same identity has taken this host's place, that is
    not taken back before it is free: otherwise two of them would throw each other out forever. `on_state` is told in
    words what has changed.
    """

    def __init__(self, servers: Sequence[Server], identity: Identity,
                 on_state: Callable[[str], None] | None = None) -> None:
        self._identity = identity
        self._tell = on_state or (lambda _: None)
        self._inbox: asyncio.Queue[tuple[Signalling, Message]] = asyncio.Queue(QUEUE_MAX)
        self._places: dict[Server, list[_Place]] = {}  # one, or while it is renewed two: the newer is last
        self._leaving: set[asyncio.Task[None]] = set()
        self._stood = asyncio.Event()  # set, and replaced, whenever a connection is established
        self.go_to(servers)

    def go_to(self, servers: Sequence[Server]) -> None:
        """Wait at these from now on, and at no others; where it already waits nothing changes."""
        for server in [known for known in self._places if known not in servers]:
            for place in self._places.pop(server):
                self._leave(place)
            self._tell(f"no longer waiting at {server}")
        for server in servers:
            if server not in self._places:
                self._places[server] = [self._begin(server)]

    def renew(self) -> None:
        """Wait over new connections. Each old one stays until its new one is established, so that no ring is missed.

        If none is established, or the last renewal is still in progress, nothing is added: it retries without a pause.
        """
        for server, places in self._places.items():
            if places[-1].over:
                places.append(self._begin(server))
            else:
                places[-1].at_once.set()

    async def newest(self, server: Server) -> Signalling:
        """The connection over which this host waits there now; raises RendezvousUnavailable if none is established."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT):
                while places := self._places.get(server):
                    for place in reversed(places):
                        if place.over and not place.over.ended:
                            return place.over
                    await self._stood.wait()
        raise unavailable(server, "this host no longer waits there")

    def _begin(self, server: Server) -> _Place:
        place = _Place()
        place.task = asyncio.create_task(self._keep_waiting(server, place))
        return place

    def _leave(self, place: _Place, limit: float = 0.0) -> None:
        """It ends at once, or by itself within `limit` seconds."""
        assert place.task  # noqa: S101
        self._leaving.add(place.task)
        place.task.add_done_callback(self._leaving.discard)
        if limit:
            asyncio.get_running_loop().call_later(limit, place.task.cancel)
        else:
            place.task.cancel()

    def _let_end(self, place: _Place) -> None:
        """What was sent to it before its successor was established may still arrive, before the server's last message.

        One that has just lost its connection would come back, and throw its successor out.
        """
        place.at_once.set()
        self._leave(place, TIMEOUT if place.over else 0.0)  # if the path is dead that message never comes

    async def _keep_waiting(self, server: Server, place: _Place) -> None:
        pause, longest = BACKOFF
        while place in self._places.get(server, []):
            begun = now()
            place.at_once.clear()
            failed = ""
            try:
                if not (place.taken and await self._is_taken(server)):
                    await self._wait(server, place)
            except RendezvousUnavailable as error:
                if self._is_newest(server, place):  # otherwise it has been replaced
                    failed = str(error.fields["reason"])
            except Exception as error:  # a host that no longer waits must not look as if it did
                failed = f"{server}: {type(error).__name__}: {error}"
            if now() - begun > STABLE:
                pause = BACKOFF[0]
            if failed:
                self._tell(f"{failed}; next try in {pause:.0f} s")
            try:
                # Not all agents at the same instant after the server was restarted.
                async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):  # noqa: S311
                    await place.at_once.wait()
                pause = BACKOFF[0]
            except TimeoutError:
                pause = min(longest, pause * 2)

    async def _wait(self, server: Server, place: _Place) -> None:
        """Wait there over a connection, until the same identity has taken its place; raises RendezvousUnavailable."""
        async with await Signalling.connect([server], self._identity, waits=True) as over:
            self._stands(server, place, over)
            self._tell(f"waiting at {server}")
            try:
                async for message in over:
                    await self._inbox.put((over, message))
            except RendezvousUnavailable:
                place.taken = over.replaced
                if not place.taken:
                    raise
            finally:
                place.over = None
        if self._is_newest(server, place):
            self._tell(f"{server}: {REPLACED}: another agent of this host, one with a copy of its identity, or this "
                       "rendezvous server under another name; this one waits there again once that has gone")

    async def _is_taken(self, server: Server) -> bool:
        """Whether somebody with this host's identity waits there; raises RendezvousUnavailable."""
        async with await Signalling.connect([server], self._identity) as asking:
            return await asking.finds(self._identity.public)

    def _stands(self, server: Server, place: _Place, over: Signalling) -> None:
        """It waits there now: those before it are no longer needed."""
        place.over, place.taken = over, False
        place.at_once.clear()  # what was asked for meanwhile has been done
        places = self._places.get(server, [])
        while place in places and places[0] is not place:
            self._let_end(places.pop(0))
        self._stood.set()
        self._stood = asyncio.Event()

    def _is_newest(self, server: Server, place: _Place) -> bool:
        return place in self._places.get(server, [])[-1:]

    async def __aiter__(self) -> AsyncIterator[tuple[Signalling, Message]]:
        while True:
            yield await self._inbox.get()

    async def close(self) -> None:
        """Stop waiting anywhere."""
        for place in [place for places in self._places.values() for place in places]:
            self._leave(place)
        self._places.clear()
        for task in self._leaving:
            task.cancel()
        self._stood.set()  # there is nothing to wait for any more
        await asyncio.gather(*self._leaving, return_exceptions=True)
