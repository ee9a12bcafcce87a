# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses at which a peer may be reached: this host's own, discovered ones, and the peer's, filtered.

Whatever a peer sends could be somebody else's address: the number of addresses that are probed is capped, and addresses
that no peer can have are never probed.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from migrator.base.strict_json import Malformed, integer, text
from tunnel.candidates.nat import Endpoint, Observation

Kind = Literal["host", "reflexive", "ipv6", "relay"]
# A peer's relay comes from the rendezvous, never from the peer.
SENT_KINDS: tuple[Kind, ...] = ("host", "reflexive", "ipv6")

CANDIDATES_MAX = 16
RAW_MAX = 64  # what a peer may send, before it is filtered
HOST_MAX = 6  # of this host's own addresses of one family
PORT_MIN = 1024

_PRIVATE = [ipaddress.ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10",
                                                  "fc00::/7", "64:ff9b:1::/48")]
# The prefixes from which a NAT64 maps IPv4 addresses, which include those of the host's own network: RFC 6052
# everywhere, RFC 8215 within a network.
_NAT64 = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48")]
_SIOCGIFCONF = 0x8912  # netdevice(7)
_IFREQ = 40  # bytes of a struct ifreq on 64-bit machines


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An address and port at which a peer may be reached."""

    kind: Kind
    address: str
    port: int

    @property
    def endpoint(self) -> Endpoint:
        return self.address, self.port

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def sane(sent: Sequence[Any], own: Collection[str] = ()) -> list[Candidate]:
    """Those of a peer's candidates that may be probed: at most 16, each once, none of this host's `own` addresses.

    Raises Malformed for anything but a list of candidates; leaves out multicast, loopback, link-local, broadcast,
    reserved and unspecified addresses, IPv4 in IPv6, and privileged ports.
    """
    if len(sent) > RAW_MAX:
        raise Malformed(f"there are more than {RAW_MAX} candidates")
    found: dict[Endpoint, Candidate] = {}
    for each in sent:
        if not isinstance(each, dict):
            raise Malformed("a candidate is not an object")
        kind, address = text(each, "kind", 16), text(each, "address", 45)
        port = integer(each, "port", 1, 65535)
        chosen = next((known for known in SENT_KINDS if known == kind), None)
        if chosen and port >= PORT_MIN and probable(address) and address not in own:
            found.setdefault((address, port), Candidate(chosen, address, port))
    return list(found.values())[:CANDIDATES_MAX]


def probable(address: str) -> bool:
    """Whether a peer can have this address at all."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if str(ip) != address or "%" in address:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip.sixtofour or ip.teredo or any(ip in net for net in _NAT64):
            return False
    elif ip.packed[0] == 0 or ip.packed[0] >= 224:  # "this network"; multicast, reserved, broadcast
        return False
    return not (ip.is_multicast or ip.is_loopback or ip.is_link_local or ip.is_unspecified)


def private(address: str) -> bool:
    """Whether an address belongs to a private network or to a provider's NAT (RFC 1918, 6598, 4193, 8215)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any(ip in net for net in _PRIVATE if net.version == ip.version)


def loopback(address: str) -> bool:
    """Whether an address is one of the host's loopback addresses; it may have a scope."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def own_addresses() -> list[tuple[str, str]]:
    """Every address of this host that a peer could have too, with its interface: IPv4 first."""
    found = [*_ipv4(), *_ipv6()]
    return [(interface, address) for interface, address in found if probable(address)]


def host_candidates(port: int, towards: Iterable[str] = ()) -> list[Candidate]:
    """This host's addresses that are worth offering: those from which it would send to `towards` come first.

    Bridges and tunnels that lead only to this host's own guests are left out.
    """
    first = [address for there in towards if (address := source_towards(there))]
    rest = [address for interface, address in own_addresses() if not _inner(interface)]
    found = [Candidate("ipv6" if ":" in each else "host", each, port) for each in dict.fromkeys([*first, *rest])
             if probable(each)]
    ipv4 = [each for each in found if each.kind == "host"]
    ipv6 = [each for each in found if each.kind == "ipv6"]
    return ipv4[:HOST_MAX] + ipv6[:HOST_MAX]


def reflexive_candidates(observations: Iterable[Observation], known: Collection[Candidate]) -> list[Candidate]:
    """The mappings that reflectors saw, except those that are addresses of the host itself."""
    endpoints = {each.endpoint for each in known}
    seen = dict.fromkeys(each.seen for each in observations if each.seen not in endpoints and probable(each.seen[0]))
    return [Candidate("reflexive", *endpoint) for endpoint in list(seen)[:4]]


def source_towards(address: str) -> str | None:
    """The address from which this host would send; None without a route. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))
        return str(sock.getsockname()[0])
    return None


def _inner(interface: str) -> bool:
    folder = Path("/sys/class/net", interface)
    return any((folder / name).exists() for name in ("bridge", "tun_flags")) or _is_wireguard(folder)


def _is_wireguard(folder: Path) -> bool:
    try:
        return "DEVTYPE=wireguard" in (folder / "uevent").read_text()
    except OSError:
        return False


def _ipv4() -> list[tuple[str, str]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        buffer = array.array("B", bytes(_IFREQ * 128))
        request = struct.pack("iL", len(buffer), buffer.buffer_info()[0])
        used = struct.unpack("iL", fcntl.ioctl(sock.fileno(), _SIOCGIFCONF, request))[0]
    data = buffer.tobytes()[:used]
    return [
        (data[at : at + 16].split(b"\0", 1)[0].decode(errors="replace"), socket.inet_ntoa(data[at + 20 : at + 24]))
        for at in range(0, used - _IFREQ + 1, _IFREQ)
    ]


def _ipv6() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:  # IPv6 is off
        return []
    fields = [line.split() for line in lines]
    return [(each[5], str(ipaddress.IPv6Address(bytes.fromhex(each[0])))) for each in fields if len(each) == 6]
