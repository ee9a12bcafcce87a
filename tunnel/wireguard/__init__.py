# SPDX-License-Identifier: GPL-2.0-or-later
"""WireGuard: one interface with one peer, using the kernel's module or wireguard-go."""

from tunnel.wireguard.common import Backend, Endpoint, Stats
from tunnel.wireguard.picker import Choice, backend, choose, named, warnings

__all__ = ["Backend", "Choice", "Endpoint", "Stats", "backend", "choose", "named", "warnings"]
