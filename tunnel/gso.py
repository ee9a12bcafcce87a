# SPDX-License-Identifier: GPL-2.0-or-later
"""Many UDP datagrams in one system call (udp(7): UDP_GRO to receive, UDP_SEGMENT to send)."""

from __future__ import annotations

import contextlib
import socket
import struct

from tunnel.candidates.nat import Endpoint

BATCH = 65535  # bytes; the most that one call receives
SEGMENTS_MAX = 40  # datagrams in one call; the kernel accepts 64, and 64 KiB altogether

_UDP_SEGMENT = 103  # linux/udp.h; the socket module has neither
_UDP_GRO = 104
_U16 = struct.Struct("=H")
_INT = struct.Struct("=i")


def enlarge(sock: socket.socket, size: int = 4 * 1024 * 1024) -> None:
    """Let a socket receive many datagrams at a time, and buffer `size` bytes (the kernel may reduce that)."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, size)
    with contextlib.suppress(OSError):  # a kernel before 5.0
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)


def receive(sock: socket.socket, buffer: bytearray) -> tuple[int, int, Endpoint]:
    """Fill the buffer; returns the number of bytes, the size of each datagram (0: there is just one) and the sender.

    Raises OSError as recvmsg does.
    """
    size, ancillary, _, sender = sock.recvmsg_into([buffer], 64)
    for message in ancillary:
        if segment := size_told(*message):
            return size, segment, (sender[0], sender[1])
    return size, 0, (sender[0], sender[1])


def send(sock: socket.socket, data: memoryview, segment: int, to: Endpoint) -> None:
    """Send datagrams of `segment` bytes each (the last may be shorter; 0: one datagram). What does not fit is lost."""
    try:
        if segment and len(data) > segment:
            sock.sendmsg([data], cut_into(segment), 0, to)
        else:
            sock.sendto(data, to)
    except BlockingIOError:
        return  # full: a router would drop it too
    except OSError:
        # The route does not support segmentation (a device without checksums, a smaller MTU): one by one.
        for each in split(data, segment):
            with contextlib.suppress(OSError):
                sock.sendto(each, to)


def cut_into(segment: int) -> list[tuple[int, int, bytes]]:
    """The ancillary message that makes the kernel cut what is sent into datagrams of `segment` bytes."""
    return [(socket.IPPROTO_UDP, _UDP_SEGMENT, _U16.pack(segment))]


def size_told(level: int, kind: int, data: bytes) -> int:
    """The size of each datagram, if an ancillary message of what was received gives it; otherwise 0."""
    told: int = _INT.unpack(data[:4])[0] if level == socket.IPPROTO_UDP and kind == _UDP_GRO else 0
    return told


def split(data: memoryview, segment: int) -> list[memoryview]:
    """The datagrams in what one call has received."""
    if not segment or len(data) <= segment:
        return [data]
    return [data[at : at + segment] for at in range(0, len(data), segment)]


def runs(datagrams: list[memoryview]) -> list[tuple[memoryview, int]]:
    """Datagrams grouped so that few calls send them: each group with the size for `send`."""
    found: list[tuple[memoryview, int]] = []
    start = 0
    while start < len(datagrams):
        size, stop = len(datagrams[start]), start + 1
        most = min(SEGMENTS_MAX, 60000 // size if size else 1)
        while stop < len(datagrams) and stop - start < most and len(datagrams[stop]) == size:
            stop += 1
        if stop - start == 1:
            found.append((datagrams[start], 0))
        else:
            found.append((memoryview(b"".join(datagrams[start:stop])), size))
        start = stop
    return found
