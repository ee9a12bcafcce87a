# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to a rendezvous: ring a peer, be rung, pass sealed offers."""
