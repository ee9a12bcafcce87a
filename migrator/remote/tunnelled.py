# SPDX-License-Identifier: GPL-2.0-or-later
"""A byte stream to a paired peer, through a tunnel that is up for as long as the stream is open.

The tunnel lives in an event loop in a thread of its own: its keepalives, its monitoring and a TCP relay go on while the
command's own threads read and write.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import migrator
from migrator.base import log
from migrator.errors.connection import ConnectionLost
from migrator.transfer.stream import Bytes, FileStream

if TYPE_CHECKING:
    from tunnel.candidates.outlook import Policy
    from tunnel.health.path_health import Quality
    from tunnel.session.inner_service import Purpose
    from tunnel.session.live_tunnel import Tunnel

CLOSE_LIMIT = 15.0  # seconds that taking a tunnel down may need
# Seconds of silence within a tunnel: longer than it tries to heal (tunnel.session.live_tunnel.HEAL_LIMIT).
PATIENCE = 75.0
T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own, where cleaning up takes no more than `close_limit` seconds."""

    def __init__(self, close_limit: float = CLOSE_LIMIT) -> None:
        self._close_limit = close_limit
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="migrator-tunnel", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait; a signal that ends the wait cancels the work and waits until that has cleaned up."""
        ended = threading.Event()

        async def to_its_end() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(to_its_end(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel() or future.cancelled():
                ended.wait(self._close_limit)  # `future` is done at once, but not what undoes the work
            raise

    def close(self) -> None:
        """End loop and thread; safe to repeat."""
        if self._thread.is_alive():
            with contextlib.suppress(concurrent.futures.TimeoutError):
                others = _others_ended(self._close_limit)
                asyncio.run_coroutine_threadsafe(others, self._loop).result(self._close_limit)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(self._close_limit)
            if not self._thread.is_alive():
                self._loop.close()


async def _others_ended(limit: float) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=limit)


class Opened:
    """A tunnel that was opened for a command."""

    def __init__(self, loop: Loop, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.loop = loop
        self._closed = False

    @property
    def fingerprint(self) -> str:
        """The peer's fingerprint."""
        return self.tunnel.peer.public.fingerprint

    def measure(self, *, throughput: bool = True) -> Quality:
        """The current quality of the path."""
        return self.loop.call(self.tunnel.measure(throughput=throughput))

    def require_stable(self) -> None:
        """Measure the path, which takes about a second; raises PathUnstable if nothing should be frozen over it."""
        from tunnel.health import path_health
        from tunnel.tunnel_errors import PathUnstable

        good, reason = path_health.stable(self.measure())
        if not good:
            raise PathUnstable(reason=reason)
        log.verbose(f"path to {self.tunnel.peer.name}: {reason}")

    def connect(self, purpose: Purpose) -> socket.socket:
        """A connection to the peer's service inside the tunnel; raises TunnelBroken."""
        from tunnel.session import inner_service

        return self.loop.call(inner_service.connect(self.tunnel, purpose))

    def close(self) -> None:
        """Take the tunnel down; safe to repeat. Raises LeftoversRemain."""
        if self._closed:
            return
        self._closed = True
        try:
            self.loop.call(self.tunnel.close())
        finally:
            self.loop.close()


@contextlib.contextmanager
def opened(peer_name: str, policy: Policy = "prefer-direct") -> Iterator[Opened]:
    """A tunnel to a paired peer for the duration of the block; raises what `open_stream` raises."""
    found = _open(peer_name, policy)
    try:
        yield found
    finally:
        found.close()


def open_stream(peer_name: str, policy: Policy = "prefer-direct") -> TunnelStream:
    """A stream to `migrator serve` on a paired peer.

    Raises PeerUnknown, RendezvousUnavailable, PeerAbsent, PeerRefuses, NoPath and the other errors of
    tunnel.tunnel_errors. Closing the stream takes the tunnel down.
    """
    from tunnel.session.inner_service import Purpose

    found = _open(peer_name, policy)
    try:
        return TunnelStream(found, found.connect(Purpose.MIGRATE))
    except BaseException:
        found.close()
        raise


def _open(peer_name: str, policy: Policy) -> Opened:
    from tunnel.identity.own_identity import Identity
    from tunnel.identity.peers import Peers
    from tunnel.identity.tunnel_config import Config, together
    from tunnel.session.setup import open_tunnel

    peer = Peers().get(peer_name)
    servers = together(peer.servers, Config.load().servers)
    loop = Loop()
    try:
        tunnel = loop.call(open_tunnel(peer, Identity.load(), servers, policy, program=migrator.__version__,
                                       tell=log.verbose))
    except BaseException:
        loop.close()
        raise
    log.verbose(f"tunnel to {peer_name}: {tunnel.path.kind}, {tunnel.path.reason} ({tunnel.path.connect_ms:.0f} ms, "
                f"{tunnel.setup_ms:.0f} ms with signalling)", **{"tunnel": tunnel.to_json()})
    return Opened(loop, tunnel)


class TunnelStream(FileStream):
    """A byte stream (`migrator.transfer.stream.ByteStream`) that owns its tunnel."""

    def __init__(self, found: Opened, connection: socket.socket) -> None:
        self.opened = found
        self._name = f"peer:{found.tunnel.peer.name}"
        number = connection.detach()
        super().__init__(number, number)
        self._watcher = asyncio.run_coroutine_threadsafe(self._until_ended(), found.loop._loop)

    async def _until_ended(self) -> None:
        """Wait for the tunnel to break, which ends the stream: nothing will come through it any more."""
        await self.opened.tunnel.ended.wait()
        await asyncio.sleep(0.5)  # what came before the end may still be read
        super().close()

    def readinto(self, view: memoryview) -> int:
        return self._explained(lambda: super(TunnelStream, self).readinto(view))

    def write(self, *buffers: Bytes) -> None:
        self._explained(lambda: super(TunnelStream, self).write(*buffers))

    def _explained(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            if self.opened.tunnel.error:
                raise ConnectionLost(destination=self._name, reason=self.opened.tunnel.error.message) from error
            raise

    def close(self) -> None:
        self._watcher.cancel()
        super().close()
        self.opened.close()
