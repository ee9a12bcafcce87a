# SPDX-License-Identifier: GPL-2.0-or-later
"""The way to the other host: what `-d` means, SSH, the tunnel, and the two ends of a connection."""
