# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes made inside a running container so that it can be dumped, with no more rights than its own root has."""
