# SPDX-License-Identifier: GPL-2.0-or-later
"""What a record of the journal tells beyond names and states: in parts by subject, and how these are read and written.

On disk all of it is one flat JSON object, each field under its own name, whatever part has it. Older and newer versions
of migrator read and write the same journal: so none of the fields need be there, and keys that no part has stay as they
are. A field that was not recorded has its default; None where that must be told from every value.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from migrator.base.boot_clock import Moment
from migrator.errors.this_host import JournalBroken
from migrator.host.network import Port

ROOT_CALLER = "ssh"  # who has begun what is not recorded with another caller: root, here or over SSH
NO_PROCESS = -1  # no process has this id


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """How it was begun: which container goes from where to where, and what its user has asked for."""

    destination: str = "HOST"  # on the destination: as its source calls it, for commands to be typed there
    destination_host: str = ""  # on the source: the host name that the destination gave itself
    destination_fingerprint: str = ""  # on the source: of the key of a paired destination
    source_lxcpath: str = ""
    destination_lxcpath: str = ""
    lxcpath_given: bool = False  # commands for this host name its LXC path (-P)
    other_name: str = ""  # of the container on the other host
    origin: str = ""  # see `migrator.copies.origins`
    moves: list[str] | None = None  # on the destination: earlier migrations of the container, the latest last
    mapped_root: int = 0  # on the destination: the user id that the container's root has on its host
    disk: str | None = None  # on the destination: see `lxc_disk.of`
    bridges: dict[str, str] = {}  # on the source: those of --map-bridge, a bridge here to one there
    memory: bool = True  # its memory moves along; not with --no-memory
    one_shot: bool = False  # begun by `migrator migrate`, which takes all stages in one go
    options: dict[str, Any] | None = None  # on the source: those of `migrator migrate`, which `resume` goes on with
    ticket: str = ""  # see `resume_rules.is_known`
    never_began: bool = False  # see `Journal.never_begin`


class Consent(msgspec.Struct, frozen=True, kw_only=True):
    """On the destination: whose migration it is, and what may come along; see `migrator.record.grant`."""

    caller: str = ROOT_CALLER
    hooks: bool | None = None  # what reaches out of the container may come along
    hooks_fix: str = ""  # how that is allowed
    reaching: str | None = None  # what of its configuration reaches out, in words; "" for nothing


class DiskRound(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A round of disk data, of which the destination records the uuid alone. Each field is on record once known."""

    parent: str | None = None  # path of the snapshot that it is an increment to, "" for the whole disk
    uuid: str = ""  # of the source's snapshot, once that is made
    bytes: int | None = None  # of the stream, once all of it is sent
    full: bool | None = None  # the whole disk
    seconds: float | None = None  # that the sending took
    wire_bytes: int | None = None  # that went over the network, compressed


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The disk's data, as sent while the container runs."""

    rounds: list[DiskRound] = []
    config_digest: str = ""  # on the source: of the configuration that has gone with them
    announced: int | None = None  # on the destination: bytes of the whole disk, as its sender says
    on_disk: bool | None = None  # on the destination, once given up: something of it may lie on its disk
    on_disk_uuid: str = ""  # on the destination: of the newest snapshot that is certainly on disk


class Still(msgspec.Struct, frozen=True, kw_only=True):
    """On the source: what was brought to a stand and when, written down before it is frozen or stopped.

    Enough to give it back after a crash. `dad` the destination knows too.
    """

    init: tuple[int, int | None] | None = None  # its first process: id, and its start in ticks since the host's boot
    boot: str | None = None  # the boot id of the host
    pid: int | None = None  # of its first process, which is all that older versions recorded
    cgroup: str = ""
    ports: list[Port] = []
    dad: dict[str, str] = {}  # see `network.hush_dad`
    frozen_at: float | None = None  # seconds since 1970
    stopped_at: float | None = None  # the same of one that goes without its memory
    still_monotonic: float = 0.0  # either by time.monotonic()
    stop_timeout: float = 0.0  # seconds that it may take to end by itself
    stopping: bool = False  # --no-memory has told it to end, and it has not been started again
    held: bool | None = None  # recorded by a rollback: the container still was frozen or stopped

    @property
    def first(self) -> tuple[int, int | None]:
        """As `init`, also of an older version's record; an id that no process has where there is none."""
        return self.init or (NO_PROCESS if self.pid is None else self.pid, None)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """On the source: what create-dump has sent and how long that took; bytes and seconds."""

    increment: int = 0
    memory: int = 0
    wire_bytes: int = 0
    dump_seconds: float | None = None
    stop_seconds: float | None = None  # that it took to end, with --no-memory
    killed: bool | None = None  # it did not end by itself in time
    send_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in msgspec.structs.asdict(self).items() if value is not None}


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What passes from one host to the other at the end: the dump, and the token."""

    attempt: int = 0  # number of the latest dump
    figures: Figures = Figures()
    leave: Moment | None = None  # until when the source's word holds, see `migrator.copies.leave`
    behind: bool = False  # the records of an older journal are being brought up to what the fence tells
    increment_uuid: str = ""  # on the destination: of the snapshot that the last of the disk becomes
    images: str = ""  # on the destination: the folder of the memory images
    why: str = ""  # on the destination: why they lie there
    image_files: list[str] = []  # on the destination: their names


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """On the destination: what has become of it there. `failed` is of either host's last attempt."""

    restored_at: float | None = None  # when it was let run, seconds since 1970
    had_stopped: str | None = None  # boot in which it was let run, of what has stopped before its record; "" for none
    hwaddrs: list[str] = []  # its hardware addresses when it was let run
    given_way: bool = False  # it was let run here, and the source goes on without that
    failed: str = ""  # why


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """What stays of it on this host: the container's own disk, or the copy of it, and snapshots."""

    rootfs_uuid: str = ""  # of its root file system
    changed: int = 0  # see `origins.changed`: when the copy was left
    gone: bool = False  # the container is not in its place any more
    kept: list[str] = []  # names of snapshots that a later migration can start from
    last_copy: list[str] = []  # names of snapshots that may be all that is left of a container


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How it was given up or ended, and who knows of that."""

    ended_by: tuple[str, int, int] | None = None  # boot, id and start of the process
    abandoned: bool | None = None  # on the source: whether the destination has recorded that it will never run it
    forced: bool = False  # without the other host
    forced_at: float | None = None  # seconds since 1970
    forcing: tuple[int, int] | None = None  # id and start of the process that is forcing a rollback
    forgotten: bool = False  # on the destination: nothing tells any more whether the container has left since
    forgotten_there: bool = False  # on the source: the destination has no record of it any more
    given_up_here: bool = False  # on the destination: somebody gave it up there, without the source
    source_knows: bool = False  # on the destination: the source has been told so


class Told(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What an event tells of a step besides its time: it is filled in while the step is taken."""

    reason: str | None = None  # why it has failed, or was done in another way
    bytes: int | None = None  # of the streams
    files: int | None = None  # how many
    wire: int | None = None  # bytes that went over the network
    resumed: int | None = None  # bytes that an earlier attempt had sent
    seconds: float | None = None
    killed: bool | None = None  # it did not end by itself in time
    rootfs_uuid: str | None = None  # of the root file system that was made
    on_disk_uuid: str | None = None  # see `bases.on_disk`

    def to_json(self) -> dict[str, Any]:
        return cast(dict[str, Any], msgspec.to_builtins(self))


Part = TypeVar("Part", bound=msgspec.Struct)
PARTS = (Begun, Consent, Data, Still, Handover, Arrived, Copy, Ending)
KEYS = frozenset(key for part in PARTS for key in part.__struct_fields__)


def read(part: type[Part], keys: dict[str, Any]) -> Part:
    """One part of a record; raises ValueError where a value is not what the part has."""
    return msgspec.convert(keys, part)


def written(given: dict[str, Any]) -> dict[str, Any]:
    """What JSON stores of it. An unknown key, or a value of the wrong type, is a bug in migrator: TypeError."""
    if unknown := given.keys() - KEYS:
        raise TypeError(f"no record has {', '.join(sorted(unknown))}")
    try:
        for part in PARTS:
            read(part, given)
    except msgspec.ValidationError as error:
        raise TypeError(f"not to be recorded: {error}") from error
    return cast(dict[str, Any], msgspec.to_builtins(given))


class Recorded:
    """A record, part by part. A part is read when it is first used: a damaged one leaves the others usable.

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
        """Use these values from now on; the next record takes them to disk."""
        self._know(self._keys | written(keys))

    def given(self) -> dict[str, Any]:
        """All of it that this version knows, as it can be recorded of another migration."""
        return {key: value for key, value in self._keys.items() if key in KEYS}

    def _told(self, text: str) -> tuple[dict[str, Any], Told]:
        """What an event of it has, as JSON and read."""
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
        """What is on disk."""
        try:
            self._know(dict(json.loads(text)))
        except (TypeError, ValueError) as error:
            raise JournalBroken(path=self._path, reason=error) from error

    def _know(self, keys: dict[str, Any]) -> None:
        self._keys, self._parts = keys, {}
