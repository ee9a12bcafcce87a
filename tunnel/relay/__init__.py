# SPDX-License-Identifier: GPL-2.0-or-later
"""This host's end of a relay, for when no direct path can be made; and its messages."""
