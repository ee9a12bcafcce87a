# SPDX-License-Identifier: GPL-2.0-or-later
"""What every check of the preflight is given, and wording that several of them share."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterator, Mapping

from migrator.preflight.facts.container_facts import ContainerFacts
from migrator.preflight.facts.host_facts import HostFacts
from migrator.preflight.facts.task_facts import Note
from migrator.preflight.findings import Finding, Severity

NAMES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What the user's options and earlier migrations add to the facts."""

    bridges: Mapping[str, str] = dataclasses.field(default_factory=dict)  # --map-bridge: here -> there
    name: str = ""  # the container's name on the destination; "" for the same one
    known_copy: bool = False  # the destination's container of that name is an earlier stage of this one
    disk_needed: int | None = None  # bytes to send to the destination's disk; None: all of it; 0: unknown
    tunnel: tuple[str, ...] = ()  # what is wrong with this host's WireGuard, if a tunnel is used
    answers: Mapping[str, str] = dataclasses.field(default_factory=dict)  # who answers, see `network_checks.to_ask`
    clock_offset: float | None = None  # seconds that the destination's clock is ahead; None: take it from the facts
    memory: bool = True  # False with --no-memory: it is stopped here and started there


@dataclasses.dataclass(frozen=True)
class Case:
    source: HostFacts
    destination: HostFacts | None
    container: ContainerFacts
    options: PlanOptions

    @property
    def hosts(self) -> list[HostFacts]:
        return [self.source, self.destination] if self.destination else [self.source]

    @property
    def running(self) -> bool:
        return self.container.init_pid > 0

    @property
    def hinders_start(self) -> Severity:
        """How serious it is that the container cannot be started on the destination."""
        return Severity.WARNING if self.options.memory else Severity.ERROR

    @property
    def hinders_restore(self) -> Severity:
        """How serious it is that it cannot be restored as it was; if it is restarted, it will merely differ."""
        return Severity.ERROR if self.options.memory else Severity.WARNING

    @property
    def config_file(self) -> str:
        return f"{self.container.lxcpath}/{self.container.name}/config"

    def inside(self, *command: str) -> str:
        """A command to be run in the container, so that it cannot affect the host where it is typed, or another one.

        It runs as root there: on a path only if that `is_fixed`.
        """
        return shlex.join(["lxc-attach", "-P", str(self.container.lxcpath), "-n", self.container.name, "--", *command])

    @property
    def prepare(self) -> str:
        """The command that prepares the container, typed on the source."""
        container = self.container
        return shlex.join(["migrator", "prepare-guest", container.name, "-P", str(container.lxcpath), "--yes"])

    def restarted(self, note: Note) -> str:
        """The unit by whose restart `prepare-guest` does away with what is noted; "" where it cannot."""
        return note.unit if self.container.init_name == "systemd" else ""

    def is_fixed(self, path: str) -> bool:
        """Whether no user of the container can make a path in there lead root elsewhere (`fixed_paths`)."""
        return path in self._fixed

    @functools.cached_property
    def _fixed(self) -> frozenset[str]:
        """A container's root can mount 100,000 things, and each is looked for."""
        return frozenset(self.container.fixed)

    def notes(self, kind: str) -> list[Note]:
        return [note for note in self.container.tasks.notes if note.kind == kind]


# Why what would stand in the way does not.
LIVE = "migrate and create-dump take care of that by themselves, right before the freeze."

Check = Callable[[Case], Iterator[Finding]]


def size(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def holder(note: Note) -> str:
    """The process that a note is about, its unit, and how many others were seen with the same."""
    of = f" of {note.unit}" if note.unit else ""
    more = f", and {note.count - 1} more" if note.count > 1 else ""
    return f"{note.task} (process {note.pid}{of}{more})"


def listed(words: list[str]) -> str:
    """The first few words, and how many were left out."""
    shown = ", ".join(words[:NAMES_SHOWN])
    return f"{shown} and {len(words) - NAMES_SHOWN} more" if len(words) > NAMES_SHOWN else shown
