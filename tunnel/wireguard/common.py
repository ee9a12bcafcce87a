# SPDX-License-Identifier: GPL-2.0-or-later
"""What both WireGuard back ends promise: one interface with one peer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol

Endpoint = tuple[str, int]  # a numeric address (no zone) and a UDP port

KEY_SIZE = 32  # bytes: private, public and preshared keys alike


@dataclasses.dataclass(frozen=True)
class Stats:
    """What the back end knows of the interface's peer."""

    last_handshake: float  # seconds since the epoch; 0 before the first one
    rx_bytes: int  # encrypted, headers of WireGuard included
    tx_bytes: int
    endpoint: Endpoint | None  # where the peer was last heard from, or else the one that was configured


def ignore(_pid: int) -> None:
    """For callers that do not want to know."""


class Backend(Protocol):
    """A way to have a WireGuard interface on this host. All calls block, for milliseconds, and touch only `name`.

    Keys are raw bytes. Every call raises WireGuardFailed with what the back end said; no key is ever part of that.
    """

    kind: ClassVar[str]  # "kernel" or "userspace"

    def why_not(self) -> str:
        """Why this back end cannot be used here, as the system itself answers; empty if it can."""

    def create(self, name: str, private_key: bytes, listen_port: int, *,
               started: Callable[[int], None] = ignore) -> None:
        """Make the interface, without peers and addresses and not up, listening on `listen_port`.

        `started` is called with the pid of a program that serves the interface, as soon as there is one.
        """

    def set_peer(self, name: str, public_key: bytes, preshared: bytes, endpoint: Endpoint | None, allowed_ip: str,
                 keepalive: int) -> None:
        """Give the interface its peer. `allowed_ip` has a prefix length; `keepalive` in seconds, 0 for none."""

    def set_endpoint(self, name: str, public_key: bytes, endpoint: Endpoint) -> None:
        """Send to another endpoint from now on; keys, session and counters stay."""

    def set_keepalive(self, name: str, public_key: bytes, seconds: int) -> None:
        """Send something at least that often from now on (0: no more), and once now."""

    def stats(self, name: str) -> Stats:
        """Counters of the interface's peer."""

    def remove(self, name: str) -> None:
        """Remove the interface and everything that serves it; does nothing if there is none."""
