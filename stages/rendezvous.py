# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a rendezvous server: the public service through which hosts behind NAT find each other.

It passes on sealed messages between peers, tells them their public addresses (on two UDP ports), and with `--relay`
carries the traffic of those that find no direct path. It cannot read or change what they say, and keeps nothing on
disk. Without a certificate from a CA it makes one itself, and peers pin its fingerprint.

If the host has several addresses, name each with --listen: the more addresses, the better peers know their NAT.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from migrator.base import log
from migrator.errors import MigratorError, UsageError

if TYPE_CHECKING:
    from tunnel.rendezvous import Options, Running

NAME = "rendezvous"
HELP = "run the public service through which hosts behind NAT find each other"
PORT = 443
UDP_PORTS = "3478,3479"  # those of STUN, which firewalls know
RELAY_PORTS = "3480,3480"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listen", metavar="ADDR:PORT", action="append", type=_address, default=[],
                        help=f"where to listen (can be repeated; default: every address, port {PORT})")
    parser.add_argument("--certificate", metavar="FILE", type=Path,
                        help="TLS certificate, PEM; created with its key if neither file exists (default: a new one at "
                             "each start)")
    parser.add_argument("--key", metavar="FILE", type=Path, help="the certificate's private key, PEM")
    parser.add_argument("--udp-ports", metavar="A,B", type=_two_ports, default=UDP_PORTS,
                        help="ports of the reflectors (default: %(default)s)")
    parser.add_argument("--public", metavar="ADDR", action="append", type=_public, default=[],
                        help="public address, if it is not the one listened on (can be repeated)")
    parser.add_argument("--relay", action="store_true", help="also relay between peers that find no direct path")
    parser.add_argument("--relay-ports", metavar="UDP,TCP", type=_two_ports, default=RELAY_PORTS,
                        help="ports of the relay (default: %(default)s)")


def options(args: argparse.Namespace) -> Options:
    if (args.certificate is None) != (args.key is None):
        raise UsageError(reason="--certificate and --key must be given together")
    from tunnel.rendezvous import Options

    return Options(
        listen=tuple(args.listen) or ((_any_address(), PORT),), certificate=args.certificate, key=args.key,
        udp_ports=args.udp_ports, public=tuple(args.public), relay=args.relay, relay_ports=args.relay_ports,
    )


def run(options: Options) -> None:
    from tunnel import rendezvous

    try:
        rendezvous.main(options, lambda running: _started(options, running), log.verbose)
    except OSError as error:
        raise MigratorError(reason=f"The rendezvous server cannot listen: {error.strerror or error}") from None


def _started(options: Options, running: Running) -> None:
    """Print where it listens and what peers have to configure."""
    listening = [f"[{a}]:{p}" if ":" in a else f"{a}:{p}"
                 for (a, _), p in zip(options.listen, running.ports, strict=True)]
    host = next((a for a in (*options.public, *(a for a, _ in options.listen)) if not _wildcard(a)), "HOST")
    fingerprint = f"sha256:{running.sha256.hex()}"
    data = {"listening": listening, "udp_ports": list(running.udp_ports), "relay": options.relay,
            "fingerprint": fingerprint, "url": running.url(host), "time": round(time.time(), 3)}
    if log.as_json:
        print(json.dumps(data), flush=True)
        return
    print(f"listening on {', '.join(listening)}; UDP {', '.join(map(str, running.udp_ports))}"
          + ("; relay" if options.relay else ""))
    print(f"certificate {fingerprint}" + ("" if options.certificate else " (until the next start)"))
    print(f"in /etc/migrator/tunnel.conf on each peer:\n\n[rendezvous]\nservers = {running.url(host)}", flush=True)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise argparse.ArgumentTypeError("must be ADDR:PORT")
    return _public(host.removeprefix("[").removesuffix("]") or _any_address()), _port(port)


def _public(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:50]!a} is not an IP address") from None


def _two_ports(text: str) -> tuple[int, int]:
    first, comma, second = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError("must be two ports")
    return _port(first), _port(second)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text[:20]!a} is not a port")
    return int(text)


def _wildcard(address: str) -> bool:
    return ipaddress.ip_address(address).is_unspecified


def _any_address() -> str:
    """The wildcard address, including IPv6 if the kernel supports it."""
    return "::" if Path("/proc/net/if_inet6").exists() else str(ipaddress.IPv4Address(0))
