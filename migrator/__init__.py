# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a running LXC container from one host to another: what every stage is made of, and the command line.

`docs/architecture.md` is the map of the modules.
"""

__version__ = "0.1.0"
