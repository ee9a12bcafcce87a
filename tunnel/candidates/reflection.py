# SPDX-License-Identifier: GPL-2.0-or-later
"""What a UDP reflector is asked and answers: from which address and port a datagram came.

The format is our own, not STUN (RFC 8489): the request is longer than the answer, so that a reflector amplifies nothing
for anybody who forges a sender, and addresses are hidden by an XOR, as in STUN, from routers that rewrite addresses
inside packets.

| message | bytes                                                                                       |
| ------- | ------------------------------------------------------------------------------------------- |
| request | `MGR1`, 12 random bytes, zeros up to 40 bytes                                               |
| answer  | `MGA1`, the same 12 bytes, family u8 (4 or 6), port u16, address (4 or 16 bytes); both XOR `M` |
"""

from __future__ import annotations

import ipaddress
import struct

REQUEST_SIZE = 40
NONCE_SIZE = 12

_REQUEST = b"MGR1"
_ANSWER = b"MGA1"
_HEAD = struct.Struct("!4s12sBH")
_MASK = 0x4D  # 'M'


def request(nonce: bytes) -> bytes:
    """The request with these 12 random bytes, by which its answer is recognized."""
    return (_REQUEST + nonce).ljust(REQUEST_SIZE, b"\0")


def asked(datagram: bytes) -> bytes | None:
    """The random bytes of a request; None if it is not one."""
    if len(datagram) != REQUEST_SIZE or not datagram.startswith(_REQUEST):
        return None
    nonce, padding = datagram[4 : 4 + NONCE_SIZE], datagram[4 + NONCE_SIZE :]
    return None if any(padding) else nonce


def answer(nonce: bytes, address: str, port: int) -> bytes:
    """The answer to a request that came from `address` (IPv4 or IPv6, without a zone) and `port`."""
    packed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(packed, ipaddress.IPv6Address) and packed.ipv4_mapped:
        packed = packed.ipv4_mapped
    body = bytes(byte ^ _MASK for byte in packed.packed)
    return _HEAD.pack(_ANSWER, nonce, packed.version, port ^ (_MASK << 8 | _MASK)) + body


def answered(datagram: bytes) -> tuple[bytes, str, int] | None:
    """The random bytes, address and port of an answer; None if it is not one."""
    if len(datagram) not in (_HEAD.size + 4, _HEAD.size + 16):
        return None
    magic, nonce, version, port = _HEAD.unpack_from(datagram)
    body = bytes(byte ^ _MASK for byte in datagram[_HEAD.size :])
    if magic != _ANSWER or len(body) != {4: 4, 6: 16}.get(version):
        return None
    return nonce, str(ipaddress.ip_address(body)), port ^ (_MASK << 8 | _MASK)
