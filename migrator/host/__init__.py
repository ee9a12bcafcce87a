# SPDX-License-Identifier: GPL-2.0-or-later
"""This machine and the programs on it: LXC, btrfs, cgroups, processes, mounts, links."""
