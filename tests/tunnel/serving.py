# SPDX-License-Identifier: GPL-2.0-or-later
"""A rendezvous on loopback, in the test's own event loop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator

from tunnel import rendezvous
from tunnel.identity.tunnel_config import Server
from tunnel.rendezvous import Options, Running
from tunnel.rendezvous.limits import Limits

LOOPBACK = "127.0.0.1"


@dataclasses.dataclass
class Serving:
    """A rendezvous that runs; `said` is what it has logged."""

    running: Running
    said: list[str]

    @property
    def server(self) -> Server:
        return Server.parse(self.running.url(LOOPBACK))


@contextlib.asynccontextmanager
async def serving(limits: Limits | None = None, *, relay: bool = False) -> AsyncIterator[Serving]:
    """A rendezvous on free ports of 127.0.0.1."""
    options = Options(listen=((LOOPBACK, 0),), udp_ports=(0, 0), relay=relay, relay_ports=(0, 0), limits=limits)
    said: list[str] = []
    async with rendezvous.running(options, said.append) as running:
        yield Serving(running, said)
