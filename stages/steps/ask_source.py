# SPDX-License-Identifier: GPL-2.0-or-later
"""How a destination asks its source, or has it act: the only case in which a destination makes the connection.

A source whose administrator has given this host up for lost runs the container again, and says so to whoever asks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from typing import Any

from msgspec import UNSET, UnsetType

from migrator.base import boot_clock, log
from migrator.base.result import Result
from migrator.copies import leave, resume_rules, standing
from migrator.errors import InternalError, Interrupted
from migrator.errors.connection import ConnectionLost
from migrator.errors.containers import NotKnownThere
from migrator.errors.convert import from_json
from migrator.errors.documented import DocumentedError
from migrator.errors.ownership import SourceFailed, SourceNeeded
from migrator.errors.this_host import Busy
from migrator.record import next_commands
from migrator.record.grant import PEER
from migrator.record.journal import Migration
from migrator.record.next_commands import this_host
from migrator.record.states import ENDED, Owner, Role, State
from migrator.remote import destination
from migrator.remote.answering import Handlers, Service
from migrator.remote.destination import ConnectOptions
from migrator.remote.other_host import connected, fingerprint
from migrator.transfer.messages import AskSourceState, SourceState
from migrator.transfer.stream import ByteStream
from stages.steps import abandon, ask_state, force
from stages.steps.options import MAX_DOWNTIME

RESUME = "resume"
ONLY = "--migration"  # an option of `resume` on the source
OUTCOMES = (3, 4, 5)  # exit statuses
ASK_LIMIT = 10.0  # seconds for an answer
SOURCE_LIMIT = 86400.0  # seconds: `resume` there has limits of its own, and prints only when it ends
AMONG_OTHERS = 600.0  # seconds for the same while others wait: at boot, all that is left is to finish or to roll back
SAID_MAX = 1 << 20  # bytes of its output that are kept: only the last line counts


@dataclasses.dataclass(frozen=True)
class Asking:
    """How the destination reaches the source, and how long requests to it may take."""

    connect: ConnectOptions = dataclasses.field(default_factory=ConnectOptions)
    source: str | None = None  # its address, if that is not the host name recorded for it
    max_downtime: float = MAX_DOWNTIME  # seconds for which its word lets the container be started
    among_others: bool = False  # others wait until this is done

    def where(self, migration: Migration) -> str:
        return self.source or migration.peer


# For commands that have no options for it.
QUICKLY = Asking(ConnectOptions(timeout=ASK_LIMIT))


def state_of_source(asking: Asking, migration: Migration, needed: bool = False) -> State | None:
    """The source's state of this migration; None, with a warning, if the source cannot be asked or does not know it.

    If it is `needed`, because the container must not be started without it, raises SourceNeeded instead.
    """
    try:
        found = ask(asking, migration)
    except Interrupted:
        raise
    except DocumentedError as error:
        if needed:
            raise _needed(migration, str(error)) from error
        log.warning(f"{migration.peer} cannot be asked whether it runs {migration.name} again: {error}")
        return None
    if needed and found not in resume_rules.TAKEN_BACK | resume_rules.LETS_RUN:
        raise _needed(migration, _no_word(found))
    return found


def _needed(migration: Migration, reason: str) -> SourceNeeded:
    return SourceNeeded(
        known=f"{migration.name} may not run here before {migration.peer} has said that it does not run it again.",
        source=migration.peer, reason=reason.rstrip("."),
        next=f"{next_commands.command(f'{RESUME}@source', migration)} -- if that host is lost for good, see here what"
             f" that would risk: {next_commands.command('restore-dump', migration)} --force")


def _no_word(found: State | None) -> str:
    return f"it is {found} there" if found else "it does not know that migration"


def ask(asking: Asking, migration: Migration) -> State | None:
    """The source's state of this migration; None if the source does not know it. Raises what `connected` raises.

    NotKnownThere if a host other than the source says so.
    """
    return _asked(asking, migration)[0]


def _asked(asking: Asking, migration: Migration,
           within: float | UnsetType = UNSET) -> tuple[State | None, float]:
    """As `ask`, and for how many seconds the container may be let run here, if `within` asks for them."""
    with connected(asking.connect, asking.where(migration)) as there:
        never = migration.state is State.ABANDONED or migration.arrived.given_way
        answer = there.call_within(ask_state.LIMIT, AskSourceState(id=migration.id, never=never, within=within))
        if not _is_source(there.peer_host, fingerprint(there), answer, migration):
            error = NotKnownThere(destination=there.peer_host, id=migration.id, name=migration.name,
                                  peer=migration.peer)
            error.another = answer.state is None
            raise error
    return answer.state, answer.leave


def _is_source(host: str, paired: str, answer: SourceState, migration: Migration) -> bool:
    """Whether the host that answered may be the source: by its fingerprint if it was `paired`, else by its `host` name.

    A host that knows the migration also has this host's ticket, which no other has. The source itself lacks it before
    its own record exists, or when it cannot tell that it is the destination that asks. It may then say that it takes
    the container back, but not that the container may run here.
    """
    caller = migration.caller
    if paired and caller.startswith(PEER) and caller != f"{PEER}{paired}":
        return False  # another host is paired under its name by now
    if answer.state:
        return not (answer.ticket or answer.state in resume_rules.LETS_RUN) or resume_rules.is_known(
            migration.ticket, known=True, answered=answer.ticket)
    if migration.peer.startswith(PEER):
        return True
    return host != this_host() and host == migration.peer.rpartition("@")[2]


def leave_for(asking: Asking, migration: Migration, limit: float, *, by_hand: bool = False) -> float:
    """Until when, by `boot_clock.now`, the container may be let run here; 0 if the source runs it again.

    Asks for `limit` seconds, unless the step is taken `by_hand` soon after create-dump. Raises SourceNeeded if the
    source says nothing.
    """
    since = boot_clock.now()  # before anything else: time spent stopped from here on counts against the word
    left = boot_clock.left(migration.handover.leave) if by_hand else None
    if left is not None and not resume_rules.must_ask(left):
        return since + left
    try:
        found, given = _asked(asking, migration, limit)
    except Interrupted:
        raise
    except DocumentedError as error:
        raise _needed(migration, str(error)) from error
    if found in resume_rules.TAKEN_BACK:
        return 0.0
    if found not in resume_rules.LETS_RUN or not 0 < given <= leave.MOST:
        raise _needed(migration, _no_word(found))
    return since + min(given, limit)


def has_word(asking: Asking, migration: Migration, found: State | None) -> bool:
    """Whether the source, which answered `found`, gives its word as well, having checked that the container is frozen.

    If so, an earlier answer that it takes the container back is void: a forced rollback was interrupted.
    """
    if found not in resume_rules.LETS_RUN:
        return False
    try:
        return bool(leave_for(asking, migration, asking.max_downtime))
    except SourceNeeded as error:
        log.warning(str(error))
        return False


def give_up(migration: Migration) -> Result:
    """Give the migration up, because the source runs the container again."""
    log.warning(f"{migration.name} runs on its source again: this host gives it up")
    return abandon.give_up_here(migration)


def act(asking: Asking, migration: Migration, done: Result) -> Result:
    """Have the source continue the migration: `migrator resume` there, over SSH; raises its error, or SourceNeeded."""
    known = done.text.partition(" Next: ")[0]
    try:
        answer: dict[str, Any] | None = None
        there = ask(asking, migration)
        if there is not None and there not in ENDED:  # otherwise its newest migration of that name is a different one
            log.info(f"{known} {migration.peer} is told to continue.")
            answer = _resume_there(asking, migration)
    except DocumentedError as error:
        if isinstance(error, Interrupted | SourceFailed) or error.host:
            raise
        raise SourceNeeded(known=known, source=migration.peer, reason=str(error).rstrip("."),
                           next=next_commands.command(f"{RESUME}@source", migration)) from error
    if migration.state is State.ABANDONED:
        migration.note("source-knows", source_knows=True)
    return Result(done.data | {"next": "", "source": answer}, f"{known} {migration.peer} has done the rest.")


def _resume_there(asking: Asking, migration: Migration) -> dict[str, Any]:
    """Run `resume` there for this migration only, whatever has begun there meanwhile.

    A source older than 2026-11-30 does not have the option for that. Its container must not stay frozen because of it:
    the name and the LXC path identify the migration, and that it has not ended there was confirmed a moment ago.
    """
    words, this = next_commands.words(f"{RESUME}@source", migration), [ONLY, migration.id]
    try:
        return _run_on_source(asking, migration, [*words, *this, "--json"])
    except InternalError as error:  # a usage error there arrives as this
        if " ".join(this) not in str(error):
            raise
        log.verbose(f"{migration.peer} has an older version of migrator: {error}")
    return _run_on_source(asking, migration, [*words, "--json"])


def _run_on_source(asking: Asking, migration: Migration, argv: list[str]) -> dict[str, Any]:
    """The JSON that a command prints there; raises the error that it prints."""
    from migrator.remote import ssh

    target, connect = destination.parse(asking.where(migration)), asking.connect
    with ssh.connect(target, accept_new_host_key=connect.accept_new_host_key, timeout=connect.timeout) as session:
        stream = session.serve(argv)
        said = _said(stream, AMONG_OTHERS if asking.among_others else SOURCE_LIMIT, str(target))
    try:
        answer = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise InternalError(reason=f"{target} answered {said[-200:]!r}")
    if isinstance(answer.get("error"), dict):
        if answer["error"].get("status") in OUTCOMES:  # these say where a container is, as seen from there
            raise SourceFailed(source=migration.peer, name=migration.other_name, reason=answer["error"].get("message"),
                               next=next_commands.command("status@source", migration))
        raise from_json(answer["error"], migration.peer)
    return answer


def _said(stream: ByteStream, limit: float, where: str) -> bytes:
    """The end of what is printed there within `limit` seconds; raises ConnectionLost if that is nothing."""
    end = time.monotonic() + limit
    said, buffer = b"", bytearray(65536)
    try:
        while (left := end - time.monotonic()) > 0:
            stream.settimeout(left)
            if not (count := stream.readinto(memoryview(buffer))):
                return said
            said = (said + buffer[:count])[-SAID_MAX:]
    except TimeoutError:
        pass
    except (ConnectionLost, OSError) as error:
        if said.strip():
            return said
        raise error if isinstance(error, ConnectionLost) else ConnectionLost(destination=where, reason=error) from error
    raise ConnectionLost(destination=where, reason=f"it has not ended within {limit:g} seconds")


def source_state(service: Service, asked: AskSourceState) -> SourceState:
    """What this host, the source, knows of a migration.

    After a forced rollback, `never` tells it that the destination knows of that and will never let the container run.
    It believes nobody else, because the reminder that another host may come back with the container would end with it.
    While a rollback is being forced, a destination that comes back in the middle of it already hears how it will end.

    With `within`, the destination asks for how many seconds it may let the container run. That is recorded before it is
    said: a rollback that is forced meanwhile waits for it. Raises Busy while someone works on the container, who may
    have it decided otherwise, and OutOfOrder if it runs here, past its fence.
    """
    migration = service.journal.by_id(asked.id, Role.SOURCE)
    if not migration or not service.grant.is_destination(migration):
        service.refuse_guesses(asked.id)
    if migration:
        service.grant.check_destination(migration)
    if migration and migration.owes and asked.never and service.grant.is_destination(migration):
        with contextlib.suppress(Busy), service.locking(migration.name, migration.lxcpath) as let_go:
            migration = service.journal.by_id(asked.id, Role.SOURCE) or migration
            migration.note("abandoned", abandoned=True)
            let_go()
    if migration and force.is_under_way(migration):
        return SourceState(state=State.ROLLING_BACK, owner=Owner.SOURCE)
    given = 0.0
    if migration and asked.within is not UNSET and migration.state in resume_rules.LETS_RUN:
        service.grant.check_leave(migration)
        with service.locking(migration.name, migration.lxcpath) as let_go:
            migration.refresh()
            if migration.state in resume_rules.LETS_RUN:
                service.refuse_more(migration)
                standing.require(migration, "restore-dump")
                standing.restore_silence(migration)
                given = min(asked.within, leave.MOST)
                migration.note("leave", anew=True, leave=leave.given(migration.handover.leave, given))
            let_go()
    # The ticket proves to the asking host, under whatever name it knows this one, that this one sent it the migration.
    ticket = migration.ticket if migration and service.grant.is_destination(migration) else ""
    return SourceState(state=migration.state if migration else None, owner=migration.owner if migration else None,
                       leave=given, ticket=ticket)


HANDLERS: Handlers = {AskSourceState: source_state}
