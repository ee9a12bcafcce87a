# SPDX-License-Identifier: GPL-2.0-or-later
"""An encrypted path between two peers behind NAT: identity, pairing, rendezvous, punching, WireGuard, relay.

It knows nothing of containers and imports nothing of `migrator` or `stages`. docs/tunnel.md has the layers.
"""
