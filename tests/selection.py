# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run of pytest leaves out of the tests that it has found, and in which order the others run."""

from __future__ import annotations

import pytest

from tests import effort, equipment

LEFT_OUT = pytest.StashKey[list[str]]()


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first: who made a typing error need not wait for two hosts to hear of it. The matrix last.

    Who names files or folders gets all that is in them.
    """
    items.sort(key=lambda item: ("tests/rig/" in item.path.as_posix(), "fault_matrix" in item.path.name))
    if named(config):
        return
    nightly = [] if effort.ALL else [item for item in items if item.get_closest_marker("nightly")]
    passed = [item for item in items if equipment.is_test(item.path)] if equipment.is_recorded(equipment.TREE) else []
    items[:] = [item for item in items if item not in nightly and item not in passed]
    config.hook.pytest_deselected(items=[*nightly, *passed])
    config.stash[LEFT_OUT] = [f"left out: {len(those)} {what} (make test-all has them)" for those, what in (
        (nightly, "that are nightly"), (passed, "of the equipment, which have passed for it as it is")) if those]


def named(config: pytest.Config) -> bool:
    """Whether files or folders were named."""
    told = getattr(config, "workerinput", {"named": config.args_source is pytest.Config.ArgsSource.ARGS})
    return bool(told["named"])
