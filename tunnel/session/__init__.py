# SPDX-License-Identifier: GPL-2.0-or-later
"""A session from the first offer to an established tunnel, on both sides, and its healing."""
