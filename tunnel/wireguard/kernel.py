# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel back end: the WireGuard module, controlled over netlink.

A process that dies leaves nothing behind but the interface itself. pyroute2 encodes the messages; the kernel's
include/uapi/linux/wireguard.h defines what they have to look like.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from tunnel.tunnel_errors import WireGuardFailed
from tunnel.wireguard.common import Endpoint, Stats, ignore
from tunnel.wireguard.netlink import apart, said
from tunnel.wireguard.wireguard_keys import to_base64

_NO_INTERFACE = "mig-none"  # a name that no session's interface has


class Kernel:
    """The kernel's own WireGuard."""

    kind: ClassVar[str] = "kernel"

    @apart
    def why_not(self) -> str:
        from pyroute2 import WireGuard
        from pyroute2.netlink.exceptions import NetlinkError

        # Asking for the family makes the kernel load the module; asking for an interface that does not exist shows
        # whether we are allowed to ask at all, and changes nothing.
        try:
            with WireGuard() as wireguard:
                wireguard.info(_NO_INTERFACE)
        except (NetlinkError, OSError) as error:
            code = error.code if isinstance(error, NetlinkError) else error.errno
            if code == errno.ENODEV:
                return ""
            if code == errno.ENOENT:
                return "the kernel has no WireGuard module"
            return f"the kernel refuses it: {said(error)}"
        return ""

    @apart
    def create(self, name: str, private_key: bytes, listen_port: int, *,
               started: Callable[[int], None] = ignore) -> None:
        from pyroute2 import IPRoute

        with _reported(name):
            with IPRoute() as ip:
                ip.link("add", ifname=name, kind="wireguard")
            _set(name, private_key=to_base64(private_key), listen_port=listen_port)

    @apart
    def set_peer(self, name: str, public_key: bytes, preshared: bytes, endpoint: Endpoint | None, allowed_ip: str,
                 keepalive: int) -> None:
        peer = {
            "public_key": to_base64(public_key),
            "preshared_key": to_base64(preshared),
            "persistent_keepalive": keepalive,
            "replace_allowed_ips": True,
            "allowed_ips": [str(ipaddress.ip_network(allowed_ip))],
        }
        with _reported(name):
            _set(name, peer=peer | (_endpoint(endpoint) if endpoint else {}))

    @apart
    def set_endpoint(self, name: str, public_key: bytes, endpoint: Endpoint) -> None:
        with _reported(name):
            _set(name, peer={"public_key": to_base64(public_key), "update_only": True, **_endpoint(endpoint)})

    @apart
    def set_keepalive(self, name: str, public_key: bytes, seconds: int) -> None:
        with _reported(name):
            _set(name, peer={"public_key": to_base64(public_key), "update_only": True, "persistent_keepalive": seconds})

    @apart
    def stats(self, name: str) -> Stats:
        from pyroute2 import WireGuard

        with _reported(name), WireGuard() as wireguard:
            found = stats_of(wireguard.info(name))
        if found is None:
            raise WireGuardFailed(name=name, reason="it has no peer")
        return found

    @apart
    def remove(self, name: str) -> None:
        from pyroute2 import IPRoute

        with _reported(name), IPRoute() as ip:
            for index in ip.link_lookup(ifname=name):
                ip.link("del", index=index)


def stats_of(messages: Any) -> Stats | None:
    """What the kernel's answer to WG_CMD_GET_DEVICE says about the first peer; None if there is none."""
    for message in messages:
        for entry in message.get_attr("WGDEVICE_A_PEERS") or []:
            handshake = entry.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
            endpoint = entry.get_attr("WGPEER_A_ENDPOINT")
            return Stats(
                handshake["tv_sec"] + handshake["tv_nsec"] / 1e9 if handshake else 0.0,
                entry.get_attr("WGPEER_A_RX_BYTES") or 0,
                entry.get_attr("WGPEER_A_TX_BYTES") or 0,
                (endpoint["addr"], endpoint["port"]) if endpoint else None,
            )
    return None


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {"endpoint_addr": str(ipaddress.ip_address(endpoint[0])), "endpoint_port": endpoint[1]}


def _set(name: str, **settings: Any) -> None:
    from pyroute2 import WireGuard

    with WireGuard() as wireguard:
        wireguard.set(name, **settings)


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """What the kernel refuses becomes WireGuardFailed."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except (NetlinkError, OSError) as error:
        raise WireGuardFailed(name=name, reason=f"the kernel refused it: {said(error)}") from None
