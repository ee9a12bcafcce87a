# SPDX-License-Identifier: GPL-2.0-or-later
"""A container's configuration file: read as LXC reads it, carried, rewritten, fenced."""
