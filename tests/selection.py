# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run of pytest leaves out of the tests that it has found, and in which order the others run."""

from __future__ import annotations

import pytest

from tests import effort, equipment

LEFT_OUT = pytest.StashKey[list[str]]()
ON_REQUEST = ("vm", "vagrant")  # marks of tests that boot virtual machines: `make test-MARK` alone runs them


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first: who made a typing error need not wait for two hosts to hear of it. The matrix last.

    Who names files or folders gets all that is in them.
    """
    items.sort(key=lambda item: ("tests/rig/" in item.path.as_posix(), "fault_matrix" in item.path.name))
    if named(config):
        return
    nightly = [] if effort.ALL else [item for item in items if item.get_closest_marker("nightly")]
    asked = {mark: [item for item in items if item.get_closest_marker(mark)] for mark in ON_REQUEST}
    passed = [item for item in items if equipment.is_test(item.path)] if equipment.is_recorded(equipment.TREE) else []
    groups = [(nightly, "that are nightly (make test-all has them)"),
              (passed, "of the equipment, which have passed for it as it is (make test-all has them)"),
              *((those, f"that boot virtual machines (make test-{mark} has them)") for mark, those in asked.items())]
    left_out = {item for those, _ in groups for item in those}
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))
    config.stash[LEFT_OUT] = [f"left out: {len(those)} {what}" for those, what in groups if those]


def named(config: pytest.Config) -> bool:
    """Whether files or folders were named."""
    told = getattr(config, "workerinput", {"named": config.args_source is pytest.Config.ArgsSource.ARGS})
    return bool(told["named"])
