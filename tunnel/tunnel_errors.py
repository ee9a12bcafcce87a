# SPDX-License-Identifier: GPL-2.0-or-later
"""The errors of the tunnel: a class each, as `migrator.errors.documented` has it."""

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
    """The identity of the peer {name} has changed: {pinned} is pinned, {found} was presented."""

    status = 71
    cure = (
        "Somebody may be posing as it. If that host was set up anew and you trust it: migrator peer remove {name} "
        "on this host, then pair again."
    )


class PeerUnknown(TunnelError):
    """This host has no peer called {name}."""

    status = 72
    cure = "Pair with it: migrator peer invite --name {name}; those known are shown by: migrator peer list"


class PeerNameRefused(TunnelError):
    """The peer name {name} cannot be used: {reason}"""

    cure = "{fix}"


class RendezvousUnavailable(TunnelError):
    """No rendezvous server can be used: {reason}"""

    status = 73
    cure = "Check `servers` in {config}, or name one with --rendezvous; migrator rendezvous starts one."


class PairingFailed(TunnelError):
    """The pairing failed: {reason}"""

    status = 74
    cure = "Nothing was pinned. A code that was tried is used up; begin again: migrator peer invite"


class OfferRejected(TunnelError):
    """An offer was rejected: {reason}"""

    status = 75
    cure = "Nothing was done with it. If it comes back, the rendezvous or somebody on the way to it is not honest."


class PeerAbsent(TunnelError):
    """The peer {name} does not wait at the rendezvous {server}."""

    status = 89
    cure = "On that host: systemctl start migrator-agent, or for one move: migrator agent --once"


# --- Punching, relay, sessions (76-81) ------------------------------------------------------------------------


class NoPath(TunnelError):
    """No path to the peer was found: {reason}"""

    status = 76
    cure = "A rendezvous started with --relay carries what cannot go directly; --path prefer-direct uses it."


class PeerRefuses(TunnelError):
    """The peer {name} refuses: {reason}"""

    status = 77
    cure = "See what it says itself: journalctl -u migrator-agent"


class PeerSilent(TunnelError):
    """The peer {name} does not answer: {reason}"""

    status = 78
    cure = "See that both hosts have the same version of migrator; then on that host: systemctl restart migrator-agent"


class TunnelBroken(TunnelError):
    """The tunnel to {name} is broken: {reason}"""

    status = 79
    cure = "Run the command again; it makes a new tunnel."


# --- WireGuard, interface, path health (82-88) ----------------------------------------------------------------


class WireGuardMissing(TunnelError):
    """This host has no WireGuard that can be used: {reason}"""

    status = 82
    cure = "Install the package wireguard-go, or start a kernel that has the WireGuard module."


class WireGuardFailed(TunnelError):
    """WireGuard's interface {name} failed: {reason}"""

    status = 83
    cure = "Run the command again; what is left of the interface is removed then."


class InterfaceFailed(TunnelError):
    """The tunnel's interface {name} could not be set up: {reason}"""

    status = 84
    cure = "{fix}"


class TunnelSilent(TunnelError):
    """Nothing comes through the tunnel {name}: {reason}"""

    status = 85
    cure = (
        "If the handshake succeeded, a firewall on one of the hosts drops what comes from the tunnel: see nft list "
        "ruleset there. Else try again, or use --path relay-only."
    )


class PathUnstable(TunnelError):
    """The path to the peer is not good enough to freeze a container now: {reason}"""

    status = 86
    cure = "Try again when the network is quieter: migrator tunnel ping shows it. Nothing has been frozen."


class LeftoversRemain(TunnelError):
    """Remains of an earlier tunnel could not be removed: {what}"""

    status = 87
    cure = "Remove them by hand (ip link delete, nft delete table inet), then run the command again."
