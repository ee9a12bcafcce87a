# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything about the package stands in setup.cfg; this file lets old tools find it."""

from setuptools import setup

setup()
