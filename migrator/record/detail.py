# SPDX-License-Identifier: GPL-2.0-or-later
"""What a journal record holds besides names and states: its parts by subject, and how they are read and written.

On disk it is all one flat JSON object, with each field under its own name, whichever part it belongs to. Older and
newer versions of migrator read and write the same journal, so any field may be absent, and keys that belong to no part
are preserved. A field that was not recorded has its default, which is None where that must be distinguishable from
every value.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType

from migrator.base.boot_clock import Moment
from migrator.base.process_id import Process
from migrator.errors.this_host import JournalBroken
from migrator.host.network import Port

ROOT_CALLER = "ssh"  # the caller of migrations recorded without one: root, here or over SSH
NO_PROCESS = -1  # no process has this pid


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `migrator migrate`. UNSET if an older version has not recorded it, or the move began otherwise."""

    max_downtime: float | UnsetType | None = UNSET  # seconds
    stop_timeout: float | UnsetType | None = UNSET  # seconds
    ignore: tuple[str, ...] | UnsetType | None = UNSET  # codes of findings
    max_rounds: int | UnsetType | None = UNSET
    bwlimit: int | UnsetType | None = UNSET  # bytes a second; None for no limit
    reconnect: float | UnsetType | None = UNSET  # seconds
    undefine_source: bool | UnsetType | None = UNSET

    def given(self) -> dict[str, Any]:
        """By their names, without those that have no value."""
        return {key: value for key, value in msgspec.structs.asdict(self).items() if value not in (None, UNSET)}


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """How it was begun: which container goes from where to where, and which options were given."""

    destination: str = "HOST"  # on the destination: the name its source uses for it, for commands to be typed there
    destination_host: str = ""  # on the source: the host name that the destination reports
    destination_fingerprint: str = ""  # on the source: the fingerprint of a paired destination's key
    source_lxcpath: str = ""
    destination_lxcpath: str = ""
    lxcpath_given: bool = False  # commands for this host spell out its LXC path (-P)
    other_name: str = ""  # the container's name on the other host
    origin: str = ""  # see `migrator.copies.origins`
    moves: list[str] | None = None  # on the destination: earlier migrations of the container, oldest first
    mapped_root: int = 0  # on the destination: the uid that the container's root has on its host
    disk: str | None = None  # on the destination: see `lxc_disk.of`
    bridges: dict[str, str] = {}  # on the source: --map-bridge, from a bridge here to one there
    memory: bool = True  # its memory moves along; False with --no-memory
    one_shot: bool = False  # begun by `migrator migrate`, which runs all stages in one go
    # On the source: options of `migrator migrate`, with which `resume` carries on.
    options: Options | None = None
    ticket: str = ""  # see `resume_rules.is_known`
    never_began: bool = False  # see `Journal.never_begin`


class Consent(msgspec.Struct, frozen=True, kw_only=True):
    """On the destination: whose migration it is and what may come along; see `migrator.record.grant`."""

    caller: str = ROOT_CALLER
    hooks: bool | None = None  # settings that reach out of the container may come along
    hooks_fix: str = ""  # how to allow that
    reaching: str | None = None  # which of its settings reach out, in words; "" for none


class DiskRound(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A round of disk data; of one, the destination records only the uuid. Each field is recorded once it is known."""

    parent: str | None = None  # path of the snapshot that it is an increment on; "" for the whole disk
    uuid: str = ""  # of the source's snapshot, once that exists
    bytes: int | None = None  # of the stream, once all of it has been sent
    full: bool | None = None  # it is the whole disk
    seconds: float | None = None  # that sending took
    wire_bytes: int | None = None  # sent over the network, after compression


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The disk's data, sent while the container runs."""

    rounds: list[DiskRound] = []
    config_digest: str = ""  # on the source: of the configuration sent along
    announced: int | None = None  # on the destination: size of the whole disk in bytes, as announced by its sender
    on_disk: bool | None = None  # on the destination, once given up: some of it may be on disk
    on_disk_uuid: str = ""  # on the destination: of the newest snapshot that is certainly on disk


class Still(msgspec.Struct, frozen=True, kw_only=True):
    """On the source: what was frozen or stopped, and when; recorded before that is done.

    It is enough to give the container back after a crash. The destination knows `dad` as well.
    """

    init: tuple[int, int | None] | None = None  # its PID 1: pid, and start in clock ticks since boot
    boot: str | None = None  # the host's boot id
    pid: int | None = None  # of its PID 1; all that older versions recorded
    cgroup: str = ""
    ports: list[Port] = []
    dad: dict[str, str] = {}  # see `network.hush_dad`
    frozen_at: float | None = None  # Unix time
    stopped_at: float | None = None  # Unix time, for a container that moves without its memory
    still_monotonic: float = 0.0  # either of these by time.monotonic()
    stop_timeout: float = 0.0  # seconds that it may take to shut down by itself
    stopping: bool = False  # --no-memory has told it to shut down and it has not been started again
    held: bool | None = None  # recorded by a rollback: the container was still frozen or stopped

    @property
    def first(self) -> tuple[int, int | None]:
        """As `init`, also for the record of an older version; `NO_PROCESS` as the pid if there is none."""
        return self.init or (NO_PROCESS if self.pid is None else self.pid, None)


class BeforeStill(msgspec.Struct, frozen=True, kw_only=True):
    """On the source: what is recorded of a running container right before it is frozen or stopped.

    The fields are some of those of `Still` and `Copy`; what is UNSET stays as it was on record.
    """

    init: Process | None  # its PID 1, if LXC knows of one
    boot: str
    cgroup: str  # "" if that could not be found out
    rootfs_uuid: str | UnsetType = UNSET
    frozen_at: float | UnsetType = UNSET
    pid: int | UnsetType = UNSET
    ports: list[Port] | UnsetType = UNSET
    stopped_at: float | UnsetType = UNSET
    stop_timeout: float | UnsetType = UNSET
    stopping: bool | UnsetType = UNSET

    def to_json(self) -> dict[str, Any]:
        return cast(dict[str, Any], msgspec.to_builtins(self))


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """On the source: what create-dump sent, and how long that took; bytes and seconds."""

    increment: int = 0
    memory: int = 0
    wire_bytes: int = 0
    dump_seconds: float | None = None
    stop_seconds: float | None = None  # that shutting down took, with --no-memory
    killed: bool | None = None  # it did not shut down in time
    send_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in msgspec.structs.asdict(self).items() if value is not None}


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What passes from one host to the other in the end: the dump and the token."""

    attempt: int = 0  # number of the latest dump
    figures: Figures = Figures()
    leave: Moment | None = None  # when the source's word runs out, see `migrator.copies.leave`
    behind: bool = False  # an older journal's records are being brought up to what the fence says
    increment_uuid: str = ""  # on the destination: of the snapshot that the final increment becomes
    images: str = ""  # on the destination: directory of the memory images
    why: str = ""  # on the destination: why they are there
    image_files: list[str] = []  # on the destination: their names


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """On the destination: what has become of the container there. `failed` is about either host's last attempt."""

    restored_at: float | None = None  # when it was let run, Unix time
    # The boot in which it was let run, if it stopped before that was recorded; "" for none.
    had_stopped: str | None = None
    hwaddrs: list[str] = []  # its MAC addresses when it was let run
    given_way: bool = False  # it was let run here, and the source goes on without that copy
    failed: str = ""  # why


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """What stays on this host: the container's own disk or the copy of it, and snapshots."""

    rootfs_uuid: str = ""  # of its root file system
    changed: int = 0  # see `written_since.changed`: when the copy was left
    gone: bool = False  # the container is no longer in its place
    kept: list[str] = []  # names of snapshots that a later migration can start from
    last_copy: list[str] = []  # names of snapshots that may be all that is left of a container


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How the migration was given up or ended, and which host knows."""

    ended_by: tuple[str, int, int] | None = None  # boot, pid and start of the process
    abandoned: bool | None = None  # on the source: whether the destination has recorded that it will never run it
    forced: bool = False  # without the other host
    forced_at: float | None = None  # Unix time
    forcing: Process | None = None  # the one that is forcing a rollback
    forgotten: bool = False  # on the destination: nothing tells any more whether the container has left since
    forgotten_there: bool = False  # on the source: the destination no longer has a record of it
    given_up_here: bool = False  # on the destination: given up there by an operator, without the source
    source_knows: bool = False  # on the destination: the source has been told so


class Told(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What an event says about a step besides its time; filled in while the step runs."""

    reason: str | None = None  # why it failed or was done differently
    bytes: int | None = None  # of the streams
    files: int | None = None  # how many
    wire: int | None = None  # bytes sent over the network
    resumed: int | None = None  # bytes that an earlier attempt had sent
    seconds: float | None = None
    killed: bool | None = None  # it did not shut down in time
    rootfs_uuid: str | None = None  # of the root file system that was made
    on_disk_uuid: str | None = None  # see `bases.on_disk`

    def to_json(self) -> dict[str, Any]:
        return cast(dict[str, Any], msgspec.to_builtins(self))


Part = TypeVar("Part", bound=msgspec.Struct)
PARTS = (Begun, Consent, Data, Still, Handover, Arrived, Copy, Ending)
KEYS = frozenset(key for part in PARTS for key in part.__struct_fields__)


def read(part: type[Part], keys: dict[str, Any]) -> Part:
    """One part of a record; raises ValueError if a value does not have the part's type."""
    return msgspec.convert(keys, part)


def written(given: dict[str, Any]) -> dict[str, Any]:
    """What JSON stores of it. An unknown key or a value of the wrong type is a bug in migrator: TypeError."""
    if unknown := given.keys() - KEYS:
        raise TypeError(f"no record has {', '.join(sorted(unknown))}")
    try:
        for part in PARTS:
            read(part, given)
    except msgspec.ValidationError as error:
        raise TypeError(f"not to be recorded: {error}") from error
    return cast(dict[str, Any], msgspec.to_builtins(given))


class Recorded:
    """A record, part by part. A part is read on first use, so a damaged one leaves the others usable.

    Reading a part raises JournalBroken if a value has the wrong type.
    """

    def __init__(self, text: str, path: Path) -> None:
        self._path = path
        self._keys: dict[str, Any] = {}
        self._parts: dict[type[msgspec.Struct], msgspec.Struct] = {}
        self._take_over(text)

    @property
    def begun(self) -> Begun:
        return self._part(Begun)

    @property
    def consent(self) -> Consent:
        return self._part(Consent)

    @property
    def data(self) -> Data:
        return self._part(Data)

    @property
    def still(self) -> Still:
        return self._part(Still)

    @property
    def handover(self) -> Handover:
        return self._part(Handover)

    @property
    def arrived(self) -> Arrived:
        return self._part(Arrived)

    @property
    def copy(self) -> Copy:
        return self._part(Copy)

    @property
    def ending(self) -> Ending:
        return self._part(Ending)

    def learn(self, **keys: Any) -> None:
        """Use these values from now on; the next record writes them to disk."""
        self._know(self._keys | written(keys))

    def given(self) -> dict[str, Any]:
        """All of it that this version knows, in a form that can be recorded for another migration."""
        return {key: value for key, value in self._keys.items() if key in KEYS}

    def _told(self, text: str) -> tuple[dict[str, Any], Told]:
        """The detail of an event of this migration, as JSON and parsed."""
        try:
            keys = json.loads(text)
            return keys, read(Told, keys)
        except ValueError as error:
            raise JournalBroken(path=self._path, reason=error) from error

    def _part(self, part: type[Part]) -> Part:
        if part not in self._parts:
            try:
                self._parts[part] = read(part, self._keys)
            except msgspec.ValidationError as error:
                raise JournalBroken(path=self._path, reason=error) from error
        return cast(Part, self._parts[part])

    def _take_over(self, text: str) -> None:
        """Load what is on disk."""
        try:
            self._know(dict(json.loads(text)))
        except (TypeError, ValueError) as error:
            raise JournalBroken(path=self._path, reason=error) from error

    def _know(self, keys: dict[str, Any]) -> None:
        self._keys, self._parts = keys, {}
