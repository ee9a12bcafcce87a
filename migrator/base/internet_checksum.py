# SPDX-License-Identifier: GPL-2.0-or-later
"""The Internet checksum (RFC 1071), for packets that no kernel builds for us."""

from __future__ import annotations

import struct


def internet_checksum(data: bytes) -> int:
    """Of any number of bytes: an odd one is padded with a zero."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
