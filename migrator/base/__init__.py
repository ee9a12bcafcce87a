# SPDX-License-Identifier: GPL-2.0-or-later
"""What any package here may use, including the tunnel: running programs, log, files, names, clocks.

It knows nothing about containers.
"""
