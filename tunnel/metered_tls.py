# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS that looks at what comes a little at a time, and ends a connection over which too much comes beside data.

TLS 1.3 lets the other end send what no protocol above it ever sees: requests for new keys (27 bytes each, answered, and
dearer than anything else of that size), session tickets, records of one byte of data, padding. asyncio reads 256 KiB
and hands all of it to OpenSSL, which returns only once it has found data or has used it all up. So whatever counts
messages or frames is not asked, and nobody else has a turn meanwhile.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from migrator.base.clock import now
from tunnel.rendezvous.limits import Bucket, Rate

RECORD = 5 + 16 * 1024 + 256  # bytes of a whole record at most (RFC 8446, 5.2)
FRAMING = 5 + 1 + 16  # of these are no data, unless its sender pads it: a header, a type, a tag
TOO_MUCH = "too much comes beside data: requests for new keys, tickets or tiny records"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Allowance:
    """Bytes that may come in addition to data: during the handshake, and from then on."""

    handshake: int
    beside: Rate
    slice: int  # that OpenSSL is given before this is looked at; small ones cost a bulk transfer a fifth
    framing: int = 0  # of these, with each record that has data, do not count


# A frame of WebSocket is one record, or two if it is longer than 16 KiB: these are twice what the frames need that are
# accepted at most, which otherwise could come in records of a byte each (`FRAMES` in rendezvous.server and in link).
FROM_PEERS = Allowance(16 * 1024, Rate(1024, 8 * 1024), 2048)
# Servers show a chain of certificates, and somebody else's TLS may stand before them: smaller records, tickets.
FROM_SERVERS = Allowance(128 * 1024, Rate(8 * 1024, 16 * 1024), 2048)
# A record may be a datagram of WireGuard's; these cost more than their records, and have limits of their own.
FROM_ENDS = Allowance(16 * 1024, Rate(1, 8 * 1024), 16 * 1024, FRAMING)
FROM_RELAYS = Allowance(128 * 1024, Rate(1, 8 * 1024), 16 * 1024, FRAMING)


class MeteredObject(ssl.SSLObject):
    """One connection's TLS; made by `MeteredContext`."""

    def meter(self, came: ssl.MemoryBIO, given: ssl.MemoryBIO, allowance: Allowance) -> None:
        """From now on hand on what has come: from where asyncio puts it to where OpenSSL takes it."""
        self._came = came
        self._given = given
        self._allowance = allowance
        self._left = Bucket(Rate(0, allowance.handshake), now)
        self._beside = 0  # bytes handed on that were no data, or are not yet: what has come of a record

    def do_handshake(self) -> None:
        self._needs(super().do_handshake)
        self._beside = self._given.pending
        self._left = Bucket(self._allowance.beside, now)

    def read(self, size: int = 1024, buffer: Any = None) -> Any:
        """As asyncio calls it: with room for a whole record, until nothing more is there."""
        found: Any = self._needs(super().read, size, buffer)
        data = (len(found) if buffer is None else found) + self._allowance.framing
        # At once, so that the next record may come in pieces however long this connection has stood.
        self._charge(self._beside - data - self._given.pending)
        self._beside = self._given.pending
        return found

    def unwrap(self) -> None:
        self._needs(super().unwrap)

    def _needs(self, step: Callable[..., T], *arguments: Any) -> T:
        """Take that step, with as much of what has come as it needs."""
        while True:
            try:
                return step(*arguments)
            except ssl.SSLWantReadError:
                if not self._hand_on():
                    raise

    def _charge(self, beside: int) -> None:
        """Count so many bytes that were no data; raises SSLError once there are more than the other end may send."""
        if beside > 0 and not self._left.take(beside):
            raise ssl.SSLError(1, TOO_MUCH)

    def _hand_on(self) -> bool:
        """Give OpenSSL some more, if there is more and the other end is within its allowance."""
        over = self._beside - RECORD
        self._charge(over)
        self._beside -= max(0, over)
        part = self._came.read(self._allowance.slice)
        self._given.write(part)
        self._beside += len(part)
        return bool(part)


class MeteredContext(ssl.SSLContext):
    """A context whose connections are metered. Needs no other method, as asyncio makes its TLS with this one."""

    sslobject_class = MeteredObject
    allowance = FROM_PEERS

    def wrap_bio(self, incoming: ssl.MemoryBIO, *arguments: Any, **named: Any) -> MeteredObject:
        given = ssl.MemoryBIO()
        made = super().wrap_bio(given, *arguments, **named)
        assert isinstance(made, MeteredObject)  # noqa: S101
        made.meter(incoming, given, self.allowance)
        return made


def context(protocol: int, allowance: Allowance) -> MeteredContext:
    """For TLS 1.3 alone."""
    made = MeteredContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.allowance = allowance
    return made
