# SPDX-License-Identifier: GPL-2.0-or-later
"""This host's end of a relay, for when there is no direct path; and its messages."""
