# SPDX-License-Identifier: GPL-2.0-or-later
"""What several commands share: parts of stages, and the answers given to the other host."""
