# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a peer may be reached: addresses of its own and found out, and what NAT that tells of."""
