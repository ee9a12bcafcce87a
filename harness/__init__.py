# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests and measurements both need: the rig's hosts, their NATs and a real sshd, driven from outside."""
