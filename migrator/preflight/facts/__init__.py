# SPDX-License-Identifier: GPL-2.0-or-later
"""What is looked at before a move: this host, its kernel and programs, the container and its tasks."""
