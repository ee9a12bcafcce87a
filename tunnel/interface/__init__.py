# SPDX-License-Identifier: GPL-2.0-or-later
"""A session's network interface, its addresses and firewall, and their removal."""
