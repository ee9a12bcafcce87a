# SPDX-License-Identifier: GPL-2.0-or-later
"""Will this container survive the move? A pure function from facts to findings.

    findings = find(source, destination, container, options)

The facts come from `host_facts` and `container_facts`; each check is a small function in the list of its module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from migrator.base import log
from migrator.preflight.checks import (
    apparmor_checks,
    config_checks,
    mount_checks,
    network_checks,
    place_checks,
    routing_checks,
    software_checks,
    task_checks,
)
from migrator.preflight.checks.case import Case, PlanOptions
from migrator.preflight.facts.container_facts import ContainerFacts
from migrator.preflight.facts.host_facts import HostFacts, Query
from migrator.preflight.findings import (
    Finding,
    catalogue,
    ordered,
    without_memory,
)

CHECKS = (
    *software_checks.CHECKS, *place_checks.CHECKS, *network_checks.CHECKS, *routing_checks.CHECKS,
    *task_checks.CHECKS, *mount_checks.CHECKS, *config_checks.CHECKS, *apparmor_checks.CHECKS,
)


def find(
    source: HostFacts, destination: HostFacts | None, container: ContainerFacts, options: PlanOptions | None = None
) -> list[Finding]:
    """Everything that stands in the way, errors first. Without a destination, only what the source can know."""
    case = Case(source, destination, container, options or PlanOptions())
    found = list(_once(finding for check in CHECKS for finding in check(case)))
    return ordered(found if case.options.memory else without_memory(found))


def _once(findings: Iterable[Finding]) -> Iterable[Finding]:
    return dict.fromkeys(findings)


def query(container: ContainerFacts, lxcpath: str) -> Query:
    """What the destination is to look for on behalf of this container."""
    return Query(lxcpath, mount_checks.needed_paths(container) + config_checks.needed_paths(container),
                 tuple(include.path for include in container.config.includes))


if __name__ == "__main__":
    log.level = log.Level.QUIET
    sys.stdout.write(catalogue())
