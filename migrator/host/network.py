# SPDX-License-Identifier: GPL-2.0-or-later
"""A container's network on its host: silenced while frozen, heard again after a rollback, announced after a restore.

A frozen container's kernel still answers: it acknowledges data that then sits in the receive queue of a socket whose
owner lives on elsewhere. So before the dump, an nftables table drops all traffic at the host's end of each veth, and
nothing that the source sends afterwards (not even the resets when its processes are ended) gets out. The port stays
where it is, with its VLANs and flags, on whatever kind of bridge, or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from migrator.base import libc, log, names, programs
from migrator.base.internet_checksum import internet_checksum
from migrator.base.run import run
from migrator.errors.containers import InvalidName
from migrator.errors.this_host import ProgramMissing

KERNEL = (5, 16)  # from here on nftables has a hook for egress
CLASS_NET = Path("/sys/class/net")
ANNOUNCEMENTS = (0.0, 0.05, 0.15, 0.4, 1.0)  # seconds after the restore; a switch may miss one
_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_CLONE_NEWNET = 0x40000000
_NETLINK_ROUTE, _RTM_GETNSID, _NETNSA_PID, _NLM_F_REQUEST, _NLMSG_ERROR = 0, 90, 2, 1, 2


@dataclasses.dataclass(frozen=True)
class Port:
    """One veth of a container: its two ends, and the bridge that the host's end is plugged into ("" for none)."""

    inside: str
    outside: str
    bridge: str

    def to_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Address:
    """What is to be announced: an address and the MAC address that it is now at."""

    interface: str
    mac: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address


def _inside(pid: int) -> list[str]:
    """The command that runs `ip` in its network namespace, by path: nsenter(1) would search all of $PATH for a name."""
    return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", programs.find("ip") or "ip", "-j"]


def ports(pid: int) -> list[Port]:
    """The veths between this host and the container whose PID 1 is `pid`."""
    inside = _links([*_inside(pid), "link", "show", "type", "veth"])
    outside = _links(["ip", "-j", "link", "show", "type", "veth"])
    # The id last: if the namespace has none yet, listing the links assigns one.
    return between(inside, outside, _namespace_id(pid))


def between(inside: Sequence[Mapping[str, Any]], outside: Sequence[Mapping[str, Any]], namespace: int) -> list[Port]:
    """The pairs among a container's veths and the host's; `namespace` is the host's id for the container's namespace.

    They are matched by what the kernel says about the host's end: the namespace and the index of its peer. What it says
    inside does not help, because a peer there may be in a nested namespace and have the same index as any veth on the
    host.
    """
    # Without a link_netnsid, the peer is on the host itself.
    ends = {link.get("link_index"): link for link in outside if link.get("link_netnsid", -1) == namespace >= 0}
    return [Port(link["ifname"], end["ifname"], end.get("master", ""))
            for link in inside if (end := ends.get(link["ifindex"]))]


def _namespace_id(pid: int) -> int:
    """This network namespace's id for that of process `pid` (RTM_GETNSID, linux/net_namespace.h); -1 for none.

    The id lasts as long as the namespace.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as kernel:
        attribute = struct.pack("HHI", 8, _NETNSA_PID, pid)
        kernel.send(struct.pack("IHHII", 16 + 4 + len(attribute), _RTM_GETNSID, _NLM_F_REQUEST, 1, 0) + bytes(4)
                    + attribute)
        answer = kernel.recv(4096)
    kind = struct.unpack_from("IHHII", answer)[1]
    if kind == _NLMSG_ERROR:
        error = -struct.unpack_from("i", answer, 16)[0]
        raise OSError(error, os.strerror(error), f"the network namespace of process {pid}")
    _length, _attribute, found = struct.unpack_from("HHi", answer, 16 + 4)  # NETNSA_NSID, the only one
    return int(found)


def _links(argv: list[str]) -> list[dict[str, Any]]:
    # If there is nothing to show, ip prints an empty list, or nothing.
    return [link for link in json.loads(run(argv).text or "[]") if link]


def table(migration: str) -> str:
    """The name of a migration's table."""
    return f"migrator-{migration}"


def silence_command(migration: str, found: Sequence[Port]) -> list[str]:
    """Create or replace the table: all of it at once (nft(8), family netdev; egress since KERNEL).

    Raises InvalidName for an interface whose name nft cannot express or would take for several.
    """
    name = table(migration)
    devices = ", ".join(f'"{_quotable(port.outside)}"' for port in found)
    where = f"devices = {{ {devices} }} priority -500"
    chains = " ".join(f"chain {hook} {{ type filter hook {hook} {where}; policy drop; }};"
                      for hook in ("ingress", "egress"))
    return ["nft", f"add table netdev {name}; delete table netdev {name}; table netdev {name} {{ {chains} }}"]


def _quotable(name: str) -> str:
    if set(name) & set("*\\"):
        raise InvalidName(what="The interface name", name=repr(name), reason="nft(8) takes it for a pattern")
    return names.interface_name(name)


def hear_command(migration: str) -> list[str]:
    """Remove the table, if it exists."""
    return ["nft", f"add table netdev {table(migration)}; delete table netdev {table(migration)}"]


def silence(migration: str, found: Sequence[Port]) -> None:
    """Let nothing reach the container, nor anything of it get out; inside, not even the link state changes."""
    if found:
        run(silence_command(migration, found))


def hear(migration: str) -> None:
    """Undo `silence`; safe to repeat."""
    run(hear_command(migration))


def silenced() -> list[str]:
    """The ids of the migrations whose tables exist; empty if nft(8) is not installed."""
    try:
        said = run(["nft", "list", "tables", "netdev"], check=False).text
    except ProgramMissing:
        return []
    return re.findall(r"^table netdev migrator-([0-9a-f]{8})$", said, re.MULTILINE)


def is_silent(migration: str) -> bool:
    """Whether a migration's table exists, or nft(8) does not say. `nft flush ruleset` removes it along with all others.
    """
    said = run(["nft", "list", "table", "netdev", table(migration)], check=False)
    return said.status == 0 or b"No such file or directory" not in said.stderr


def still_silenced(migration: str) -> list[str]:
    """The interfaces that a migration's table silences and that still exist."""
    said = run(["nft", "list", "table", "netdev", table(migration)], check=False).text
    named = re.findall(r'device "?([^ "]+)"? priority|devices = \{ (.*?) \} priority', said)
    found = {name.strip('"') for one, several in named for name in [one, *several.split(", ")] if name}
    return sorted(name for name in found if (CLASS_NET / name).exists())


def plug(pid: int, recorded: Sequence[Port]) -> None:
    """Put ports of the container whose PID 1 is `pid` back on their bridges, as `recorded`, if they are on none.

    This version leaves them where they are; an older one, which may have begun this, took them off.
    """
    away = [port for port in recorded if port.bridge and not (CLASS_NET / port.outside / "master").exists()]
    if away:
        own = {port.outside for port in ports(pid) if not port.bridge}
        for port in away:
            if port.outside in own:
                run(["ip", "link", "set", "dev", port.outside, "master", port.bridge])


def remove(found: Sequence[Port]) -> None:
    """Delete the veths: what the container's kernel still has to send goes nowhere."""
    for port in found:
        run(["ip", "link", "delete", "dev", port.outside], check=False)


def addresses(pid: int) -> list[Address]:
    """The container's own addresses that others may know: of global and link scope, not of the loopback."""
    found = []
    for link in _links([*_inside(pid), "address"]):
        if link.get("link_type") != "ether":
            continue
        for entry in link.get("addr_info", ()):
            if entry.get("local"):
                found.append(Address(link["ifname"], link["address"], ipaddress.ip_address(entry["local"])))
    return found


def gratuitous_arp(mac: bytes, address: ipaddress.IPv4Address) -> bytes:
    """An ARP request for one's own address, broadcast (RFC 5227, section 3)."""
    frame = b"\xff" * 6 + mac + struct.pack("!H", _ETH_ARP)
    return frame + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address.packed + bytes(6) + address.packed


def unsolicited_advertisement(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """An unsolicited neighbour advertisement, to all nodes, with the override flag (RFC 4861, section 7.2.6)."""
    target = ipaddress.IPv6Address("ff02::1").packed
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + address.packed + b"\x02\x01" + mac
    pseudo = address.packed + target + struct.pack("!II", len(body), 58)
    body = body[:2] + struct.pack("!H", internet_checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + address.packed + target
    return b"\x33\x33\x00\x00\x00\x01" + mac + struct.pack("!H", _ETH_IPV6) + header + body


def frames(found: Sequence[Address]) -> list[tuple[str, bytes]]:
    """The announcements of `found`, each with the interface to send it on."""
    result = []
    for entry in found:
        mac = bytes.fromhex(entry.mac.replace(":", ""))
        if isinstance(entry.address, ipaddress.IPv4Address):
            result.append((entry.interface, gratuitous_arp(mac, entry.address)))
        else:
            result.append((entry.interface, unsolicited_advertisement(mac, entry.address)))
    return result


def dad_settings(pid: int) -> dict[str, str]:
    """The setting of IPv6's duplicate address detection for each interface of a container where it is on."""
    found: dict[str, str] = {}

    def look() -> None:
        for setting in Path("/proc/sys/net/ipv6/conf").glob("*/accept_dad"):
            value = setting.read_text().strip()
            if value != "0":
                found[setting.parent.name] = value

    _in_namespace(pid, look)
    return found


def hush_dad(pid: int, settings: Mapping[str, str]) -> None:
    """Switch off IPv6's duplicate address detection in a frozen container, where `dad_settings` found it on.

    CRIU restores that setting before the addresses. With it on, the kernel spends a second or two probing whether
    anybody else has them, and does not answer for them meanwhile (accept_dad in the kernel's ip-sysctl.rst).
    `bring_back_dad` undoes this.
    """
    bring_back_dad(pid, dict.fromkeys(settings, "0"))


def bring_back_dad(pid: int, before: Mapping[str, str]) -> None:
    """Restore the settings, on either host."""

    def write() -> None:
        for interface, value in before.items():
            with contextlib.suppress(OSError):  # an interface that is gone
                Path("/proc/sys/net/ipv6/conf", interface, "accept_dad").write_text(value)

    if before:
        _in_namespace(pid, write)


def _in_namespace(pid: int, work: Callable[[], None]) -> None:
    """Run something in a container's network namespace: in a thread that enters it and ends there."""
    failures: list[OSError] = []

    def go() -> None:
        try:
            with Path(f"/proc/{pid}/ns/net").open() as namespace:
                _setns(namespace.fileno())
            work()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=go, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def announce(pid: int, times: Sequence[float] = ANNOUNCEMENTS) -> threading.Thread:
    """Announce to the neighbourhood where the container is now, `times` seconds from now; LXC and CRIU do not.

    Sent from inside its network namespace, so that the bridge learns the port too. Returns the thread that does it.
    """
    thread = threading.Thread(target=_announce, args=(pid, times), name="announce")
    thread.start()
    return thread


def _announce(pid: int, times: Sequence[float]) -> None:
    try:
        begun = time.monotonic()
        to_send = frames(addresses(pid))
        if not to_send:
            return
        with contextlib.ExitStack() as stack:
            # Only this thread enters the namespace, and it ends there.
            with Path(f"/proc/{pid}/ns/net").open() as namespace:
                _setns(namespace.fileno())
            sockets = {}
            for name in {interface for interface, _ in to_send}:
                sockets[name] = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
                sockets[name].bind((name, 0))
            for at in times:
                time.sleep(max(0.0, begun + at - time.monotonic()))
                for name, frame in to_send:
                    sockets[name].send(frame)
    except Exception as error:  # the container runs, and neighbours learn from its traffic
        log.warning(f"The container's new location could not be announced: {error}")


def _setns(fd: int) -> None:
    libc.must(libc.library().setns(fd, _CLONE_NEWNET))  # os.setns exists only from Python 3.12 on
