# SPDX-License-Identifier: GPL-2.0-or-later
"""The rendezvous: an untrusted public service through which peers find each other.

It learns addresses, identities' public keys and times; it keeps nothing on disk but its certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import resource
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunnel.identity.tunnel_config import PORT

if TYPE_CHECKING:
    from tunnel.rendezvous.limits import Limits
    from tunnel.rendezvous.udp_relay import Relay

UDP_PORTS = (3478, 3479)  # STUN's, which firewalls know
RELAY_PORT = 3480  # UDP and TCP
CLOSING = 5.0  # seconds that goodbyes may take
OTHER_FILES = 64  # descriptors besides the connections: listening sockets, the interpreter's own


@dataclasses.dataclass(frozen=True)
class Options:
    """How to serve. Port 0 stands for any free port."""

    listen: tuple[tuple[str, int], ...] = (("::", PORT),)
    certificate: Path | None = None
    key: Path | None = None
    udp_ports: tuple[int, int] = UDP_PORTS
    public: tuple[str, ...] = ()  # public addresses; by default the one at which a peer has reached it
    relay: bool = False
    relay_ports: tuple[int, int] = (RELAY_PORT, RELAY_PORT)  # UDP, TCP
    limits: Limits | None = None


@dataclasses.dataclass(frozen=True)
class Running:
    """Where a started rendezvous can be found."""

    ports: tuple[int, ...]  # TCP, one for each listening address
    udp_ports: tuple[int, ...]  # of the reflectors, two for each address
    sha256: bytes
    self_made: bool
    open_connections: Callable[[], int]

    def url(self, host: str) -> str:
        """The URL to configure on peers that reach it at `host`."""
        bracketed = f"[{host}]" if ":" in host else host
        return f"wss://{bracketed}:{self.ports[0]}" + (f"#sha256:{self.sha256.hex()}" if self.self_made else "")


@contextlib.asynccontextmanager
async def running(options: Options, tell: Callable[[str], None] = lambda _: None) -> AsyncIterator[Running]:
    """Serve until the context ends; raises OSError and TunnelFileUnusable. `tell` is told in words what goes wrong."""
    from tunnel.rendezvous.certificate import Certificate
    from tunnel.rendezvous.limits import Limits
    from tunnel.rendezvous.reflector import Reflector
    from tunnel.rendezvous.server import SignallingServer

    limits = options.limits or Limits()
    certificate = Certificate.load(options.certificate, options.key)
    async with contextlib.AsyncExitStack() as stack:
        reflectors: list[tuple[str, Reflector]] = []
        for address, _ in options.listen:
            for port in options.udp_ports:
                reflector = await Reflector.serve(address, port, limits)
                stack.callback(reflector.close)
                reflectors.append((address, reflector))
        relay = await _relay(options, certificate.relay_context, stack) if options.relay else None
        host = options.public[0] if options.public else ""
        server = SignallingServer(certificate, limits, _advertised(options, reflectors), relay, host, tell)
        stack.push_async_callback(server.close)
        ports = [await server.listen(address, port) for address, port in options.listen]
        yield Running(tuple(ports), tuple(r.port for _, r in reflectors), certificate.sha256, certificate.self_made,
                      lambda: server.door.open)


async def _relay(options: Options, tls: Any, stack: contextlib.AsyncExitStack) -> Relay:
    from tunnel.rendezvous.udp_relay import Relay

    udp_port, tcp_port = options.relay_ports
    addresses = list(dict.fromkeys(address for address, _ in options.listen))
    relay = await Relay.serve(addresses, udp_port, tcp_port, tls=tls)
    stack.push_async_callback(relay.close)
    return relay


def _advertised(options: Options, reflectors: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The reflectors as the greeting lists them; an empty host stands for the address that a peer has connected to."""
    if options.public:
        ports = [reflector.port for _, reflector in reflectors[: len(options.udp_ports)]]
        found = [(host, port) for host in options.public for port in ports]
    else:
        several = len(options.listen) > 1
        found = [(address if several else "", reflector.port) for address, reflector in reflectors]
    return [{"host": host, "port": port} for host, port in found]


def main(options: Options, started: Callable[[Running], None], tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `started` is called once everything answers. Raises what `running` raises."""
    asyncio.run(_main(options, started, tell))


async def _main(options: Options, started: Callable[[Running], None], tell: Callable[[str], None]) -> None:
    from migrator.base.sd_notify import notify

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    # A client that disconnects in the middle of TLS must not fill the journal.
    loop.set_exception_handler(lambda _, context: tell(f"{context['message'][:100]}"))
    _allow_files(options, tell)
    async with running(options, tell) as serving:
        started(serving)
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        tell("closing")
        loop.call_later(CLOSING, lambda: [task.cancel() for task in asyncio.all_tasks()])


def _allow_files(options: Options, tell: Callable[[str], None]) -> None:
    """Let the process have as many descriptors as the limits admit connections (getrlimit(2): 1,024 by default)."""
    from tunnel.rendezvous import limits, pairs

    needed = (options.limits or limits.Limits()).connections + OTHER_FILES
    if options.relay:
        needed += pairs.Limits().connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        tell(f"{allowed} descriptors are allowed here, but {needed} are needed at full load: raise LimitNOFILE")
