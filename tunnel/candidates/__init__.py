# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a peer may be reached: its own addresses and discovered ones, and the NAT type that these imply."""
