# SPDX-License-Identifier: GPL-2.0-or-later
"""What several commands have in common: parts of a stage, and the answers that the other host gives."""
