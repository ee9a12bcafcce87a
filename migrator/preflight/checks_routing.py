# SPDX-License-Identifier: GPL-2.0-or-later
"""What the container's network has that CRIU leaves out without a word, so that it works no longer after a restore."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.preflight.case import Case, Check, listed
from migrator.preflight.findings import Finding, Severity, define

MULTICAST = define("multicast-groups", Severity.WARNING, """CRIU does not save which multicast groups the sockets of a
    process have joined: after the restore it hears nothing of them, until it joins them anew.""", memory_only=True)
ROUTING = define("routing-not-saved", Severity.WARNING, """CRIU saves the routes of the main table alone, the rules for
    IPv4 alone, and no queueing disciplines (criu/net.c).""", memory_only=True)
TLS = define("kernel-tls", Severity.ERROR, """CRIU does not know of TLS in the kernel (TCP_ULP): a restored socket would
    send in clear what its process means to be encrypted.""", memory_only=True)


def multicast(case: Case) -> Iterator[Finding]:
    groups = case.container.unsaved.groups
    if groups:
        yield MULTICAST.found(f"{case.container.name} listens to {listed(list(groups))}, and would not after the move.",
                              "Start anew then what listens there, or move it with --no-memory.")


def routing(case: Case) -> Iterator[Finding]:
    unsaved = case.container.unsaved
    lost = [*(f"the routes of the table {table}" for table in unsaved.tables),
            *(f"the IPv6 rule {rule}" for rule in unsaved.rules), *(f"the qdisc {queue}" for queue in unsaved.queues)]
    if lost:
        yield ROUTING.found(f"{case.container.name} would lack {listed(lost)} after the move.",
                            "Set it again in the container then, or move it with --no-memory.")


def tls(case: Case) -> Iterator[Finding]:
    count = case.container.unsaved.tls
    if count:
        yield TLS.found(f"The kernel encrypts {count} connections of {case.container.name}.",
                        "Have what serves them do that itself (OpenSSL: no Options KTLS), or move it with --no-memory.")


CHECKS: tuple[Check, ...] = (multicast, routing, tls)
