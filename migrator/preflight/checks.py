# SPDX-License-Identifier: GPL-2.0-or-later
"""Will this container survive the move? A pure function from facts to findings.

    findings = find(source, destination, container, options)

The facts come from `host_facts` and `container_facts`; each check is a small function in the list of its module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from migrator import log
from migrator.preflight import (
    checks_apparmor,
    checks_config,
    checks_mounts,
    checks_network,
    checks_place,
    checks_routing,
    checks_software,
    checks_tasks,
)
from migrator.preflight.case import Case, PlanOptions
from migrator.preflight.container_facts import ContainerFacts
from migrator.preflight.findings import (
    Finding,
    Severity,
    Verdict,
    apply_ignored,
    catalogue,
    ordered,
    render,
    to_json,
    verdict,
    without_memory,
)
from migrator.preflight.host_facts import HostFacts, Query

__all__ = [
    "CHECKS", "Finding", "PlanOptions", "Severity", "Verdict", "apply_ignored", "find", "query", "render", "to_json",
    "verdict",
]

CHECKS = (
    *checks_software.CHECKS, *checks_place.CHECKS, *checks_network.CHECKS, *checks_routing.CHECKS,
    *checks_tasks.CHECKS, *checks_mounts.CHECKS, *checks_config.CHECKS, *checks_apparmor.CHECKS,
)


def find(
    source: HostFacts, destination: HostFacts | None, container: ContainerFacts, options: PlanOptions | None = None
) -> list[Finding]:
    """Everything that stands in the way, errors first. Without a destination only what the source can know."""
    case = Case(source, destination, container, options or PlanOptions())
    found = list(_once(finding for check in CHECKS for finding in check(case)))
    return ordered(found if case.options.memory else without_memory(found))


def _once(findings: Iterable[Finding]) -> Iterable[Finding]:
    return dict.fromkeys(findings)


def query(container: ContainerFacts, lxcpath: str) -> Query:
    """What the destination is to look for on this container's behalf."""
    return Query(lxcpath, checks_mounts.needed_paths(container) + checks_config.needed_paths(container),
                 tuple(include.path for include in container.config.includes))


if __name__ == "__main__":
    log.level = log.Level.QUIET
    sys.stdout.write(catalogue())
