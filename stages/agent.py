# SPDX-License-Identifier: GPL-2.0-or-later
"""Wait for paired hosts that want to move containers here, over an outbound connection to the rendezvous server.

A host behind NAT runs this so that `-d peer:NAME` reaches it: as a service (systemctl enable --now
migrator-agent), or for a single session with --once. Only paired peers are answered; see migrator peer.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from migrator.base import no_core_dump
from migrator.errors import UsageError
from stages.steps import arguments

if TYPE_CHECKING:
    from tunnel.candidates.outlook import Policy

NAME = "agent"
HELP = "wait on a host behind NAT for paired peers"


@dataclasses.dataclass(frozen=True)
class AgentOptions:
    path: Policy = "prefer-direct"
    once: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="exit after one session")
    arguments.add_path(parser)


def options(args: argparse.Namespace) -> AgentOptions:
    return AgentOptions(args.path, args.once)


def run(options: AgentOptions) -> None:
    arguments.require_root(NAME)
    no_core_dump.of_this()
    import asyncio

    from migrator.remote import agent_service
    from tunnel.identity.own_identity import Identity
    from tunnel.identity.peers import Peers
    from tunnel.identity.tunnel_config import Config

    identity, peers = Identity.load(), Peers()
    servers = Config.load().servers
    if not servers and not any(peer.servers for peer in peers.all()):
        raise UsageError(reason="No rendezvous server is configured: pair with a host first (migrator peer), or name "
                                "one in /etc/migrator/tunnel.conf")
    asyncio.run(agent_service.wait(identity, peers, servers, policy=options.path, once=options.once))
