# SPDX-License-Identifier: GPL-2.0-or-later
"""The connections that a rendezvous has: a queue for each, and who can be reached over which."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from migrator.base import strict_json
from migrator.base.clock import now
from tunnel.rendezvous.limits import Bucket, Buckets, Limits
from tunnel.signalling.link import REPLACED


class Line:
    """A connection with a queue of its own, so that nobody ever waits because somebody else is slow."""

    def __init__(self, socket: ServerConnection, address: str, limits: Limits) -> None:
        self.socket = socket
        self.address = address
        self.name = secrets.token_hex(8)
        self.id = b""  # of the identity that has presented itself
        self.bucket = Bucket(limits.messages)
        # For what others send. Rings have one of their own: senders who know the line's name take no place among them.
        self.rings = Bucket(limits.brought, now)
        self._messages = Bucket(limits.brought, now)
        self._messages_each = Buckets(limits.messages_each, limits.senders, now)
        self._limits = limits
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(limits.queue)
        self._queued = 0  # bytes, with those that are being sent
        self._room = asyncio.Event()
        self._writer = asyncio.create_task(self._write())
        self.ending = False

    def may_be_sent(self, address: str) -> bool:
        """Whether one more message from there is allowed now; an address takes no more than its share from others."""
        return self._messages_each.take(address) and self._messages.take()

    def put(self, message: dict[str, Any]) -> bool:
        """Queue a message; False if too much is queued already."""
        data = strict_json.dump(message)
        if self._queue.full() or self._queued + len(data) > self._limits.queued_bytes:
            return False
        self._queue.put_nowait(data)
        self._queued += len(data)
        return True

    async def answer(self, message: dict[str, Any]) -> None:
        """Queue what the other end itself is waiting for, once there is room; nobody else waits for that."""
        while not (self.ending or self._writer.done() or self.put(message)):
            self._room.clear()
            await self._room.wait()

    def end(self, reason: str) -> None:
        """Close the connection; the reason is for the other side to show."""
        if not self.ending:
            self.ending = True
            self._room.set()  # the writer may not have begun with what fills the queue
            self._writer.cancel()
            self._writer = asyncio.create_task(self._refuse(reason))

    async def close(self) -> None:
        """Release what the line holds; a refusal that is being sent is waited for."""
        if not self.ending:
            self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                data = await self._queue.get()
                try:
                    async with asyncio.timeout(self._limits.slow):
                        await self.socket.send(data.decode())
                except TimeoutError:
                    # It does not even accept the packets that would close it in good order.
                    self.socket.transport.abort()
                    return
                finally:
                    self._queued -= len(data)
                    self._room.set()

    async def _refuse(self, reason: str) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(2.0):
                await self.socket.send(strict_json.dump({"type": "refused", "reason": reason}).decode())
                await self.socket.close(1008)
            return
        self.socket.transport.abort()


class Switchboard:
    """Which line leads to whom."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lines: dict[bytes, dict[str, Line]] = {}
        self._waiting: dict[bytes, Line] = {}

    def add(self, line: Line, id: bytes, *, waits: bool) -> bool:
        """Admit a line whose identity has been proved; False if that identity has too many.

        Of two that wait for the same identity the newer one is right: after its address has changed, a host comes back
        long before its old connection is known to be dead.
        """
        own = self._lines.setdefault(id, {})
        if len(own) >= self._limits.lines_per_identity:
            return False
        line.id = id
        own[line.name] = line
        if waits:
            before = self._waiting.get(id)
            self._waiting[id] = line
            if before:
                before.end(REPLACED)
        return True

    def remove(self, line: Line) -> None:
        """The line has ended; safe to repeat."""
        own = self._lines.get(line.id, {})
        own.pop(line.name, None)
        if not own:
            self._lines.pop(line.id, None)
        if self._waiting.get(line.id) is line:
            del self._waiting[line.id]

    def waiting(self, id: bytes) -> Line | None:
        """Where that identity can be rung."""
        return self._waiting.get(id)

    def line(self, id: bytes, name: str) -> Line | None:
        """That identity's connection of that name."""
        return self._lines.get(id, {}).get(name)
