# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a packet must travel to get past this host's own NATs: a short traceroute (ip(7): IP_RECVERR).

A punch's first packet should open all NATs on this side and expire before it reaches one on the peer's.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import Mapping

from tunnel.candidates import reflection
from tunnel.candidates.candidate import private
from tunnel.candidates.nat import Endpoint

USUAL = 2  # hops: expires at the provider's first router, behind the one at home
FARTHEST = 6

_IP_RECVERR = 11  # linux/in.h
_ORIGIN_ICMP = 2  # linux/errqueue.h
_TIME_EXCEEDED = 11
_EXTENDED_ERR = struct.Struct("=IBBBBII")  # errno, origin, type, code, pad, info, data; a sockaddr follows


def opener_ttl(answers: Mapping[int, str]) -> int:
    """The TTL that expires at the first router with a public address; `answers`: TTL -> who said that it expired."""
    for ttl in sorted(answers):
        if not private(answers[ttl]):
            return max(ttl, USUAL)
    # It has to get past every NAT that did answer.
    return max([USUAL, *(ttl + 1 for ttl in answers)])


async def measure(reflector: Endpoint, timeout: float = 0.3) -> int:
    """The TTL for openers, determined with one packet per hop towards an IPv4 reflector."""
    trace = _Trace()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for ttl in range(1, FARTHEST + 1):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                sock.sendto(reflection.request(secrets.token_bytes(reflection.NONCE_SIZE)), reflector)
                loop.add_reader(sock.fileno(), trace.read, sock, ttl)
                stack.callback(loop.remove_reader, sock.fileno())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(trace.complete.wait(), timeout)
    return min(opener_ttl(trace.expired), FARTHEST)


class _Trace:
    """What came back: who reported an expired TTL, and with which TTL the reflector was reached."""

    def __init__(self) -> None:
        self.expired: dict[int, str] = {}
        self.complete = asyncio.Event()
        self._reached = FARTHEST + 1

    def read(self, sock: socket.socket, ttl: int) -> None:
        try:
            _, ancillary, _, _ = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
        except OSError:
            with contextlib.suppress(OSError):
                sock.recv(512)
                self._reached = min(self._reached, ttl)
        else:
            for level, kind, data in ancillary:
                if level == socket.IPPROTO_IP and kind == _IP_RECVERR and len(data) >= _EXTENDED_ERR.size + 8:
                    _, origin, icmp, *_ = _EXTENDED_ERR.unpack_from(data)
                    if origin == _ORIGIN_ICMP and icmp == _TIME_EXCEEDED:
                        offender = data[_EXTENDED_ERR.size + 4 : _EXTENDED_ERR.size + 8]
                        self.expired[ttl] = socket.inet_ntoa(offender)
        # Every hop before the first public one has been heard, or every hop there is.
        ends = [ttl for ttl, address in self.expired.items() if not private(address)] + [self._reached]
        if all(ttl in self.expired for ttl in range(1, min(ends))):
            self.complete.set()
