# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts get to know each other: by a code, by copy and paste, or over SSH."""
