# SPDX-License-Identifier: GPL-2.0-or-later
"""Sends and receives on a UDP port that WireGuard holds: to punch again under a live interface.

A raw socket (raw(7), ipv6(7)) may send from any port, and gets a copy of what arrives; a filter in the kernel
(SO_ATTACH_FILTER) lets only our own messages through, so that a transfer in progress costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import socket
import struct

from migrator.base.internet_checksum import internet_checksum
from tunnel.candidates.candidate import source_towards
from tunnel.candidates.nat import Endpoint
from tunnel.candidates.ports import READS, Receiver

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_IPV6_CHECKSUM = 7  # linux/in6.h
_UDP = struct.Struct("!HHHH")  # source port, destination port, length, checksum
_INT = struct.Struct("=i")
_TEXT = int.from_bytes(b"MG"), int.from_bytes(b"MR")  # what our messages begin with: MGP1, MGA1, MRL1

# Classic BPF (linux/filter.h): code, jump if true, jump if false, constant.
_LOAD_X_IP_HEADER = (0xB1, 0, 0, 0)  # X = 4 * (packet[0] & 15)
_LOAD_HALF_X = 0x48  # A = the 16 bits at X + constant
_LOAD_HALF = 0x28  # A = the 16 bits at constant
_JUMP_EQUAL = 0x15
_RETURN = 0x06


class RawPort:
    """Like `ports.Ports`, on a port that somebody else is bound to. Needs CAP_NET_RAW."""

    def __init__(self, port: int) -> None:
        """Raises OSError."""
        self.receiver: Receiver | None = None
        self._port = port
        self._ipv4 = _socket(socket.AF_INET, port)
        self._ipv6: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._ipv6 = _socket(socket.AF_INET6, port)
            self._ipv6.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 6)
        loop = asyncio.get_running_loop()
        for sock in self._all():
            loop.add_reader(sock.fileno(), self._read, sock)

    def _all(self) -> list[socket.socket]:
        return [self._ipv4, *([self._ipv6] if self._ipv6 else [])]

    def port(self, via: int = 0) -> int:
        return self._port

    def more(self, count: int) -> int:
        """None: WireGuard has this one port."""
        return 0

    def send(self, via: int, to: Endpoint, data: bytes, ttl: int | None = None) -> bool:
        """Like `ports.Ports.send`."""
        ipv6 = ":" in to[0]
        sock = self._ipv6 if ipv6 else self._ipv4
        source = source_towards(to[0])
        if sock is None or via or source is None:
            return False
        level, option = (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT) if ipv6 else (socket.IPPROTO_IP, socket.IP_TTL)
        try:
            # The port goes into the header: a raw socket's address has none.
            sock.sendmsg([datagram((source, self._port), to, data)],
                         [] if ttl is None else [(level, option, _INT.pack(ttl))], 0, (to[0], 0))
        except OSError:
            return False
        return True

    def _read(self, sock: socket.socket) -> None:
        for _ in range(READS):
            try:
                packet, sender = sock.recvfrom(4096)
            except BlockingIOError:
                return
            except OSError:
                continue
            found = payload(packet, self._port, ip_header=sock is self._ipv4)
            if found and self.receiver:
                self.receiver(0, (sender[0], found[0]), found[1])
            if sock.fileno() < 0:
                return

    def close(self) -> None:
        """Safe to repeat."""
        for sock in self._all():
            if sock.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(sock.fileno())
                sock.close()


def payload(packet: bytes, port: int, *, ip_header: bool) -> tuple[int, bytes] | None:
    """The source port and the data of a UDP packet for `port`; None for any other."""
    start = 4 * (packet[0] & 15) if ip_header and packet else 0
    if len(packet) < start + _UDP.size:
        return None
    source, target, length, _ = _UDP.unpack_from(packet, start)
    if target != port or not _UDP.size <= length <= len(packet) - start:
        return None
    return source, packet[start + _UDP.size : start + length]


def datagram(source: Endpoint, to: Endpoint, data: bytes) -> bytes:
    """A UDP header and the data; the checksum covers the addresses too (RFC 768, 8200 section 8.1)."""
    length = _UDP.size + len(data)
    addresses = ipaddress.ip_address(source[0]).packed + ipaddress.ip_address(to[0]).packed
    summed = addresses + struct.pack("!HH", socket.IPPROTO_UDP, length) + _UDP.pack(source[1], to[1], length, 0) + data
    return _UDP.pack(source[1], to[1], length, internet_checksum(summed) or 0xFFFF) + data


def _socket(family: socket.AddressFamily, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
    try:
        _attach(sock, _filter(port, ip_header=family == socket.AF_INET))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _filter(port: int, *, ip_header: bool) -> list[tuple[int, int, int, int]]:
    """Only what goes to this port and begins like our messages."""
    load = _LOAD_HALF_X if ip_header else _LOAD_HALF
    return [
        *([_LOAD_X_IP_HEADER] if ip_header else []),
        (load, 0, 0, 2),
        (_JUMP_EQUAL, 0, 3, port),
        (load, 0, 0, 8),
        (_JUMP_EQUAL, 2, 0, _TEXT[0]),
        (_JUMP_EQUAL, 1, 0, _TEXT[1]),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, 0xFFFF),
    ]


def _attach(sock: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    described = struct.pack("HxxxxxxP" if struct.calcsize("P") == 8 else "HxxP", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
    # Packets that arrived before the filter did.
    with contextlib.suppress(OSError):
        while sock.recv(1, socket.MSG_DONTWAIT):
            pass
