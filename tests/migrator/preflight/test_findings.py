# SPDX-License-Identifier: GPL-2.0-or-later
"""What findings mean, and how they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.errors import UsageError
from migrator.preflight.findings import (
    Severity,
    Verdict,
    apply_ignored,
    catalogue,
    check_ignored,
    define,
    painted,
    render,
    to_json,
    verdict,
)
from migrator.preflight.survey import find
from tests.migrator.made_up import CONTAINER, DESTINATION, SOURCE, change, notes

BLOCKING = find(SOURCE, change(DESTINATION, {"storage.filesystem": "ext4"}), CONTAINER)


def test_verdict() -> None:
    assert verdict(BLOCKING) is Verdict.BLOCKED
    assert verdict(BLOCKING, {"destination-not-btrfs"}) is Verdict.WARNINGS
    assert verdict(BLOCKING, {"disk-full"}) is Verdict.BLOCKED
    assert verdict(find(SOURCE, DESTINATION, change(CONTAINER, {"rootfs.used": -1}))) is Verdict.READY


def test_an_ignored_error_says_so() -> None:
    (finding,) = apply_ignored(BLOCKING, {"destination-not-btrfs"})
    assert finding.severity is Severity.WARNING
    assert "--ignore destination-not-btrfs" in finding.message
    assert finding.cure == BLOCKING[0].cure


@pytest.mark.parametrize(("wrong", "near"), [("disk-ful", "disk-full"), ("bridge", "bridge-"), ("criu", "criu-")])
def test_unknown_code(wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match=near):
        check_ignored(["disk-full", wrong])
    with pytest.raises(UsageError):
        verdict([], [wrong])


def test_no_near_match() -> None:
    with pytest.raises(UsageError) as caught:
        check_ignored(["0"])
    assert "did you mean" not in str(caught.value)


def test_a_code_is_defined_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        define("disk-full", Severity.ERROR, "")


def test_render() -> None:
    assert render(BLOCKING).splitlines() == [
        "error    destination-not-btrfs: /pool on there is on ext4.",
        "         -> Mount a btrfs file system on /pool, or choose another path with --destination-lxcpath.",
    ]
    assert render([]) == ""
    assert painted(render(BLOCKING)).startswith("\033[31;1merror\033[0m    destination-not-btrfs")


def test_render_keeps_control_codes_out() -> None:
    """A process in the container may call itself what it likes."""
    seen = notes(("traced", "x\033]0;owned\a\n"), ("anon-inode", "a\033[2J"))
    text = render(find(SOURCE, DESTINATION, change(CONTAINER, {"tasks.notes": seen})))
    assert "owned" in text and "[2J" in text
    assert "\033" not in text and "\a" not in text


def test_json() -> None:
    assert to_json(BLOCKING) == [{
        "code": "destination-not-btrfs", "severity": "error", "message": "/pool on there is on ext4.",
        "cure": "Mount a btrfs file system on /pool, or choose another path with --destination-lxcpath.",
    }]


def test_document_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "findings.md"
    assert page.read_text() == catalogue(), "python3 -m migrator.preflight.survey > docs/findings.md"
