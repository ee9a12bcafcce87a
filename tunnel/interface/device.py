# SPDX-License-Identifier: GPL-2.0-or-later
"""A session's network interface: WireGuard, its addresses and route, and a firewall around it.

`up` makes it, `Interface.close` removes it; `leftovers.sweep` removes it if neither had the chance. The order of the
steps in `up` is what keeps the host safe: first the record, then the firewall, and the interface comes up last.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from migrator.base import process_id
from migrator.base.clock import now
from migrator.base.process_id import Process
from tunnel import wireguard
from tunnel.interface import addresses, firewall, leftovers, mtu
from tunnel.interface.addresses import Inside, Role
from tunnel.tunnel_errors import InterfaceFailed, LeftoversRemain, WireGuardFailed
from tunnel.wireguard import Backend, Endpoint, Stats
from tunnel.wireguard.netlink import said

KEEPALIVE = 15  # seconds; NAT mappings and the relay's live for thirty or more
HOLD = 2.0  # seconds for which a new endpoint is defended: longer than packets are in flight
_HOLD_INTERVAL = 0.05  # seconds
GREETING = 3.0  # seconds for which a responder lets the initiator speak first
_SHAKEN_INTERVAL = 0.02  # seconds
_IFA_F_NODAD = 0x02  # the address is usable at once: nobody else can have it
_NO_LINK_LOCAL = 1  # IN6_ADDR_GEN_MODE_NONE

T = TypeVar("T")


class Keys(Protocol):
    """What the interface needs of a session's keys; all but `session` are WireGuard's, 32 raw bytes each."""

    @property
    def session(self) -> bytes: ...
    @property
    def private_key(self) -> bytes: ...
    @property
    def peer_public(self) -> bytes: ...
    @property
    def preshared(self) -> bytes: ...


class Path(Protocol):
    """What the interface needs of a path that was punched: its destination, and the local port."""

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def local_port(self) -> int: ...


@dataclasses.dataclass
class Interface:
    """A tunnel's interface that is up. `mtu` is the current one; everything else stays as it is."""

    name: str
    role: Role
    local_address: str
    remote_address: str
    port: int  # TCP, of the responder's listener on its tunnel address
    echo_port: int  # UDP, on both sides
    mtu: int
    backend: Backend
    record: leftovers.Record
    _peer_public: bytes = dataclasses.field(repr=False)
    _claimed: bool = dataclasses.field(default=False, repr=False)  # the record exists, and all of that name is ours
    _tasks: set[asyncio.Future[None]] = dataclasses.field(default_factory=set, repr=False)
    _holding: asyncio.Future[None] | None = dataclasses.field(default=None, repr=False)

    async def stats(self) -> Stats:
        """WireGuard's counters; raises WireGuardFailed."""
        return await _finished(lambda: self.backend.stats(self.name))

    async def set_endpoint(self, endpoint: Endpoint, *, hold: float = HOLD) -> None:
        """Send to another endpoint from now on, under everything that runs through the tunnel.

        WireGuard sends to where it last heard from, so packets still in flight on the old path would make it go back
        to that, and two sides could keep each other there. For `hold` seconds a step back to the old endpoint is
        undone, as long as this object lives; a step to any other endpoint is the peer's own and stays.
        """
        before = (await self.stats()).endpoint
        await _finished(lambda: self.backend.set_endpoint(self.name, self._peer_public, endpoint))
        if self._holding:
            self._holding.cancel()
        self._holding = None
        if before not in (None, endpoint) and hold > 0:
            self._holding = self._beside(self._hold(before, endpoint, hold))

    async def _hold(self, before: Endpoint | None, endpoint: Endpoint, seconds: float) -> None:
        end = now() + seconds
        with contextlib.suppress(WireGuardFailed):  # it has been removed: whoever uses it will find out
            while now() < end:
                await asyncio.sleep(_HOLD_INTERVAL)
                if (await self.stats()).endpoint == before:
                    await _finished(lambda: self.backend.set_endpoint(self.name, self._peer_public, endpoint))

    async def set_mtu(self, size: int) -> None:
        """Set another MTU, in bytes; raises InterfaceFailed."""

        def change() -> None:
            with _netlink(self.name) as (ip, index):
                ip.link("set", index=index, mtu=size)

        await _finished(change)
        self.mtu = size

    async def shaken(self, limit: float = GREETING) -> bool:
        """Wait for WireGuard's first handshake; False if there is none within `limit` seconds."""
        end = now() + limit
        while not (await self.stats()).last_handshake:
            if now() > end:
                return False
            await asyncio.sleep(_SHAKEN_INTERVAL)
        return True

    async def _greeted(self, keepalive: int) -> None:
        """Let a responder speak: once the initiator has, or once the responder has waited long enough for that."""
        with contextlib.suppress(WireGuardFailed):  # it has been removed
            await self.shaken()
            await _finished(lambda: self.backend.set_keepalive(self.name, self._peer_public, keepalive))

    def _beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Remove the interface and everything that belongs to it; safe to repeat. Raises LeftoversRemain."""
        for task in self._tasks:
            task.cancel()
        if not self._claimed:
            return  # it has been removed, and another session may have the name by now
        problems = await _finished(lambda: leftovers.remove(self.record))
        if problems:
            raise LeftoversRemain(what="; ".join(problems))
        self._claimed = False


async def up(keys: Keys, path: Path, role: Role, *, backend: Backend | None = None, keepalive: int = KEEPALIVE,
             size: int | None = None) -> Interface:
    """Make a session's interface over a path; whatever ends it early, including Ctrl-C, leaves nothing behind.

    `size` is the MTU to begin with, in bytes, instead of what the kernel knows about the route to the endpoint.

    The initiator's WireGuard starts a handshake at once, the responder's keeps quiet until then: two initiations that
    cross on the way invalidate each other, and WireGuard tries again only after five seconds, possibly to cross again.
    An initiation that nobody hears costs as much: the responder's interface should be up first.

    Raises WireGuardMissing, WireGuardFailed, and InterfaceFailed.
    """
    inside = addresses.inside(keys.session, role)
    if backend is None:
        backend = await _finished(wireguard.backend)
    made = Interface(
        inside.name, role, inside.local, inside.remote, inside.tcp_port, inside.echo_port,
        mtu=size or mtu.from_route(path.endpoint),
        backend=backend,
        record=leftovers.Record(keys.session, backend.kind, Process.current()),
        _peer_public=keys.peer_public,
    )  # fmt: skip
    try:
        await _finished(lambda: _make(made, inside, keys, path, 0 if inside.listens else keepalive))
    except BaseException:
        if made._claimed:
            await _finished(lambda: leftovers.remove(made.record))
        raise
    if inside.listens and keepalive:
        made._beside(made._greeted(keepalive))
    return made


def _make(made: Interface, inside: Inside, keys: Keys, path: Path, keepalive: int) -> None:
    """All of its steps, in a thread; each is undone by `leftovers.remove` once the name is ours."""
    if not leftovers.claim(made.record):
        fix = "Run the command again; it makes a new session."
        raise _failed(made.name, "a session of this name already has a tunnel", fix)
    made._claimed = True
    try:
        firewall.add(firewall.ruleset(made.name, local=inside.local, remote=inside.remote, tcp_port=inside.tcp_port,
                                      echo_port=inside.echo_port, listens=inside.listens))
    except process_id.ProgramFailed as error:
        raise _failed(made.name, str(error), "Check that nftables works here: nft list ruleset") from None

    def started(pid: int) -> None:
        made.record = dataclasses.replace(made.record, server=Process.of(pid))
        made.record.write()

    made.backend.create(made.name, keys.private_key, path.local_port, started=started)
    made.backend.set_peer(made.name, keys.peer_public, keys.preshared, path.endpoint, f"{inside.remote}/128", keepalive)
    with _netlink(made.name) as (ip, index):
        ip.link("set", index=index, mtu=made.mtu,
                IFLA_AF_SPEC={"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", _NO_LINK_LOCAL]]}]]})
        ip.addr("add", index=index, address=inside.local, prefixlen=128, flags=_IFA_F_NODAD)
        _check_ports(inside)
        ip.link("set", index=index, state="up")
        ip.route("add", family=socket.AF_INET6, dst=f"{inside.remote}/128", oif=index, prefsrc=inside.local)


def _check_ports(inside: Inside) -> None:
    """Raise InterfaceFailed if something on this host listens on a port that the firewall is about to open.

    It would listen on all addresses, and the peer could reach it.
    """
    for kind, port in ((socket.SOCK_STREAM, inside.tcp_port), (socket.SOCK_DGRAM, inside.echo_port)):
        with socket.socket(socket.AF_INET6, kind) as probe:
            if kind == socket.SOCK_STREAM:  # a connection that has ended is no listener
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((inside.local, port))
            except OSError as error:
                fix = "Run the command again; another session has other ports."
                raise _failed(inside.name, f"port {port}: {error.strerror}", fix) from None


@contextlib.contextmanager
def _netlink(name: str) -> Iterator[tuple[Any, int]]:
    """A route netlink socket and the interface's index; what the kernel refuses becomes InterfaceFailed."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    fix = ("If IPv6 is disabled on this host: sysctl -w net.ipv6.conf.all.disable_ipv6=0 "
           "net.ipv6.conf.default.disable_ipv6=0")
    try:
        with IPRoute() as ip:
            indexes = ip.link_lookup(ifname=name)
            if not indexes:
                raise _failed(name, "it is gone", "Run the command again; it makes a new tunnel.")
            yield ip, indexes[0]
    except NetlinkError as error:
        raise _failed(name, f"the kernel refused it: {said(error)}", fix) from None
    except OSError as error:
        raise _failed(name, error.strerror or str(error), fix) from None


def _failed(name: str, reason: str, fix: str) -> InterfaceFailed:
    return InterfaceFailed(name=name, reason=reason, fix=fix)


async def _finished(work: Callable[[], T]) -> T:
    """Run `work` in a thread and wait until it ends, even if this task is cancelled meanwhile.

    A thread cannot be stopped: undoing its work while it is still running would leave a part of it behind.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException:  # noqa: S110  # raised below
            pass
    if cancelled:
        if not running.cancelled():
            running.exception()  # marks it as retrieved
        raise cancelled
    return running.result()
