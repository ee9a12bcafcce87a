# SPDX-License-Identifier: GPL-2.0-or-later
"""WireGuard in the kernel: the bytes of netlink.

The numbers are those of the kernel's include/uapi/linux/wireguard.h, not pyroute2's.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pyroute2
import pytest
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import AsyncWireGuard, wgmsg

from tests.tunnel.wireguard.secret_keys import NAME, PRESHARED, PRIVATE, PUBLIC, shows_a_secret
from tunnel.tunnel_errors import WireGuardFailed
from tunnel.wireguard.common import Stats
from tunnel.wireguard.kernel import Kernel, stats_of

NESTED = 0x8000


def attribute(kind: int, data: bytes) -> bytes:
    """A netlink attribute: length, type, data, padded to four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    """The reverse, for all attributes in `data`, in their order."""
    found = []
    while data:
        length, kind = struct.unpack_from("=HH", data)
        assert 4 <= length <= len(data)
        found.append((kind & ~NESTED, data[4:length]))
        data = data[length + -length % 4 :]
    return found


class Recorder(AsyncWireGuard):  # type: ignore[misc]
    """pyroute2's encoder, with a list in place of the kernel."""

    prid, pid = 0x1D, 4711

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, _to: object) -> None:
        self.sent.append(bytes(data))

    async def get(self) -> AsyncIterator[dict[str, Any]]:
        yield {"header": {"error": None}}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the kernel would get of the messages that are sent from now on."""
    recorder = Recorder()

    class Socket:
        def __enter__(self) -> Socket:
            return self

        def __exit__(self, *_: object) -> None: ...

        def set(self, *arguments: Any, **settings: Any) -> None:
            asyncio.run(recorder.set(*arguments, **settings))

    monkeypatch.setattr(pyroute2, "WireGuard", Socket)
    return recorder.sent


def device(message: bytes) -> dict[int, bytes]:
    """The attributes of a WG_CMD_SET_DEVICE message, whose headers are checked."""
    length, kind, flags, _, _ = struct.unpack_from("=IHHII", message)
    command, version = struct.unpack_from("=BBxx", message, 16)
    assert (length, kind) == (len(message), Recorder.prid)
    assert flags == 0x1 | 0x4  # REQUEST, ACK
    assert (command, version) == (1, 1)  # WG_CMD_SET_DEVICE, WG_GENL_VERSION
    found = attributes(message[20:])
    assert dict(found).pop(2) == NAME.encode() + b"\0"  # WGDEVICE_A_IFNAME
    return dict(found)


def only_peer(message: bytes) -> dict[int, bytes]:
    ((number, peer),) = attributes(device(message)[8])  # WGDEVICE_A_PEERS: a nested list
    assert number in (0, 1)
    return dict(attributes(peer))


def test_kernel_device_message(sent: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    links: list[tuple[Any, ...]] = []

    class Links:
        def __enter__(self) -> Links:
            return self

        def __exit__(self, *_: object) -> None: ...

        def link(self, *arguments: Any, **settings: Any) -> None:
            links.append((arguments, settings))

    monkeypatch.setattr(pyroute2, "IPRoute", Links)
    Kernel().create(NAME, PRIVATE, 40000)
    assert links == [(("add",), {"ifname": NAME, "kind": "wireguard"})]
    (message,) = sent
    assert device(message) == {2: NAME.encode() + b"\0", 3: PRIVATE, 6: struct.pack("=H", 40000)}


def test_kernel_peer_message_over_ipv4(sent: list[bytes]) -> None:
    Kernel().set_peer(NAME, PUBLIC, PRESHARED, ("203.0.113.5", 40001), "fd00::2/128", 15)
    peer = only_peer(sent[0])
    assert peer.pop(1) == PUBLIC
    assert peer.pop(2) == PRESHARED
    assert peer.pop(3) == struct.pack("=I", 0x2)  # WGPEER_F_REPLACE_ALLOWEDIPS
    # struct sockaddr_in: the family in the host's order, the port in the network's, eight zeros
    address = bytes([203, 0, 113, 5])
    assert peer.pop(4) == struct.pack("=H", socket.AF_INET) + struct.pack("!H", 40001) + address + bytes(8)
    assert peer.pop(5) == struct.pack("=H", 15)
    ((_, allowed),) = attributes(peer.pop(9))
    assert dict(attributes(allowed)) == {
        1: struct.pack("=H", socket.AF_INET6),
        2: socket.inet_pton(socket.AF_INET6, "fd00::2"),
        3: bytes([128]),
    }
    assert not peer


def test_kernel_endpoint_message_over_ipv6(sent: list[bytes]) -> None:
    Kernel().set_endpoint(NAME, PUBLIC, ("2001:db8::1", 40001))
    address = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    assert only_peer(sent[0]) == {
        1: PUBLIC,
        3: struct.pack("=I", 0x4),  # WGPEER_F_UPDATE_ONLY
        # struct sockaddr_in6: family, port, flow information, address, scope
        4: struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", 40001, 0) + address + bytes(4),
    }


def test_kernel_keepalive_message(sent: list[bytes]) -> None:
    Kernel().set_keepalive(NAME, PUBLIC, 15)
    assert only_peer(sent[0]) == {1: PUBLIC, 3: struct.pack("=I", 0x4), 5: struct.pack("=H", 15)}


def test_kernel_peer_without_endpoint(sent: list[bytes]) -> None:
    Kernel().set_peer(NAME, PUBLIC, PRESHARED, None, "fd00::2/128", 0)
    assert 4 not in only_peer(sent[0])


@pytest.mark.parametrize(("endpoint", "bytes_of_it"), [
    (("203.0.113.5", 40001), struct.pack("=H", socket.AF_INET) + b"\x9c\x41" + bytes([203, 0, 113, 5]) + bytes(8)),
    (("2001:db8::1", 33), struct.pack("=H", socket.AF_INET6) + b"\0\x21" + bytes(4)
     + socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(4)),
])  # fmt: skip
def test_kernel_answer(endpoint: tuple[str, int], bytes_of_it: bytes) -> None:
    peer = b"".join([
        attribute(1, PUBLIC), attribute(2, PRESHARED), attribute(4, bytes_of_it), attribute(5, struct.pack("=H", 15)),
        attribute(6, struct.pack("=qq", 1700000000, 500000000)), attribute(7, struct.pack("=Q", 92)),
        attribute(8, struct.pack("=Q", 148)), attribute(10, struct.pack("=I", 1)),
    ])  # fmt: skip
    assert stats_of([answer(peer)]) == Stats(1700000000.5, 92, 148, endpoint)


def test_kernel_answer_without_a_peer() -> None:
    assert stats_of([answer(None)]) is None


def answer(peer: bytes | None) -> Any:
    """A WG_CMD_GET_DEVICE answer as pyroute2 reads it."""
    body = struct.pack("=BBxx", 0, 1) + attribute(2, NAME.encode() + b"\0") + attribute(3, PRIVATE)
    if peer is not None:
        body += attribute(8 | NESTED, attribute(0 | NESTED, peer))
    message = wgmsg(struct.pack("=IHHII", 16 + len(body), 0x1D, 2, 1, 4711) + body)
    message.decode()
    return message


@pytest.mark.parametrize(("error", "reason"), [
    (NetlinkError(errno.ENODEV, "No such device"), ""),
    (NetlinkError(errno.ENOENT, "No such file or directory"), "the kernel has no WireGuard module"),
    (NetlinkError(errno.EPERM, "Operation not permitted"), "the kernel refuses it: Operation not permitted"),
    (OSError(errno.EPROTONOSUPPORT, "Protocol not supported"), "the kernel refuses it: Protocol not supported"),
])  # fmt: skip
def test_kernel_is_asked(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(pyroute2, "WireGuard", refuse)
    assert Kernel().why_not() == reason


def test_this_kernel_gives_an_answer() -> None:
    async def from_a_loop() -> str:
        return Kernel().why_not()  # pyroute2 has a loop of its own

    assert isinstance(Kernel().why_not(), str)
    assert asyncio.run(from_a_loop()) == Kernel().why_not()


def test_kernel_refusals_show_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NetlinkError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(pyroute2, "WireGuard", refuse)
    with pytest.raises(WireGuardFailed, match="Operation not supported") as caught:
        Kernel().set_peer(NAME, PUBLIC, PRESHARED, None, "fd00::2/128", 0)
    assert not shows_a_secret(f"{caught.value} {caught.value.to_json()}")
