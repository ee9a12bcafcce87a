# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent: how a host behind NAT answers its paired peers. `stages.agent` is its command line."""

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
from migrator.base import log
from migrator.base.clock import Clock, now
from migrator.base.run import started
from migrator.base.sd_notify import notify, status
from migrator.errors.documented import DocumentedError
from migrator.record import grant
from tunnel.candidates.outlook import Policy
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peers
from tunnel.identity.tunnel_config import Server
from tunnel.rendezvous.limits import Buckets, Rate
from tunnel.session import inner_service
from tunnel.session.inner_service import Purpose
from tunnel.session.live_tunnel import Tunnel
from tunnel.session.responder import accept
from tunnel.session.setup import until

STOP_LIMIT = 20.0  # seconds that a session may take to end cleanly
BENCH_LIMIT = 60.0  # seconds that one measurement may take
BENCH_BUFFER = 1 << 20
CONNECTIONS_MAX = 16  # served at a time, each by a process or thread of its own
CONNECTIONS_EACH = 4  # of one peer, over all its sessions
# Of one peer: starting a process costs us more than making a connection costs the peer.
PACE = Rate(per_second=0.5, burst=20)
LOOK_INTERVAL = 2.0  # seconds between two checks whether a peer with a session still has its permission
PACED_MAX = 1000  # peers whose pace is remembered


class Places:
    """The connections being served, by peer. For one that gets no place nothing is started."""

    def __init__(self, clock: Clock = now) -> None:
        self._taken: Counter[bytes] = Counter()
        self._pace = Buckets(PACE, PACED_MAX, clock)

    def take(self, peer: bytes) -> str:
        """Take a place for the peer with that id; if there is none, returns why."""
        if self._taken[peer] >= CONNECTIONS_EACH or self._taken.total() >= CONNECTIONS_MAX:
            return "has more connections than are served at a time"
        if not self._pace.take(peer):
            return "connects more often than is allowed"
        self._taken[peer] += 1
        return ""

    def leave(self, peer: bytes) -> None:
        self._taken[peer] -= 1
        self._taken += Counter()  # drops entries that are zero


async def wait(identity: Identity, peers: Peers, servers: Sequence[Server], *, policy: Policy, once: bool) -> None:
    """Serve paired peers until SIGTERM or SIGINT, or with `once` a single session; raises as `responder.accept`."""
    def tell(text: str) -> None:
        log.info(text)
        status(text)

    work = asyncio.create_task(
        accept(identity, peers, servers, partial(_serve, Places()), policy=policy, once=once,
               program=migrator.__version__, tell=tell)
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, work.cancel)
    notify("READY=1")
    with contextlib.suppress(asyncio.CancelledError):
        await work
    notify("STOPPING=1")


async def _serve(places: Places, tunnel: Tunnel) -> None:
    """Serve a session: each connection through its tunnel gets one `migrator serve`, or a measurement."""
    peer = tunnel.peer.public.id
    told: set[str] = set()

    async def connected(purpose: Purpose, connection: socket.socket) -> None:
        if why := places.take(peer):
            connection.close()
            if why not in told:
                told.add(why)
                log.warning(f"{tunnel.peer.name} {why}")
            return
        work = partial(_bench if purpose is Purpose.BENCH else _migrate, peer)
        with contextlib.ExitStack() as undo:
            undo.callback(places.leave, peer)
            undo.enter_context(connection)
            keep = undo.enter_context(connection.dup())
            done = _in_thread(partial(work, connection))
            undo.pop_all()
        done.add_done_callback(lambda _: places.leave(peer))  # this may be later than the end of the tunnel
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            # The tunnel is gone or the agent is ending. The reader sees its connection end and undoes what is half
            # done, which may take a while.
            with contextlib.suppress(OSError):
                keep.shutdown(socket.SHUT_RDWR)
            await asyncio.wait([done], timeout=STOP_LIMIT)
            raise
        finally:
            keep.close()

    await until(_withdrawn(peer), inner_service.listen(tunnel, connected, log.debug))
    log.warning(f"{tunnel.peer.name} may no longer do here what it could: its session is ended")


async def _withdrawn(peer: bytes) -> None:
    """Wait until the peer with that id is removed or may no longer bring containers.

    While the peer store cannot be read, every request of the peer is refused, but its session stays up.
    """
    might_receive = False
    while True:
        with contextlib.suppress(DocumentedError):
            found = grant.of_peer_id(peer)
            if not found.ask or found.receive < might_receive:
                return
            might_receive = found.receive
        await asyncio.sleep(LOOK_INTERVAL)


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Done when `work` is; in a thread of its own, because that may take hours."""
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
    """Answer the peer with that id as far as its permissions go.

    In a process of its own: whatever happens to it, the tunnel and other sessions go on. None is started for a peer
    that may not request anything at all.
    """
    try:
        if not _may_ask(peer):
            return
        # -I: root's current directory may be one where anybody can put a module with the name of one of ours.
        command = [sys.executable, "-I", "-m", "migrator", "serve", "--peer", peer.hex()]
        with started(command, stdin=connection.fileno(), stdout=connection.fileno()) as program:
            connection.close()
            status = program.process.wait()
            if status:
                log.warning(f"{program.failure(status)}")
    except DocumentedError as error:
        log.warning(str(error))
    finally:
        connection.close()


def _may_ask(peer: bytes) -> bool:
    """Whether the peer with that id may request anything; not if it was removed while its tunnel was up."""
    granted = grant.of_peer_id(peer)
    return granted.receive or granted.ask


def _bench(peer: bytes, connection: socket.socket) -> None:
    """Read all that comes, and report its size in bytes: u64."""
    buffer, total = bytearray(BENCH_BUFFER), 0
    end = time.monotonic() + BENCH_LIMIT
    with contextlib.suppress(OSError, DocumentedError), connection:
        if not _may_ask(peer):
            return
        connection.settimeout(BENCH_LIMIT)
        while time.monotonic() < end and (size := connection.recv_into(buffer)):
            total += size
        connection.sendall(total.to_bytes(8))
