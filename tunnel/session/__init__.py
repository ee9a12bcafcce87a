# SPDX-License-Identifier: GPL-2.0-or-later
"""A session from the first offer to a tunnel that stands, on both sides, and its healing."""
