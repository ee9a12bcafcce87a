# SPDX-License-Identifier: GPL-2.0-or-later
"""Device rules of a container's configuration."""

from __future__ import annotations

# As LXC's common.conf and userns.conf leave it: the latter takes back what the former says.
TAKEN_BACK = ("lxc.cgroup2.devices.deny = a\nlxc.cgroup2.devices.allow = c 1:3 rwm\n"
              "lxc.cgroup2.devices.deny =\nlxc.cgroup2.devices.allow =\n")
RULES = "lxc.cgroup2.devices.deny = a\nlxc.cgroup2.devices.allow = c 1:3 rwm\n"
