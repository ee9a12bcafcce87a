# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the path still carries traffic, and how well."""
