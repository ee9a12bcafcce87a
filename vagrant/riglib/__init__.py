# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of `vagrant/rig`: one topic per module. Standard library only, Python 3.11 or newer."""
