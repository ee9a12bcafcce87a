# SPDX-License-Identifier: GPL-2.0-or-later
"""What is different from the made-up facts, in one situation."""

from __future__ import annotations

import dataclasses
from typing import Any

from migrator.config.lxc_settings import Net
from migrator.preflight import survey
from migrator.preflight.checks.case import PlanOptions
from migrator.preflight.facts.apparmor_facts import AppArmor
from migrator.preflight.findings import Finding
from tests.migrator.made_up import BRIDGE, CONTAINER, DESTINATION, LO, NET, SOURCE, change, notes


@dataclasses.dataclass(frozen=True)
class Change:
    """What is different from the made-up facts; keys are fields, `a.b` for those of a record in a field."""

    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    destination: dict[str, Any] = dataclasses.field(default_factory=dict)
    container: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    alone: bool = False  # without a destination

    def find(self) -> list[Finding]:
        return survey.find(
            change(SOURCE, self.source), None if self.alone else change(DESTINATION, self.destination),
            change(CONTAINER, self.container), change(PlanOptions(), self.options),
        )


def task(kind: str, detail: str = "worker", **more: Any) -> Change:
    """A process of the container was seen to have this."""
    return Change(container={"tasks.notes": notes((kind, detail), **more)})


def by_lxc_net(mac: str) -> Change:
    """Both hosts' bridges are as lxc-net makes them, with the hardware address that it gives every one."""
    interfaces = (LO, dataclasses.replace(BRIDGE, mac=mac))
    return Change(source={"interfaces": interfaces}, destination={"interfaces": interfaces})


def confined(label: str, configured: str = "", *, loaded: tuple[str, ...] | None = (), **files: str) -> Change:
    """Its processes have this label; the destination has loaded these profiles, () for no AppArmor at all there."""
    return Change(container={"config.apparmor": configured, "apparmor": AppArmor(label, **files)},
                  destination={"apparmor": loaded != (), "apparmor_profiles": loaded})


def net(**fields: Any) -> tuple[Net, ...]:
    return (dataclasses.replace(NET, **fields),)


def allows(value: str, there: str = "") -> Change:
    """The container may use these devices; `there` is what the destination has under their path."""
    return Change(container={"config.cgroup": (("lxc.cgroup2.devices.allow", value),)},
                  destination={"present": {value.split()[0]: there} if there else {}})
