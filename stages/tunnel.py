# SPDX-License-Identifier: GPL-2.0-or-later
"""Examine the path to a paired peer: which one it is and why, its round-trip time and its throughput.

`ping` and `bench` set up a tunnel as a migration would, measure it and take it down; `status` shows the tunnels that
are up, and whether the peer is waiting at its rendezvous server.

`--json` has: path (direct or relay), reason, rtt_ms, connect_ms (punching alone), setup_ms (all of it), mtu, mbit_s.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any, Literal

from migrator.base.result import Result
from stages.steps import arguments

if TYPE_CHECKING:
    from migrator.remote.tunnelled import Opened
    from tunnel.candidates.outlook import Policy

NAME = "tunnel"
HELP = "measure the path to a paired peer; show the tunnels that are up"

BLOCK = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class TunnelOptions:
    action: Literal["ping", "bench", "status"]
    peer: str = ""  # its name; "" for all of them, of which only the status can be had
    path: Policy = "prefer-direct"
    seconds: float = 3.0  # how long `bench` sends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action", help="ping, status, bench")
    parser.set_defaults(path=TunnelOptions.path, seconds=TunnelOptions.seconds)
    ping = _action(actions, "ping", "set up a tunnel and measure round trips, losses and the MTU")
    bench = _action(actions, "bench", "the same, and send data through it")
    bench.add_argument("--seconds", metavar="N", type=arguments.positive, default=TunnelOptions.seconds,
                       help="for how long (default: 3)")
    for each in (ping, bench):
        arguments.add_path(each)
    _action(actions, "status", "show the tunnels to a peer, or all of them", required=False)


def _action(actions: Any, name: str, help_: str, *, required: bool = True) -> argparse.ArgumentParser:
    # SUPPRESS: --json and its like may stand before the action, too.
    parser: argparse.ArgumentParser = actions.add_parser(
        name, description=help_, help=help_, epilog=arguments.STATUSES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("peer", metavar="PEER", nargs=None if required else "?", default=None, help="the peer's name")
    arguments.add_common(parser)
    return parser


def options(args: argparse.Namespace) -> TunnelOptions:
    return TunnelOptions(args.action, args.peer or "", args.path, args.seconds)


def run(options: TunnelOptions) -> Result:
    arguments.require_root(NAME)
    if options.action == "status":
        return _status(options.peer)
    from migrator.remote.tunnelled import opened

    with opened(options.peer, options.path) as found:
        quality = found.measure(throughput=False)
        mbit_s = _bench(found, options.seconds) if options.action == "bench" else None
        told = found.tunnel.to_json()
    told |= {"rtt_ms": _rounded(quality.rtt_ms), "loss": quality.loss, "jitter_ms": round(quality.jitter, 3),
             "mbit_s": _rounded(mbit_s)}
    return Result(told, _text(told))


def _bench(found: Opened, seconds: float) -> float:
    """Mbit/s of one TCP stream through the tunnel, as counted by the receiver."""
    import socket

    from tunnel.session.inner_service import Purpose
    from tunnel.tunnel_errors import TunnelBroken

    block, begun = bytes(BLOCK), time.monotonic()
    try:
        with found.connect(Purpose.BENCH) as connection:
            connection.settimeout(30.0)
            while time.monotonic() - begun < seconds:
                connection.sendall(block)
            connection.shutdown(socket.SHUT_WR)
            count = connection.recv(8, socket.MSG_WAITALL)
    except OSError as error:
        raise TunnelBroken(name=found.tunnel.peer.name, reason=error.strerror or str(error)) from error
    return int.from_bytes(count) * 8 / (time.monotonic() - begun) / 1e6


def _status(name: str) -> Result:
    from tunnel.identity.peers import Peers
    from tunnel.session import live_status

    peers = [Peers().get(name)] if name else Peers().all()
    standing = [told for told in live_status.all_() if name in ("", told.get("peer"))]
    waits = {peer.name: _waits(peer) for peer in peers}
    lines = [_text(told) for told in standing] or ["No tunnel is up."]
    lines += [f"{peer}: {'is waiting' if there else 'is not waiting' if there is False else 'cannot be looked up'} at "
              "its rendezvous server" for peer, there in waits.items()]
    return Result({"tunnels": standing, "waits": waits, **(standing[0] if name and standing else {})},
                  "\n".join(lines))


def _waits(peer: Any) -> bool | None:
    """Whether the peer is waiting to be called; None if no rendezvous answers."""
    import asyncio

    from tunnel.identity.own_identity import Identity
    from tunnel.identity.tunnel_config import Config, together
    from tunnel.signalling.client import Signalling
    from tunnel.tunnel_errors import RendezvousUnavailable

    async def ask() -> bool:
        servers = together(peer.servers, Config.load().servers)
        async with await Signalling.connect(servers, Identity.load(), peer=peer.public, timeout=5.0) as signalling:
            return await signalling.finds(peer.public)

    with contextlib.suppress(RendezvousUnavailable):
        return asyncio.run(ask())
    return None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _text(told: dict[str, Any]) -> str:
    """A tunnel in words."""
    rtt = "no reply" if told.get("rtt_ms") is None else f"{told['rtt_ms']} ms"
    lines = [
        f"{told.get('peer')}: {told.get('path')} ({told.get('reason')})",
        f"  round trip  {rtt}, loss {told.get('loss', 0):.0%}",
        f"  connected   in {told.get('connect_ms')} ms, {told.get('setup_ms')} ms with signalling and WireGuard",
        f"  MTU         {told.get('mtu')}",
    ]
    if told.get("mbit_s") is not None:
        lines.append(f"  throughput  {told['mbit_s']:.0f} Mbit/s")
    if told.get("heals"):
        lines.append(f"  healed      {told['heals']} times")
    return "\n".join(lines)
