# SPDX-License-Identifier: GPL-2.0-or-later
"""Bulk data: cut into segments, hashed, compressed, sent; checked, written, resumed. Also requests and answers."""
