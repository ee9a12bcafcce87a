# SPDX-License-Identifier: GPL-2.0-or-later
"""Both hosts together as a model, and the search through everything that can happen to them (docs/model.md)."""
