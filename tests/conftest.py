# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tests share."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: who made a typing error need not wait for two hosts to hear of it."""
    items.sort(key=lambda item: "tests/rig/" in item.path.as_posix())
