# SPDX-License-Identifier: GPL-2.0-or-later
"""What was asked for on the command line, as records that nothing changes: the parts that several commands share.

Each command's module has a record of its own, made of these by its `options`; what lies below is handed the parts that
it needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from migrator.remote.destination import ConnectOptions
from migrator.transfer import plan

if TYPE_CHECKING:
    from migrator.record.journal import Migration

MAX_DOWNTIME = 120.0  # seconds


@dataclasses.dataclass(frozen=True)
class NamedContainer:
    """A container on this host, as it was named. Both names have been checked."""

    name: str
    given_lxcpath: str | None = None  # -P

    @property
    def lxcpath(self) -> Path:
        """Where it was said to be, or else where this host keeps its containers."""
        from migrator.host import lxc

        return Path(self.given_lxcpath) if self.given_lxcpath else lxc.default_lxcpath()


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """What the container becomes on the destination, as far as that was said."""

    lxcpath: str | None = None
    new_name: str = ""  # checked; "" where it keeps its name
    bridges: tuple[tuple[str, str], ...] = ()  # what a bridge is called here, and there


@dataclasses.dataclass(frozen=True)
class MoveRequest:
    """Which container is to go where, and as what."""

    container: NamedContainer
    destination: str  # as -d has it; "" where `check` was given none
    connect: ConnectOptions = dataclasses.field(default_factory=ConnectOptions)
    target: TargetOptions = dataclasses.field(default_factory=TargetOptions)
    no_memory: bool = False


@dataclasses.dataclass(frozen=True)
class EndOptions:
    """How a migration is brought to its end, whichever: of `finish`, `rollback` and `abort`."""

    container: NamedContainer
    destination: str | None = None  # None for where it was sent; to `finish` on the destination it names the source
    connect: ConnectOptions = dataclasses.field(default_factory=ConnectOptions)
    force: str | None = None  # the migration's id; "" to be told what that means
    machine_is_off: bool = False  # the other one
    dry_run: bool = False


@dataclasses.dataclass(frozen=True)
class StandstillOptions:
    """For how long a container may stand still, and in spite of which findings."""

    max_downtime: float = MAX_DOWNTIME  # seconds
    stop_timeout: float = plan.STOP_TIMEOUT  # seconds that it may take to end, with --no-memory
    ignore: tuple[str, ...] = ()  # codes of findings


@dataclasses.dataclass(frozen=True)
class MoveOptions(StandstillOptions):
    """What `migrate` may do besides. It is recorded, and `resume` goes on with it unless it is told otherwise."""

    max_rounds: int = 5
    bwlimit: int | None = None  # bytes a second
    reconnect: float = 300.0  # seconds
    undefine_source: bool = False

    @classmethod
    def resumed(cls, migration: Migration, given: Mapping[str, Any]) -> Self:
        """Those that are `given` now, else what the migration began with; the defaults where that was by single stages,
        or by an older version.
        """
        found: Mapping[str, Any] = migration.begun.options or {}
        known = {key: found[key] for key in MOVE_OPTIONS if found.get(key) is not None}
        return cls(**known | {"ignore": tuple(known.get("ignore", ()))} | dict(given))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


MOVE_OPTIONS = tuple(field.name for field in dataclasses.fields(MoveOptions))
