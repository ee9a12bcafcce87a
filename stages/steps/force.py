# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be done without the other host's word if that host is lost for good: a rollback, or the end of a migration.

Only a host that gives no sign of life is lost. One that answers is believed; and errors that come from it or from the
way to it (a different host key, a refused login, another migrator there) are signs of life.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from migrator.base import boot_clock, log
from migrator.base.process_id import Process
from migrator.base.result import Result
from migrator.copies import after_crash, bases, leave
from migrator.copies.resume_rules import MAY_RESTORE, TAKEN_BACK
from migrator.errors import Interrupted
from migrator.errors.connection import ConsentNeeded, HostUnreachable
from migrator.errors.containers import AlreadyRuns, BackThere, NotKnownThere, OutOfOrder, RunsUnrecorded
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import SourceStateUnknown
from migrator.errors.ownership import ForceRefused, TwoCopies
from migrator.record import container_lock, next_commands
from migrator.record.journal import Migration
from migrator.record.next_commands import this_host
from migrator.record.states import Owner, State
from stages.steps import consented, finish_here, give_back, settling, stopped_here, two_copies
from tunnel.tunnel_errors import PeerAbsent, PeerSilent

POLL = 0.2  # seconds
KNOWN = {
    State.OFFERED: "{there} was offered the token and has not answered: it may have taken it, and may run {name}.",
    State.DUMPED: "{there} has taken the token: it runs {name}, or may run it at any time.",
}
RISK = (" If that host is alive, or ever comes back with this container, two copies write to what they share and "
        "answer under one address, and what either has done since is lost to the other. So first make sure that it "
        "stays off: without power, or with its disk destroyed.")


LEFT_BEHIND = ("As long as {there} is up, it holds a frozen copy of {name}, with all its memory, and a fence around "
               "it; or it may have been forced to run {name} again, without asking this host: then two copies run. "
               "What was kept here for the way back is removed, and that copy becomes useless. If that host can be "
               "reached, or is only off for a while, nothing needs to be forced: finish it from there.")


def roll_back(migration: Migration, given: str, tell: Callable[[], str], *,
              recorded: Callable[[], str] | None = None, off: bool = False) -> Result:
    """Thaw, or start from disk, without an answer; `given` must be the migration's id.

    A destination that does answer is believed, as in any rollback. One that has lost its journal has nothing to say: it
    counts as lost, unless it is provably another host. If `tell` asks at a different address from the one that the
    container was sent to, `recorded` asks at that one: any other address may be silent, and only a host that is silent
    at both is lost. `off` is the administrator's word that the machine is off, for cases in which the network cannot
    tell: behind a jump host, for a peer, or if a firewall, or another host by its name, answers for it. Raises
    ForceRefused.
    """
    if migration.owner is Owner.SOURCE:
        return give_back.roll_back(migration, tell)  # nobody else's word is needed
    there = next_commands.other_host(migration)
    if given != migration.id:
        what = f"{given} is not the id of its migration" if given else "the id of its migration is missing"
        known = KNOWN[migration.state].format(there=there, name=migration.name)
        raise ForceRefused(name=migration.name, done="rolled back", reason=what, risk=known + RISK,
                           command=f"{next_commands.command('rollback', migration)} --force {migration.id}")
    migration.note("forcing", forcing=Process.current())
    for last in (False, True):
        for ask in (tell, recorded) if recorded else (tell,):
            try:
                return give_back.roll_back(migration, ask)
            except SourceStateUnknown as error:
                container_lock.check_interrupted()
                _must_be_lost(migration, error, there, elsewhere=ask is not (recorded or tell), off=off)
            container_lock.check_interrupted()  # in case the exception was swallowed on its way
        if last or off or not wait_out(migration, there):
            break
    done = give_back.roll_back(migration, None)
    migration.note("forced", forced_at=time.time())
    return Result(done.data | {"forced": True},
                  f"{done.text} {there} was not asked: it must never run migration {migration.id} of {migration.name}. "
                  "Should it come back, run there, before anything else: "
                  f"{next_commands.typed('resume@destination', migration)}")


def _must_be_lost(migration: Migration, error: SourceStateUnknown, there: str, *, elsewhere: bool, off: bool) -> None:
    """Raise the outcome of asking a destination, unless it counts as lost; see `roll_back`."""
    if isinstance(error.cause, Interrupted):
        raise error.cause from error
    forgotten = isinstance(error.cause, NotKnownThere) and error.cause.forgotten and not elsewhere
    if not (forgotten or is_silence(error.cause) or (off and is_unknown(error.cause))):
        _tell_why_not(error, error.cause, "Not rolled back by force", there,
                      next_commands.command("rollback", migration), migration.id)
        raise error
    if forgotten:
        log.warning(str(error.cause))


def wait_out(migration: Migration, there: str) -> bool:
    """Wait until the destination may no longer let the container run on the word it was given.

    Returns False if waiting was unnecessary. The destination may be cut off or suspended without being off. Raises
    Interrupted.
    """
    left = leave.outstanding(migration.handover.leave, leave.SLACK)
    if left <= 0:
        return False
    log.warning(f"Waiting {left:.0f} more seconds, in which {there} may still let {migration.name} run if it is cut off"
                f" rather than off. If you have made sure that it is off, there is no need to wait: --machine-is-off")
    end = boot_clock.now() + left
    while (now := boot_clock.now()) < end:
        container_lock.check_interrupted()
        time.sleep(min(POLL, end - now))
    return True


def let_run(migration: Migration, given: str, ask: Callable[[], State | None], *, off: bool = False) -> bool:
    """Whether the container may run here, on the destination, whose source is lost for good.

    `given` must be the migration's id. `ask` gets the source's state. A source that answers is believed: returns False
    if it runs the container again. One that has lost its journal counts as lost. `off` is the administrator's word that
    the machine is off. Raises ForceRefused, OutOfOrder, and what `ask` raises if that is not silence.
    """
    there, name = migration.peer, migration.name
    command = next_commands.command("restore-dump", migration)
    if not (migration.state in MAY_RESTORE or settling.stands_stopped(migration) or stopped_here.is_stopped(migration)):
        raise OutOfOrder(stage="restore-dump --force", missing=f"{name} is {migration.state} here",
                         next=next_commands.next_command(migration) or next_commands.command("status", migration))
    if given != migration.id:
        what = f"{given} is not the id of its migration" if given else "the id of its migration is missing"
        raise ForceRefused(name=name, done="run here", reason=what, command=f"{command} --force {migration.id}",
                           risk=f"{there} may have been forced to run {name} again, without asking this host." + RISK
                           + _unasked(migration))
    try:
        known = ask()
    except DocumentedError as error:
        if isinstance(error, Interrupted) or not (is_silence(error) or (off and is_unknown(error))):
            _tell_why_not(error, error, "Not run by force", there, command, migration.id)
            raise
        log.warning(f"{there} cannot be asked: {error}")
    else:
        if known in TAKEN_BACK:
            return False
        if known is not None:
            raise OutOfOrder(stage="restore-dump --force", missing=f"{there} answers: it is {known} there",
                             next=command)
        log.warning(f"{there} answers, but does not know the migration")
    container_lock.check_interrupted()
    migration.note("forced", forced_at=time.time())
    return True


def _unasked(migration: Migration) -> str:
    """What it brings along although its sender no longer may (`restore_dump.take_offered`)."""
    try:
        if migration.state is State.DUMP_RECEIVED:
            consented.require(migration)
    except ConsentNeeded as error:
        return f" It is then also allowed to do what needs consent: {error}"
    return ""


def finish_alone(migration: Migration, given: str, ask: Callable[[], State | None], *, off: bool = False) -> Result:
    """End a migration here, on the destination, whose source is lost for good; `given` must be the migration's id.

    `ask` gets the source's state. A source that answers is believed. `off` is the administrator's word that the machine
    is off, for when another host answers by its name. Raises ForceRefused, TwoCopies, OutOfOrder, and GoneThere if the
    container has been removed since.
    """
    there, name = migration.peer, migration.name
    if migration.state is not State.RESTORED:
        raise OutOfOrder(stage="finish --force", missing=f"{name} does not run here: it is {migration.state}",
                         next=next_commands.next_command(migration))
    # Only LXC's word if it is fenced: someone who merely looks into its root file system would be taken for it.
    if settling.seems_fenced(migration) or settling.stands_stopped(migration) or stopped_here.is_stopped(migration):
        raise OutOfOrder(stage="finish --force", missing=f"{name} was stopped here, and {there} may run it again",
                         next=next_commands.command("resume", migration))
    if settling.is_gone(migration):
        raise settling.gone(migration)  # the source's copy is the last one
    if given != migration.id:
        what = f"{given} is not the id of its migration" if given else "the id of its migration is missing"
        raise ForceRefused(name=name, done="finished", reason=what, risk=LEFT_BEHIND.format(there=there, name=name),
                           command=next_commands.command("finish", migration, "--force", migration.id))
    try:
        known = ask()
    except DocumentedError as error:
        unreached = isinstance(error, HostUnreachable | PeerAbsent | PeerSilent)
        if error.host or not (unreached or (off and is_unknown(error))):
            if is_unknown(error):
                _tell_why_not(error, error, "Not finished by force", there, next_commands.command("finish", migration),
                              migration.id,
                              then=next_commands.command("finish@source", migration))
            raise
        log.warning(f"{there} cannot be asked: {error}")
    else:
        if known in TAKEN_BACK:
            raise two_copies.of(migration)
        if known is not None:  # what it has finished ends here too
            stage = "resume" if known is State.FINISHED else "finish@source"
            raise OutOfOrder(stage="finish --force", missing=f"{there} answers: it is {known} there",
                             next=next_commands.command(stage, migration))
    container_lock.check_interrupted()
    finish_here.end_here(migration, alone=True)
    return Result({"migration": migration.id, "name": name, "stage": "finish", "already": False, "forced": True},
                  f"{name} runs here for good. Should {there} come back, its copy does not start, unless that host was "
                  "forced to run it again, which migrator status -a shows there: then two copies run. Otherwise end it "
                  f"there with: {next_commands.typed('finish@source', migration)}")


def _tell_why_not(raised: DocumentedError, cause: DocumentedError, what: str, there: str, command: str,
                  id_: str, *, then: str = "") -> None:
    """Say why nothing was forced, and make the error raised for it name what can be.

    `then` is that, if it is a different command for when the other host can be reached.
    """
    if is_unknown(cause):
        log.warning(f"{what}: it cannot be seen from here whether {there} is off")
        raised.instead = (f"Once {there} can be reached again: {then or command} -- if you have made sure that it is "
                          f"off, and stays off: {command} --force {id_} --machine-is-off")
    else:
        log.warning(f"{what}: {there} is not silent, and only a host that gives no sign of life counts as lost")


def is_silence(error: DocumentedError) -> bool:
    """Whether the other host gives no sign of life, as far as the network can tell."""
    return not error.host and isinstance(error, HostUnreachable) and error.silent


def is_unknown(error: DocumentedError) -> bool:
    """Whether the network shows neither that the other host is alive nor that it is silent.

    A firewall may have answered for it, a jump host may be down, a name may not resolve. Of a peer we learn only that
    no migrator agent waits there or answers: the machine may be up and running the container. The same holds if another
    host answers by its name and does not know the migration, such as one set up anew in its place. A host that does
    know it is believed; with a different ticket, it may have it from an earlier round, and is no host set up anew.
    """
    if error.host or is_silence(error):
        return False
    if isinstance(error, NotKnownThere):
        return error.another
    return isinstance(error, PeerAbsent | PeerSilent) or (isinstance(error, HostUnreachable) and not error.answered)


def is_under_way(migration: Migration) -> bool:
    """Whether a process is forcing the rollback of a migration right now: its decision must not be preempted."""
    process = migration.ending.forcing
    if migration.state not in KNOWN or not process:
        return False
    found = container_lock.of(migration.name, migration.lxcpath)
    return found is not None and found.process == process


def tell_late(migration: Migration, tell: Callable[[], str], *, elsewhere: bool = False) -> Result | None:
    """After a rollback without the destination's word: tell it, now that it is reachable; None if it knows.

    A destination that has forgotten the migration, because it was reinstalled for example, will never hear of it: that
    is then recorded and nobody is reminded any more, unless the host asked is `elsewhere` than where the container was
    sent. Raises what `tell` raises, and TwoCopies if it has run there and has not given way.
    """
    if not migration.owes:
        return None
    there = next_commands.other_host(migration)
    try:
        kept = tell()
    except BackThere:
        raise
    except AlreadyRuns as error:
        if isinstance(error, RunsUnrecorded) and not migration.ending.forced:  # it was never offered
            raise OutOfOrder(stage="rollback", next=next_commands.command("resume", migration), missing=(
                f"on {there} something other than {migration.name} itself lives in what has arrived: "
                f"{error.fields.get('how')}. Nothing is removed there until that has ended")) from error
        path = shlex.quote(migration.begun.destination_lxcpath)
        raise TwoCopies(name=migration.name, there=migration.other_name, destination=there, source=this_host(),
                        lxcpath=path, path=f"-P {path}") from error
    except NotKnownThere as error:
        if elsewhere or not error.forgotten:
            raise
        migration.note("forgotten", abandoned=True, forgotten_there=True)
        return Result({"migration": migration.id, "name": migration.name, "stage": "rollback", "already": False,
                       "destination_told": False},
                      f"{there} answers, but no longer knows migration {migration.id} of {migration.name}, as if it "
                      "had been reinstalled. If only its journal was lost, make sure that it does not run there: "
                      "lxc-ls -f")
    bases.settle_late(migration, kept)
    migration.note("abandoned", abandoned=True)
    return Result({"migration": migration.id, "name": migration.name, "stage": "rollback", "already": False,
                   "destination_told": True},
                  f"{there} now knows that migration {migration.id} of {migration.name} was given up. "
                  f"{after_crash.note(migration)}".rstrip())
