"""An encrypted path between two peers behind NAT: identity, pairing, rendezvous, punching, WireGuard, relay.

It knows nothing of containers and imports nothing of `migrator` or `stages`. Not built yet: `-d peer:NAME`
is refused with a message that says so.
"""
