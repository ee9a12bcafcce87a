# SPDX-License-Identifier: GPL-2.0-or-later
"""Which container a copy belongs to; whether it runs, is frozen or has left; and how it is given back or ended."""
