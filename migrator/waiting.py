# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent: what a host behind NAT answers paired peers with. `stages.agent` is its command line."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import migrator
from migrator import log
from migrator.errors import MigratorError
from migrator.run import started
from tunnel import service
from tunnel.agent import accept
from tunnel.config import Server
from tunnel.identity import Identity
from tunnel.notify import notify, status
from tunnel.outlook import Policy
from tunnel.peers import Peers
from tunnel.service import Purpose
from tunnel.tunnel import Tunnel

STOP_LIMIT = 20.0  # seconds that a session may take to end in an orderly way
SERVED_EACH, SERVED_MAX = 16, 64  # connections at a time
BENCH_LIMIT = 60.0  # seconds that one measurement may take
BENCH_BUFFER = 1 << 20


def wait(identity: Identity, peers: Peers, servers: Sequence[Server], *, policy: Policy, once: bool) -> None:
    """Serve paired peers until SIGTERM or SIGINT, or with `once` a single session; raises as `agent.accept`."""
    asyncio.run(_wait(identity, peers, servers, policy, once))


async def _wait(identity: Identity, peers: Peers, servers: Sequence[Server], policy: Policy, once: bool) -> None:
    def tell(text: str) -> None:
        log.info(text)
        status(text)

    work = asyncio.create_task(
        accept(identity, peers, servers, _serve, policy=policy, once=once, program=migrator.__version__,
               tell=tell)
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, work.cancel)
    notify("READY=1")
    with contextlib.suppress(asyncio.CancelledError):
        await work
    notify("STOPPING=1")


class Places:
    """How many connections are served: of each peer, over all its sessions, and in all. Each is a process."""

    def __init__(self) -> None:
        self._taken: Counter[bytes] = Counter()

    def take(self, peer: bytes) -> bool:
        if self._taken[peer] >= SERVED_EACH or self._taken.total() >= SERVED_MAX:
            return False
        self._taken[peer] += 1
        return True

    def give_back(self, peer: bytes) -> None:
        self._taken[peer] -= 1


_places = Places()


async def _serve(tunnel: Tunnel) -> None:
    """What a session gets: each connection through its tunnel is one `migrator serve`, or a measurement."""
    peer = tunnel.peer.public.id

    async def connected(purpose: Purpose, connection: socket.socket) -> None:
        if not _places.take(peer):
            log.warning(f"{tunnel.peer.name} has too many connections here: another one is refused")
            connection.close()
            return
        try:
            await served(purpose, connection)
        finally:
            _places.give_back(peer)

    async def served(purpose: Purpose, connection: socket.socket) -> None:
        work = _bench if purpose is Purpose.BENCH else partial(_migrate, peer)
        keep = connection.dup()
        done = _in_thread(partial(work, connection))
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            # The tunnel has gone, or the agent ends. Whoever reads there sees its connection end, and undoes what is
            # half done; that may take its time.
            with contextlib.suppress(OSError):
                keep.shutdown(socket.SHUT_RDWR)
            await asyncio.wait([done], timeout=STOP_LIMIT)
            raise
        finally:
            keep.close()

    await service.listen(tunnel, connected)


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Done when `work` is; on a thread of its own, for it may take hours."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def run() -> None:
        try:
            work()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish)

    threading.Thread(target=run, name="migrator-agent", daemon=True).start()
    return done


def _migrate(peer: bytes, connection: socket.socket) -> None:
    """Answer the peer with that id as far as it may ask.

    In a process of its own: whatever happens to it, the tunnel and other sessions go on.
    """
    try:
        with started([sys.executable, "-m", "migrator", "serve", "--peer", peer.hex()], stdin=connection.fileno(),
                     stdout=connection.fileno()) as program:
            connection.close()
            status = program.process.wait()
            if status:
                log.warning(f"{program.failure(status)}")
    except MigratorError as error:
        log.warning(str(error))
    finally:
        connection.close()


def _bench(connection: socket.socket) -> None:
    """Read all that comes, and say how much it was: u64."""
    buffer, total = bytearray(BENCH_BUFFER), 0
    end = time.monotonic() + BENCH_LIMIT
    with contextlib.suppress(OSError), connection:
        connection.settimeout(BENCH_LIMIT)
        while time.monotonic() < end and (size := connection.recv_into(buffer)):
            total += size
        connection.sendall(total.to_bytes(8))
