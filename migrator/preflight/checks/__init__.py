# SPDX-License-Identifier: GPL-2.0-or-later
"""What the facts mean for a move: small pure functions, a module for each subject."""
