# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of the fault matrix: every record that a migration makes in the journals, and how it is held there."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from harness.rig import DESTINATION, LXC_HOSTS, Rig
from tests.rig import fault_guests

# One round: in a second one the same steps come again.
MIGRATE = ("migrator", "migrate", "--max-rounds", "1", "-d", DESTINATION, "--json")
HOOK = Path(__file__).with_name("pausing.py")
PAUSES = "/run/migrator-pause"


@dataclasses.dataclass(frozen=True)
class Step:
    """A record of a journal: the `number`th with this name and phase in a migration."""

    role: str
    step: str
    phase: str
    number: int
    state: str  # that the record tells; empty for the begin and the end of a step within a state
    first: bool = False  # made along with the migration itself: nothing can be held before it

    @property
    def host(self) -> str:
        return LXC_HOSTS[self.role == "destination"]

    def __str__(self) -> str:
        number = f" ({self.number})" if self.number > 1 else ""
        if self.state:
            return f"{self.step}{number}: {self.state}"
        return f"{self.step}{number} {'begins' if self.phase == 'begin' else self.phase}"


def steps_of(rig: Rig) -> list[Step]:
    """Every record that both journals have of a migration that nothing happens to, first the source's."""
    name = "m00"
    fault_guests.make(rig, {name: "10.0.3.100"})
    rig.exec(LXC_HOSTS[0], *MIGRATE, name)
    found: list[Step] = []
    for host, role in zip(LXC_HOSTS, ("source", "destination"), strict=True):
        seen: dict[tuple[str, str], int] = {}
        for event in rig.status(host, name)["events"]:
            key = (event["step"], event["phase"])
            seen[key] = seen.get(key, 0) + 1
            first = not any(step.role == role for step in found)
            found.append(Step(role, *key, seen[key], event.get("state", ""), first))
    assert not rig.purge()
    return found


@contextlib.contextmanager
def hooked(rig: Rig) -> Iterator[None]:
    """Both hosts' migrators can be held; the client's kernel asks often, and for long, for a guest that is away."""
    site = "/opt/migrator/venv/lib/python3*/site-packages"
    sysctls = {"net.ipv4.tcp_rto_max_ms": "2000", "net.ipv4.tcp_retries2": "250"}
    before = {key: rig.exec("client", "sysctl", "-n", key).stdout.strip() for key in sysctls}
    try:
        for key, value in sysctls.items():
            rig.exec("client", "sysctl", "-q", f"{key}={value}")
        for host in LXC_HOSTS:
            rig.exec(host, "mkdir", "-p", PAUSES)
            rig.exec(host, "sh", "-c", f"cd {site} && cat >rig_pausing.py && echo import rig_pausing >rig_pausing.pth",
                     input=HOOK.read_text())
        yield
    finally:
        for host in LXC_HOSTS:
            rig.sh(host, f"rm -rf {site}/rig_pausing.* {PAUSES}")
        for key, value in before.items():
            rig.exec("client", "sysctl", "-q", f"{key}={value}")
