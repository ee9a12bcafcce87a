# SPDX-License-Identifier: GPL-2.0-or-later
"""A direct path through two NATs: a state machine without I/O, and what runs it on sockets."""
