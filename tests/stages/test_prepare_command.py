# SPDX-License-Identifier: GPL-2.0-or-later
"""`check` names the command that makes a container movable, and no other."""

from __future__ import annotations

import pytest

from migrator.preflight.findings import Finding, Severity
from stages.steps import examine
from stages.steps.options import MoveRequest, NamedContainer

ERROR, INFO = Severity.ERROR, Severity.INFO


def finding(severity: Severity, unit: str = "", *, denied: bool = False) -> Finding:
    return Finding("nested-namespace", severity, "message", "cure", unit, denied)


@pytest.mark.parametrize(("found", "there"), [
    ([finding(ERROR, "a.service"), finding(ERROR, "b.service"), finding(INFO)], True),
    ([finding(ERROR, "a.service"), finding(ERROR)], False),  # one would stay
    ([finding(ERROR)], False),
    ([finding(INFO, "a.service")], False),
    ([], False),
])
def test_only_where_it_is_enough(found: list[Finding], there: bool) -> None:
    command = examine.prepare_command(MoveRequest(NamedContainer("web", "/srv/lxc"), "beta"), found)
    assert command == ("migrator prepare-guest web -P /srv/lxc --yes" if there else "")
    assert examine.prepare_command(MoveRequest(NamedContainer("web"), "beta"), found) == (
        "migrator prepare-guest web --yes" if there else "")


@pytest.mark.parametrize(("found", "there"), [
    ([finding(ERROR, denied=True)], True),
    ([finding(ERROR, denied=True), finding(ERROR, "a.service")], True),
    ([finding(ERROR, denied=True), finding(ERROR)], False),
])
def test_for_good_where_it_is_denied_from_the_next_start_on(found: list[Finding], there: bool) -> None:
    command = examine.prepare_command(MoveRequest(NamedContainer("web"), "beta"), found)
    assert command == ("migrator prepare-guest web --yes --for-good" if there else "")


def test_how_it_is_restarted() -> None:
    assert examine.restart_command(NamedContainer("web", "/srv/a b")) == (
        "lxc-stop -P '/srv/a b' -n web && lxc-start -P '/srv/a b' -n web")
    assert examine.restart_command(NamedContainer("web")) == "lxc-stop -n web && lxc-start -n web"
