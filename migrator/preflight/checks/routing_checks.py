# SPDX-License-Identifier: GPL-2.0-or-later
"""What CRIU silently leaves out of the container's network, so that it no longer works after a restore."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.host.net_state import NAMESPACES_MAX
from migrator.preflight.checks.case import Case, Check, listed
from migrator.preflight.findings import Finding, Severity, define

MULTICAST = define("multicast-groups", Severity.WARNING, """CRIU does not save which multicast groups the sockets of a
    process have joined: after the restore it receives nothing from them until it joins again.""", memory_only=True)
ROUTING = define("routing-not-saved", Severity.WARNING, """CRIU saves only the routes of the main table, only the rules
    for IPv4, and no queueing disciplines (criu/net.c).""", memory_only=True)
ENCRYPTED = define("kernel-encryption", Severity.ERROR, """CRIU does not support TLS in the kernel (TCP_ULP), nor IPsec
    (ip-xfrm(8)): what should be encrypted would be sent in the clear. Each network namespace that has a process is
    searched, up to 64 of them; TLS is looked for once more when everything is frozen.""", memory_only=True)


def multicast(case: Case) -> Iterator[Finding]:
    groups = case.container.unsaved.groups
    if groups:
        yield MULTICAST.found(f"{case.container.name} listens to {listed(list(groups))}, and would not after the move.",
                              "Restart what listens there after the move, or move it with --no-memory.")


def routing(case: Case) -> Iterator[Finding]:
    unsaved = case.container.unsaved
    lost = [*(f"the routes of the table {table}" for table in unsaved.tables),
            *(f"the IPv6 rule {rule}" for rule in unsaved.rules), *(f"the qdisc {queue}" for queue in unsaved.queues)]
    if lost:
        yield ROUTING.found(f"{case.container.name} would lack {listed(lost)} after the move.",
                            "Set it again in the container after the move, or move it with --no-memory.")


def encrypted(case: Case) -> Iterator[Finding]:
    if case.container.encrypted:
        yield ENCRYPTED.found(
            f"{listed(list(case.container.encrypted))} of {case.container.name} is done by the kernel.",
            "Have programs do the encryption (OpenSSL: no Options KTLS), or move it with --no-memory.")
    if case.container.networks > NAMESPACES_MAX:
        yield ENCRYPTED.found(
            f"{case.container.name} has {case.container.networks} network namespaces, more than are searched for "
            f"what the kernel encrypts ({NAMESPACES_MAX}).",
            f"End what created them, or move it with --no-memory. If nothing is encrypted: --ignore {ENCRYPTED.name}")


CHECKS: tuple[Check, ...] = (multicast, routing, encrypted)
