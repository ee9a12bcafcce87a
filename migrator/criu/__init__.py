# SPDX-License-Identifier: GPL-2.0-or-later
"""The dump and the restore: what CRIU and LXC are told, and what is looked at before and after."""
