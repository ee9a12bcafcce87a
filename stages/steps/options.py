# SPDX-License-Identifier: GPL-2.0-or-later
"""What was asked for on the command line, as immutable records: the parts that several commands share.

Each command's module has a record of its own, made of these by its `options`; functions below are passed only the parts
that they need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from migrator.record.detail import Options
from migrator.remote.destination import ConnectOptions
from migrator.transfer import plan

if TYPE_CHECKING:
    from migrator.record.journal import Migration

MAX_DOWNTIME = 120.0  # seconds


@dataclasses.dataclass(frozen=True)
class NamedContainer:
    """A container on this host, as named on the command line. The name and the LXC path have been checked."""

    name: str
    given_lxcpath: str | None = None  # -P

    @property
    def lxcpath(self) -> Path:
        """The LXC path that was given, or else this host's default."""
        from migrator.host import lxc

        return Path(self.given_lxcpath) if self.given_lxcpath else lxc.default_lxcpath()


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """What the container becomes on the destination, as far as that was given."""

    lxcpath: str | None = None
    new_name: str = ""  # checked; "" to keep its name
    bridges: tuple[tuple[str, str], ...] = ()  # a bridge's name here, and there


@dataclasses.dataclass(frozen=True)
class MoveRequest:
    """Which container is to go where, and as what."""

    container: NamedContainer
    destination: str  # as given with -d; "" if `check` was given none
    connect: ConnectOptions = dataclasses.field(default_factory=ConnectOptions)
    target: TargetOptions = dataclasses.field(default_factory=TargetOptions)
    no_memory: bool = False


@dataclasses.dataclass(frozen=True)
class EndOptions:
    """How to end a migration one way or the other: for `finish`, `rollback` and `abort`."""

    container: NamedContainer
    destination: str | None = None  # None for where it was sent; for `finish` on the destination, the source
    connect: ConnectOptions = dataclasses.field(default_factory=ConnectOptions)
    force: str | None = None  # the migration's id; "" to be told what forcing means
    machine_is_off: bool = False  # the other host's machine
    dry_run: bool = False


@dataclasses.dataclass(frozen=True)
class StandstillOptions:
    """For how long a container may be frozen or stopped, and despite which findings."""

    max_downtime: float = MAX_DOWNTIME  # seconds
    stop_timeout: float = plan.STOP_TIMEOUT  # seconds that it may take to shut down, with --no-memory
    ignore: tuple[str, ...] = ()  # codes of findings


@dataclasses.dataclass(frozen=True)
class MoveOptions(StandstillOptions):
    """Further options of `migrate`. They are recorded, and `resume` uses them again unless told otherwise."""

    max_rounds: int = 5
    bwlimit: int | None = None  # bytes per second
    reconnect: float = 300.0  # seconds
    undefine_source: bool = False

    @classmethod
    def resumed(cls, migration: Migration, given: Mapping[str, Any]) -> Self:
        """The options `given` now, else those it began with; defaults if single stages or an older version began it."""
        found = migration.begun.options
        return cls(**(found.given() if found else {}) | dict(given))

    def record(self) -> Options:
        """For the journal."""
        return Options(**dataclasses.asdict(self))


MOVE_OPTIONS = tuple(field.name for field in dataclasses.fields(MoveOptions))
