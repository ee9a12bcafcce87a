# SPDX-License-Identifier: GPL-2.0-or-later
"""Who this host and its peers are: keys, pinned peers, known servers, sealed offers."""
