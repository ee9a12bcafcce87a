# SPDX-License-Identifier: GPL-2.0-or-later
"""The errors of the tunnel, a class each, in the form of `migrator.errors.documented`."""

from __future__ import annotations

from migrator.errors.documented import DocumentedError


class TunnelError(DocumentedError):
    """{reason}"""


# --- Identity, pairing, signalling (70-75, 89) ----------------------------------------------------------------


class TunnelFileUnusable(TunnelError):
    """{path} cannot be used: {reason}"""

    status = 70
    cure = "{fix}"


class IdentityChanged(TunnelError):
    """The identity of the peer {name} has changed: {pinned} is pinned, but it presented {found}."""

    status = 71
    cure = (
        "Someone may be impersonating it. If that host was reinstalled and you trust it: migrator peer remove {name} "
        "on this host, then pair again."
    )


class PeerUnknown(TunnelError):
    """This host has no peer called {name}."""

    status = 72
    cure = "Pair with it: migrator peer invite --name {name}; to list the known peers: migrator peer list"


class PeerNameRefused(TunnelError):
    """The peer name {name} cannot be used: {reason}"""

    cure = "{fix}"


class RendezvousUnavailable(TunnelError):
    """No rendezvous server is usable: {reason}"""

    status = 73
    cure = "Check `servers` in {config}, or name one with --rendezvous; migrator rendezvous runs one."


class PairingFailed(TunnelError):
    """The pairing failed: {reason}"""

    status = 74
    cure = "Nothing was pinned. A code can be tried only once; start over with: migrator peer invite"


class OfferRejected(TunnelError):
    """An offer was rejected: {reason}"""

    status = 75
    cure = "It was ignored. If this happens again, the rendezvous server or someone on the way to it is not honest."


class PeerAbsent(TunnelError):
    """The peer {name} is not waiting at the rendezvous server {server}."""

    status = 89
    cure = "On that host: systemctl start migrator-agent, or for one move: migrator agent --once"


# --- Punching, relay, sessions (76-81) ------------------------------------------------------------------------


class NoPath(TunnelError):
    """No path to the peer was found: {reason}"""

    status = 76
    cure = "A rendezvous server started with --relay carries what cannot go directly; --path prefer-direct uses it."


class PeerRefuses(TunnelError):
    """The peer {name} refuses: {reason}"""

    status = 77
    cure = "See what it logs itself: journalctl -u migrator-agent"


class PeerSilent(TunnelError):
    """The peer {name} does not answer: {reason}"""

    status = 78
    cure = ("Make sure that both hosts have the same version of migrator; then on that host: "
            "systemctl restart migrator-agent")


class TunnelBroken(TunnelError):
    """The tunnel to {name} is broken: {reason}"""

    status = 79
    cure = "Run the command again; it makes a new tunnel."


# --- WireGuard, interface, path health (82-88) ----------------------------------------------------------------


class WireGuardMissing(TunnelError):
    """This host has no usable WireGuard: {reason}"""

    status = 82
    cure = "Install the package wireguard-go, or boot a kernel with the WireGuard module."


class WireGuardFailed(TunnelError):
    """WireGuard's interface {name} failed: {reason}"""

    status = 83
    cure = "Run the command again; it first removes what is left of the interface."


class InterfaceFailed(TunnelError):
    """The tunnel's interface {name} could not be set up: {reason}"""

    status = 84
    cure = "{fix}"


class TunnelSilent(TunnelError):
    """Nothing comes through the tunnel {name}: {reason}"""

    status = 85
    cure = (
        "If the handshake succeeded, a firewall on one of the hosts drops what comes out of the tunnel: see nft list "
        "ruleset there. Otherwise try again, or use --path relay-only."
    )


class PathUnstable(TunnelError):
    """The path to the peer is not good enough to freeze a container now: {reason}"""

    status = 86
    cure = "Try again when the network is quieter: migrator tunnel ping shows it. Nothing has been frozen."


class LeftoversRemain(TunnelError):
    """Leftovers of an earlier tunnel could not be removed: {what}"""

    status = 87
    cure = "Remove them by hand (ip link delete, nft delete table inet), then run the command again."
