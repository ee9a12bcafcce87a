# SPDX-License-Identifier: GPL-2.0-or-later
"""What anything here may use, the tunnel too: running programs, log, files, names, clocks.

It knows nothing of containers.
"""
