# SPDX-License-Identifier: GPL-2.0-or-later
"""This host's end of a relay: the token, joining by UDP, and TCP if no UDP gets out.

By UDP nothing stands between WireGuard and the relay: the relay identifies an end by the address from which it joined,
so all that is needed is a JOIN from the port on which WireGuard will listen (or already does). By TCP a local proxy
carries WireGuard's datagrams (`tunnel.relay.relay_proxy`).
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Collection
from typing import Any

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tunnel.candidates.candidate import PORT_MIN, loopback, private, probable
from tunnel.candidates.nat import Endpoint
from tunnel.relay import relay_messages
from tunnel.relay.relay_messages import Answer, Refusal, Type

JOIN_INTERVAL = 0.2  # seconds between two JOINs that were not answered
REJOIN_INTERVAL = 20.0  # and between two that were, while nothing else is sent

REFUSALS = {
    Refusal.EXPIRED: "the relay's token has expired",
    Refusal.FULL: "the relay has no room for another pair",
    Refusal.QUOTA: "this pair has used up its share of the relay",
}


@dataclasses.dataclass(frozen=True)
class RelayToken:
    """The right of one end to join its pair at a relay. `key` is secret; `pin`: SHA-256 of the TLS certificate."""

    host: str
    udp_port: int
    tcp_port: int
    claim: bytes
    key: bytes = dataclasses.field(repr=False)
    pin: bytes | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any], server: str, port: int, *, own: Collection[str] = (),
                  pin: bytes | None = None) -> RelayToken:
        """What was sent by the rendezvous that was reached at the address `server` and that port; raises Malformed.

        This host sends datagrams to the relay that it names, and connects there. At the rendezvous' own address, which
        a user has chosen, the relay may have any port; elsewhere no privileged one except the number of its own. A
        relay that others cannot reach is accepted only from a rendezvous in the same place: one of this host's `own`
        addresses from a rendezvous on this host, one in a private network from a rendezvous in such a network.
        """
        host = strict_json.text(data, "host", 45) or server
        udp, tcp = (strict_json.integer(data, key, 1, 65535) for key in ("udp_port", "tcp_port"))
        if host != server:
            here = loopback(server) or server in own
            wrong = Malformed("the relay's host is not an address that such a server can name")
            if not probable(host):
                raise wrong
            if not here and (host in own or (private(host) and not private(server))):
                raise wrong
            if any(each < PORT_MIN and each != port for each in (udp, tcp)):
                raise Malformed("the relay's port is a privileged one, on a host other than the server")
        return cls(host, udp, tcp, strict_json.exactly(data, "claim", relay_messages.CLAIM_SIZE),
                   strict_json.exactly(data, "key", relay_messages.KEY_SIZE), pin)

    @property
    def udp(self) -> Endpoint:
        return self.host, self.udp_port


class Joining:
    """The exchange with a relay, without I/O: send `datagram` when it is due, pass what arrives to `received`."""

    def __init__(self, token: RelayToken) -> None:
        self.joined = False
        self.refused: str | None = None
        self.due = 0.0  # when the next JOIN should be sent
        self._token = token
        self._cookie = relay_messages.NO_COOKIE
        # Unpredictable, so that an answer can only belong to one of our JOINs; later numbers are never smaller.
        self._numbers = itertools.count(secrets.randbits(62))
        self._open: set[int] = set()

    def datagram(self, now: float) -> bytes:
        """A JOIN to send now."""
        self.due = now + (REJOIN_INTERVAL if self.joined else JOIN_INTERVAL)
        number = next(self._numbers)
        self._open = {each for each in self._open if number - each < 16} | {number}
        return relay_messages.join(self._token.claim, self._token.key, number, self._cookie)

    def leave(self) -> bytes:
        """A message that frees this end's place at once; nothing answers it."""
        return relay_messages.join(self._token.claim, self._token.key, next(self._numbers), self._cookie, leave=True)

    def received(self, data: bytes, now: float) -> Answer | None:
        """What the relay answered; None if this is not the relay's answer to one of our JOINs."""
        answer = relay_messages.parse_answer(data, self._token.key)
        if answer is None or answer.number not in self._open:
            return None
        self._open.discard(answer.number)
        if answer.type is Type.CHALLENGE:
            self._cookie, self.due = answer.cookie, now
        elif answer.type is Type.JOINED:
            self.joined, self.due = True, now + REJOIN_INTERVAL
        elif answer.refusal:
            self.refused = REFUSALS[answer.refusal]
        return answer
