# SPDX-License-Identifier: GPL-2.0-or-later
"""A peer as `--json` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrator.record import grant

if TYPE_CHECKING:
    from tunnel.identity.peers import Peer


def of(peer: Peer) -> dict[str, Any]:
    """`added` is Unix time in seconds."""
    return {"name": peer.name, "fingerprint": peer.public.fingerprint, "identity": peer.public.to_text(),
            "added": peer.added, "rendezvous": list(peer.rendezvous), "allowed": grant.of_peer(peer).to_json()}
