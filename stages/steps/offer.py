# SPDX-License-Identifier: GPL-2.0-or-later
"""The offer of the ownership token to the destination, and the way back if it was not made or not accepted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NoReturn

from msgspec import UNSET

from migrator.base import bounded_read, log
from migrator.config import container_config
from migrator.copies import bases, leave, origins, standing, thawing
from migrator.criu import criu_dump
from migrator.errors import Interrupted, MigratorError
from migrator.errors.containers import OutOfOrder
from migrator.errors.convert import as_ours
from migrator.errors.documented import DocumentedError
from migrator.errors.memory import DowntimeExceeded, DumpFailed, DumpRefused
from migrator.errors.outcomes import SourceRunsAgain, SourceStateUnknown, SourceStillFrozen, SourceStillStopped, outcome
from migrator.errors.this_host import JournalBroken
from migrator.host import btrfs
from migrator.record import container_lock, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import Event, State
from migrator.transfer.messages import DumpDrop, Own, Restored
from migrator.transfer.rpc import Connection
from stages.steps import thaw_again

ANSWER_LIMIT = 60.0  # seconds for what a destination does besides the restore itself, such as undoing one that failed

# Including the tunnel's, and Interrupted; OSError when, for example, there is no space for the fence.
_BREAKS_OFF = (DocumentedError, OSError)


def attempt(migration: Migration) -> int:
    """The number of the latest dump, on either host; 0 before the first."""
    return migration.handover.attempt


def settled(migration: Migration, state_there: State | None) -> State:
    """The state here, even if the answer to an offer got lost: then the destination's state tells."""
    taken = state_there in (State.OWNED, State.RESTORING, State.RESTORED)
    return State.DUMPED if migration.state is State.OFFERED and taken else migration.state


def settle(migration: Migration, state_there: State | None) -> None:
    """Record what `settled` says."""
    if settled(migration, state_there) is not migration.state:
        migration.move(Event.TAKEN)


def limits(left: float | None) -> dict[str, float]:
    """How long the destination may take to say that it has the token, and to act on it, as arguments of `call_and_go`.

    `left` is how many more seconds the container may be frozen; None if nothing is to be restored yet.
    """
    if left is None:
        return {"first": ANSWER_LIMIT, "then": 2 * ANSWER_LIMIT}
    return {"first": min(ANSWER_LIMIT, left), "then": left + ANSWER_LIMIT}


def word(migration: Migration) -> float:
    """For how many seconds the destination may let it run, as recorded here; raises DowntimeExceeded.

    OutOfOrder if it runs here, in spite of everything that should prevent that.
    """
    standing.require(migration, "restore-dump")
    given = migration.handover.leave
    left = leave.outstanding(given)
    if left <= 0:
        raise DowntimeExceeded(name=migration.name, seconds=f"{given.lasts if given else 0:g}")
    return left


def make(migration: Migration, there: Connection, *, restore_within: float | None = None) -> Restored:
    """Ask the destination to take the token; safe to repeat. If it refuses, the container is thawed.

    With `restore_within`, it also lets the container run within that many seconds before it answers: one message
    instead of two, with no question about its state between them, while the container is frozen. It prepares for that
    while hearing that this host still waits, and never lets it run unheard. The time that `leave.given` grants for
    this, or `leave.BY_HAND` for a restore-dump typed there, has been recorded before. Returns what the destination
    says.
    """
    asks = Own(id=migration.id, attempt=attempt(migration), dad=migration.still.dad,
               restore_within=UNSET if restore_within is None else restore_within)
    try:
        answer = there.call_and_go(asks, **limits(restore_within), within=lambda: word(migration))
        migration.move(Event.TAKEN)
    except DumpRefused as error:
        with container_lock.held_back():
            give_up(migration, there, error)
    except _BREAKS_OFF as error:  # also Busy: an offer believed lost may be being taken right now
        raise _unknown(migration, error) from error
    return answer


def _unknown(migration: Migration, error: BaseException) -> DocumentedError:
    """The error for a container that stays frozen, offered now or before: by the record the destination may run it."""
    return outcome(SourceStateUnknown, memory=migration.memory)(
        as_ours(error), name=migration.name,
        destination=next_commands.other_host(migration),
        rollback=next_commands.command("rollback", migration), path=next_commands.path(migration))


@contextlib.contextmanager
def undecided(migration: Migration) -> Iterator[None]:
    """Before an offer is made again: raise SourceStateUnknown if the block fails, leaving everything as it is.

    Also if the destination cannot even be reached. OutOfOrder is passed on: the container runs here.
    """
    try:
        yield
    except OutOfOrder:
        raise
    except _BREAKS_OFF as error:
        if migration.state is not State.OFFERED:
            raise
        raise _unknown(migration, error) from error


def withdraw(migration: Migration) -> None:
    """Cancel an offer that was recorded but not made, before anything is thawed.

    Ctrl-C can come between the two. If it stayed on record, a later `resume` would make the offer for a container that
    is running. Raises SourceStateUnknown if it may be on record and cancelling it cannot be recorded: then the
    container must stay frozen.
    """
    try:
        migration.refresh()
        _refused(migration)
    except _BREAKS_OFF as error:
        raise _unknown(migration, error) from error


def _refused(migration: Migration) -> None:
    if migration.state is State.OFFERED:
        migration.move(Event.REFUSED)


def give_up(migration: Migration, there: Connection, error: DocumentedError,
            thawed_again: Callable[[], None] = lambda: None) -> NoReturn:
    """Nobody else has the token: thaw, remove what this attempt made on both hosts, and say so.

    The container runs before anything is recorded, because what failed may be the disk of the journal; removing the
    attempt's images then makes room for records. `thawed_again` is called once it runs. Only a refusal of the offer is
    recorded before, if that can be done at once. The other host is told last, within ANSWER_LIMIT. What cannot be
    removed, here or there, is removed by the next attempt or its rollback.
    """
    try:
        thawed = _thaw(migration)
    except SourceStillStopped:
        log.error(str(error))
        raise
    except (MigratorError, OSError) as trouble:
        log.error(str(error))
        raise outcome(SourceStillFrozen, memory=migration.memory)(
            as_ours(trouble), name=migration.name, source=this_host(),
            next=next_commands.command("create-dump", migration), rollback=next_commands.command("rollback", migration),
        ) from error
    thawed_again()
    here = Layout.of(migration)
    _try(lambda: _keep_log(here, error))
    left = drop_here(migration, runs=thawed)
    try:
        container_config.unfence(migration.lxcpath / migration.name, migration.id)
        _refused(migration)
        migration.move(Event.THAW, failed=str(error)[:2000], **left)
    except (MigratorError, OSError) as trouble:  # the next command begins with the thaw, or rolls an offer back
        log.warning(f"{migration.name} keeps running here, but that could not be recorded: {trouble}")
    _try(lambda: there.call_within(ANSWER_LIMIT, DumpDrop(id=migration.id, attempt=attempt(migration))))
    if isinstance(error, Interrupted):
        if thawed or not left:
            log.info(f"{migration.name} keeps running here.")
        raise error
    if not thawed and (left or not migration.memory):
        raise error  # it is no longer there, or had not been stopped yet
    again = outcome(SourceRunsAgain, memory=migration.memory and thawed)  # a reboot has taken the memory
    next_ = next_commands.command("rollback", migration) if left else next_commands.again("create-dump", migration)
    raise again(error, name=migration.name, next=next_) from error


def _thaw(migration: Migration) -> bool:
    """As `thaw_source`, after recording that the offer was refused; if that cannot be recorded, it runs all the same.

    The refusal is on the destination's disk too: whoever finds the offer on record here, and asks, will roll back. No
    second signal interrupts between the two, unless the thaw is a start, which takes long.
    """
    if migration.state is not State.OFFERED:
        return thaw_again.thaw_source(migration)
    with thawing.undisturbed() if migration.memory else contextlib.nullcontext():
        try:
            with migration.journal.hurried():
                _refused(migration)
        except JournalBroken as error:
            log.warning(f"{migration.name} is resumed before it is recorded that the offer was refused: {error}")
            if not migration.memory:
                drop_here(migration)  # its start may need that space too
        return thaw_again.thaw_source(migration)


def drop_here(migration: Migration, *, runs: bool = False) -> dict[str, bool]:
    """Remove what an abandoned dump has made on this host: its memory images may take up memory.

    If the container is no longer in its place, even though it `runs`, its snapshot stays, because it may be the last
    copy. Returns what a rollback should record about that.
    """
    here = Layout.of(migration)
    _try(here.drop_images)
    if not origins.is_there(migration):
        if runs:
            _try(lambda: bases.last_copy(migration, runs=True))
        return {"gone": True}
    _try(lambda: btrfs.delete(here.snapshot(len(migration.data.rounds) + 1)))
    return {}


def _try(step: Callable[[], object]) -> None:
    try:
        step()
    except (MigratorError, OSError) as trouble:
        log.verbose(f"Something of the failed dump is left for now: {trouble}")


def _keep_log(here: Layout, error: DocumentedError) -> None:
    """Keep CRIU's log beyond the images, where the error says it is."""
    images = here.images()
    if isinstance(error, DumpFailed) and images and (images / "dump.log").is_file():
        kept = criu_dump.log_path(here.name, "dump")
        container_config.write_file(kept, bounded_read.tail(images / "dump.log"), mode=0o600)
        error.fields["log"] = kept
