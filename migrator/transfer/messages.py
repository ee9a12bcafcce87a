# SPDX-License-Identifier: GPL-2.0-or-later
"""What two migrators ask each other, and what they answer: each message a type. docs/protocol.md has the same list.

A field with a default is one that older versions do not send. If its absence means something other than an empty value,
the default is UNSET, and it is not sent in that case.

The preflight's question for facts is in `migrator.preflight.facts.facts_message`, because it consists of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic

from msgspec import UNSET, Meta, UnsetType

from migrator.base import names
from migrator.config import config_reader
from migrator.errors.connection import ProtocolError
from migrator.record.states import State
from migrator.transfer.segments import check_name
from migrator.transfer.wire_codec import A, Answer, Message, Request, decoded

FILES_MAX = 10_000  # in one transfer
LARGEST = (1 << 63) - 1  # bytes: no file or file system can be larger (loff_t)

Seconds = Annotated[float, Meta(ge=0, le=1e300)]  # not NaN, and not for ever
Size = Annotated[int, Meta(ge=0, le=LARGEST)]  # bytes


# --- What all answers have in common, and nobody reads ---


class Done(Answer, frozen=True, kw_only=True):
    state: str = ""  # the current state of the migration


# --- Before a migration ---


class Measured(Answer, frozen=True, kw_only=True):
    pass


class Measure(Request[Measured], frozen=True, kw_only=True):
    op = "measure"
    data: str = ""  # of a size whose transfer is timed


class LxcPath(Answer, frozen=True, kw_only=True):
    lxcpath: str

    def __post_init__(self) -> None:
        names.lxcpath(self.lxcpath)


class AskLxcPath(Request[LxcPath], frozen=True, kw_only=True):
    op = "lxcpath"
    lxcpath: str | None = None  # the one wanted


class Subvolumes(Answer, frozen=True, kw_only=True):
    subvolumes: tuple[str, ...]  # uuids of what an increment can start from


class AskSubvolumes(Request[Subvolumes], frozen=True, kw_only=True):
    op = "subvolumes"
    name: str
    lxcpath: str | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        names.container_name(self.name)
        check_origin(self.origin)


def check_origin(origin: str) -> None:
    """Raise InvalidName for anything but "" and a migration's id."""
    if origin:
        names.migration_id(origin)


# --- The disk ---


class OfMigration(Request[A], Generic[A], frozen=True, kw_only=True):
    id: str

    def __post_init__(self) -> None:
        names.migration_id(self.id)


class Begun(Answer, frozen=True, kw_only=True):
    state: str = ""
    disk_bytes: Size
    subvolumes: tuple[str, ...]
    ticket: str = ""  # see `resume_rules.is_known`


class Begin(OfMigration[Begun], frozen=True, kw_only=True):
    op = "begin"
    name: str  # on the destination
    source_name: str = ""
    origin: str = ""
    moves: tuple[str, ...] | UnsetType = UNSET  # see `origins.moves`
    lxcpath: str | None = None
    lxcpath_given: bool
    source_host: str
    source_lxcpath: str
    destination: str  # as it was typed on the source
    config: Annotated[str, Meta(max_length=config_reader.SIZE_LIMIT)]
    includes: Annotated[dict[str, str], Meta(max_length=config_reader.INCLUDE_LIMIT)]
    bridges: dict[str, str]
    disk_bytes: Size
    mapped_root: int
    one_shot: bool = False
    memory: bool = True
    held: tuple[str, ...] = ()
    usable: tuple[str, ...] | UnsetType = UNSET  # which of those held; older versions start from any

    def __post_init__(self) -> None:
        super().__post_init__()
        names.container_name(self.name)
        if self.source_name:
            names.container_name(self.source_name)
        check_origin(self.origin)
        for move in self.moves or ():
            names.migration_id(move)
        names.lxcpath(self.source_lxcpath)
        for bridge in (*self.bridges, *self.bridges.values()):
            names.interface_name(bridge)
        for uuid in (*self.held, *(self.usable or ())):
            names.uuid(uuid)


class RoundReceived(OfMigration[Done], frozen=True, kw_only=True):
    op = "received"
    round: Annotated[int, Meta(ge=1)]
    uuid: str

    def __post_init__(self) -> None:
        super().__post_init__()
        names.uuid(self.uuid)


class Import(OfMigration[Done], frozen=True, kw_only=True):
    op = "import"


class MigrationState(Answer, frozen=True, kw_only=True):
    state: State | None  # None if it is not known
    owner: str | None = None
    ticket: str = ""
    images: bool = True  # whether what a restore needs is still there


class AskState(OfMigration[MigrationState], frozen=True, kw_only=True):
    op = "state"


# --- The token ---


class DumpBegin(OfMigration[Done], frozen=True, kw_only=True):
    op = "dump-begin"
    attempt: int
    memory: bool = True


class DumpDrop(OfMigration[Done], frozen=True, kw_only=True):
    op = "dump-drop"
    attempt: int


class Restored(Answer, frozen=True, kw_only=True):
    state: str = ""
    restored_at: float | UnsetType = UNSET  # both only after a restore there
    running_for: float | UnsetType = UNSET  # seconds


class Own(OfMigration[Restored], frozen=True, kw_only=True):
    op = "own"
    attempt: int
    dad: Mapping[str, str | int]  # see `network.bring_back_dad`
    restore_within: Seconds | UnsetType = UNSET


class Restore(OfMigration[Restored], frozen=True, kw_only=True):
    op = "restore"
    limit: Seconds


class SourceState(Answer, frozen=True, kw_only=True):
    state: State | None
    owner: str | None = None
    leave: float = 0.0  # seconds for which the container may be let run
    ticket: str = ""


class AskSourceState(OfMigration[SourceState], frozen=True, kw_only=True):
    op = "source-state"
    never: bool = False  # the destination will never let it run
    within: Seconds | UnsetType = UNSET  # for how long it asks to let it run


class Go(Message, frozen=True, kw_only=True):
    """A frame of its own: the first of two replies has been read and the second is waited for."""

    within: Annotated[float, Meta(ge=0, lt=1e6)]  # seconds


# --- The end ---


class Running(OfMigration[Done], frozen=True, kw_only=True):
    op = "running"


class Finished(Answer, frozen=True, kw_only=True):
    state: str = ""
    stopped: str = ""  # what there is to say if it does not run


class Finish(OfMigration[Finished], frozen=True, kw_only=True):
    op = "finish"


class Abandoned(Answer, frozen=True, kw_only=True):
    state: str = ""
    kept: str = ""  # uuid of the snapshot that the next attempt can start from
    known: bool | UnsetType = UNSET
    ticket: str = ""


class Abandon(OfMigration[Abandoned], frozen=True, kw_only=True):
    op = "abandon"
    name: str
    source_name: str = ""
    lxcpath: str | None = None
    source_host: str
    held: tuple[str, ...] = ()
    gone: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        names.container_name(self.name)
        for uuid in self.held:
            names.uuid(uuid)


# --- Bulk data ---


class File(Message, frozen=True, kw_only=True):
    name: str
    size: Annotated[int, Meta(ge=0, lt=1 << 60)] | None = None  # bytes; None if unknown

    def __post_init__(self) -> None:
        check_name(self.name)


class FileBegins(Message, frozen=True, kw_only=True):
    """A frame of its own: the next file, truncated to that many segments."""

    file: int
    keep: Annotated[int, Meta(ge=0)]


class Held(Answer, frozen=True, kw_only=True):
    """The first reply to a transfer."""

    held: dict[str, int]  # by file number, how many of its segments are there


class Arrived(Message, frozen=True, kw_only=True):
    bytes: int
    digest: str


class Received(Answer, frozen=True, kw_only=True):
    """The second reply to a transfer."""

    files: dict[str, Arrived] | UnsetType = UNSET  # by name
    aborted: bool | UnsetType = UNSET  # as requested by the sender


class Transfer(Request[Received], frozen=True, kw_only=True):
    op = "transfer"
    files: Annotated[tuple[File, ...], Meta(max_length=FILES_MAX)] = ()  # `send_files` adds them


class KindTransfer(Transfer, frozen=True, kw_only=True, tag_field="kind"):
    """A transfer of a kind that a stage has a receiver for."""

    id: str

    def __post_init__(self) -> None:
        names.migration_id(self.id)


class DiskTransfer(KindTransfer, frozen=True, kw_only=True, tag="disk"):
    round: Annotated[int, Meta(ge=1)]
    behind: bool = False  # whether to import it while it arrives


class IncrementTransfer(KindTransfer, frozen=True, kw_only=True, tag="increment"):
    attempt: int
    uuid: str
    behind: bool = False


class ImagesTransfer(KindTransfer, frozen=True, kw_only=True, tag="images"):
    attempt: int
    bytes: Size  # total that is going to come


_KINDS: dict[object, type[KindTransfer]] = {each.__struct_config__.tag: each for each in (
    DiskTransfer, IncrementTransfer, ImagesTransfer)}


def transfer(fields: Mapping[str, Any]) -> KindTransfer:
    """The request for a transfer, by its kind; raises ProtocolError and InvalidName."""
    kind = str(fields.get("kind"))
    if kind not in _KINDS:
        raise ProtocolError(reason=f"it sends data of unknown kind {kind[:40]!a}")
    return decoded(_KINDS[kind], fields)
