"""Who gets in: offers from peers that are pinned now, each opened once; all else is counted and gets no answer."""

from __future__ import annotations

from collections.abc import Callable

from tunnel.errors import OfferRejected
from tunnel.identity import Identity
from tunnel.peers import Peer, Peers
from tunnel.seal import Opener, Role, Sealed


class Doorman:
    """Opens what comes over signalling. Keep one for as long as the process lives: it remembers what was replayed.

    `tell` hears of each offer that was refused. Nobody who sent one is told anything: that would show who is paired.
    """

    def __init__(self, identity: Identity, peers: Peers, tell: Callable[[str], None] = lambda _: None) -> None:
        self._identity = identity
        self._peers = peers
        self._tell = tell
        self._openers: dict[bytes, Opener] = {}
        self.refused = 0

    def open(self, sender: bytes, data: bytes, session: bytes | None = None, *,
             role: Role | None = None) -> tuple[Peer, Sealed]:
        """Who sent it (`sender` is what the rendezvous claims) and what; raises OfferRejected.

        The store is read each time, so that a peer that was removed is a stranger with its next message.
        """
        try:
            peer = self._peer(sender)
            opener = self._openers.get(sender) or self._openers.setdefault(sender, Opener(self._identity, peer.public))
            return peer, opener.open(data, session, role=role)
        except OfferRejected as error:
            self.refused += 1
            self._tell(f"from {sender.hex()[:16]}: {error}")
            raise

    def _peer(self, id: bytes) -> Peer:
        peer = self._peers.by_id(id)
        if peer is None:
            raise OfferRejected(reason="it is not from a peer of this host")
        return peer
