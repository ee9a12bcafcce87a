# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host knows of each migration: states, journal, the lock on a container, and where its files are."""
