# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error that a user can meet: a class each, with its message, its cure and its exit status.

The docstring of a class is its message and `cure` tells what to do; both are filled in with the fields that the
error was raised with. The table in docs/errors.md is made from this module.

Exit statuses
    0       done
    1       done, with warnings (`check`)
    2       wrong usage, or an error without a number of its own
    3-5     a stage failed after it had frozen (or stopped) the container; the number tells where the container is now
    10-99   one cause each (70-89: the tunnel); the container runs (or is where it was before the command)
    128+N   ended by signal N
"""

from __future__ import annotations

import errno
import itertools
import socket
from typing import Any

from tunnel.tunnel_errors import DocumentedError

EXIT_OK = 0
EXIT_WARNINGS = 1
EXIT_USAGE = 2
SIGNAL_BASE = 128
FIELDS_MAX = 32  # that the other host's error may have
FIELD_MAX = 4000  # characters of each


class MigratorError(DocumentedError):
    """{reason}"""


class UsageError(MigratorError):
    """{reason}"""


class InternalError(MigratorError):
    """Internal error: {reason}"""

    cure = "Run the command again with --debug and report what it prints."


# --- After the freeze: where is the container now? ------------------------------------------------------------


class OutcomeError(MigratorError):
    """Base of the three outcomes; `cause` is the error that led to it."""

    def __init__(self, cause: DocumentedError, **fields: Any) -> None:
        self.cause = cause
        super().__init__(cause=str(cause), cause_cure=cause.hint, **fields)

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"cause": self.cause.to_json()}


class SourceRunsAgain(OutcomeError):
    """{cause} The container {name} was thawed and runs on on this host."""

    status = 3
    cure = "{cause_cure} Try again with: {next}"


class SourceStillFrozen(OutcomeError):
    """{cause} The container {name} is still frozen on {source}, with all its memory."""

    status = 4
    cure = "{cause_cure} Go on with: {next} -- or give up and thaw it with: {rollback}"


class SourceStateUnknown(OutcomeError):
    """{cause} Whether {destination} may run the container {name} is not known; it is kept frozen here."""

    status = 5
    cure = """When {destination} can be reached again: {rollback} -- if it is lost for good, see what that would risk:
    migrator rollback {name} --force {path}"""


# The same with --no-memory.


class SourceStartedAgain(SourceRunsAgain):
    """{cause} The container {name} was started again on this host."""


class SourceStillStopped(SourceStillFrozen):
    """{cause} The container {name} is stopped on {source}, with all of its disk."""

    cure = "{cause_cure} Go on with: {next} -- or give up and start it again there with: {rollback}"


class SourceStoppedUnknown(SourceStateUnknown):
    """{cause} Whether {destination} may run the container {name} is not known; it is kept stopped here."""


def outcome(cls: type[OutcomeError], *, memory: bool) -> type[OutcomeError]:
    """One of the three outcomes, as it is with or without memory."""
    stopped = {SourceRunsAgain: SourceStartedAgain, SourceStillFrozen: SourceStillStopped,
               SourceStateUnknown: SourceStoppedUnknown}
    return cls if memory else stopped[cls]


# --- This host and its programs -------------------------------------------------------------------------------


class NotRoot(MigratorError):
    """{command} needs root: it freezes processes and makes snapshots."""

    status = 10
    cure = "Run it as root, for example with sudo."


class ProgramMissing(MigratorError):
    """The program {program} is not installed."""

    status = 11
    cure = "Install it: apt-get install {package}"


class PackageMissing(MigratorError):
    """The Python package {module} cannot be imported: {reason}"""

    status = 12
    cure = "Install it: apt-get install {package}, in a virtual environment made with --system-site-packages."


class CommandFailed(MigratorError):
    """{command} failed with {outcome}: {output}"""

    status = 13
    cure = "Run it by hand to see more."


class CommandTimeout(MigratorError):
    """{command} did not end within {limit} seconds and was killed."""

    status = 14


class Interrupted(DocumentedError):
    """Interrupted by {signal}."""

    # It is no MigratorError: who goes on after such an error, as it is not worth an end, must not go on after this.

    @property
    def exit_status(self) -> int:
        return SIGNAL_BASE + int(self.fields.get("number", 2))


class JournalBroken(MigratorError):
    """The journal {path} cannot be used: {reason}"""

    status = 15
    cure = ("Is its disk full (df -h {path}; df -i {path}), make room there, and run the command once more. Else look"
            " at it with: sqlite3 -cmd 'PRAGMA locking_mode = EXCLUSIVE' {path} .dump -- and keep a copy of it before"
            " you change anything.")


class Busy(MigratorError):
    """Another migrator command works on {name} at this moment (process {pid})."""

    status = 16
    cure = "Wait until it has ended, or see what it does with: migrator status {name}"


class StillUnderWay(MigratorError):
    """{command} (process {pid}) still works on {name} after {seconds} seconds."""

    status = 17
    cure = "See what it does with: migrator status {name} -- and wait on with: migrator wait {name}"


class HolderUnknown(MigratorError):
    """{command} (process {pid}) works on {name}, and does not listen to `migrator abort`."""

    status = 18
    cure = "Press Ctrl-C where it was started, or wait until it has ended: migrator wait {name}"


# --- Names and containers -------------------------------------------------------------------------------------


class InvalidName(MigratorError):
    """{what} {name} is not a valid name: {reason}."""

    status = 20
    cure = "Names have 1 to 63 letters, digits, '.', '_' or '-' and begin with a letter or digit."


class ContainerNotFound(MigratorError):
    """There is no container {name} in {lxcpath}."""

    status = 21
    cure = "See what there is with: lxc-ls -f -P {lxcpath}"


class ContainerNotRunning(MigratorError):
    """The container {name} is {state}, not RUNNING."""

    status = 22
    cure = "Start it with: lxc-start -P {lxcpath} {name} -- or, where it is frozen: lxc-unfreeze -P {lxcpath} {name}"


class ContainerExists(MigratorError):
    """{host_name} already has a container {name} in {lxcpath}, or a rootfs there, that did not come from this one."""

    status = 23
    cure = "Rename or remove it there, or choose another name with --new-name."


class HasClones(MigratorError):
    """On {host_name}, clones (lxc-copy -s) are overlays on the root file system of the copy of {name} in {lxcpath}, as
    {list} says: it must not be moved away under them."""

    status = 37
    cure = """Destroy the clones there first, and where none of them exists any more remove that file; or choose another
    name with --new-name."""


class ConfigInvalid(MigratorError):
    """The configuration of {name} cannot be carried over: {reason}"""

    status = 24


class AlreadyMigrating(MigratorError):
    """{name} is already being migrated to {peer} (migration {id})."""

    status = 25
    cure = "Go on with: {next} -- or give that migration up with: migrator rollback {name} {path}"


class NoMigration(MigratorError):
    """There is no migration of {name} on this host that {stage} could go on with."""

    status = 26
    cure = "It begins with: {next}"


class NotKnownThere(MigratorError):
    """{destination} does not know migration {id} of {name}: it is another host, or has lost its journal."""

    forgotten = False  # it goes by the name of the host that it was sent to, and knows none by that id
    another = False  # it knows none by that id, and is not that host, for all that it shows
    status = 35
    cure = "It was sent to {peer}: see that this names the host that it was sent to, and not another one."


class OutOfOrder(MigratorError):
    """{stage} cannot run now: {missing}."""

    status = 27
    cure = "Next: {next}"


class ContainerChanged(MigratorError):
    """{name} has changed since prepare-data: {reason}."""

    status = 28
    cure = "Send it again: {next}"


class AlreadyRuns(MigratorError):
    """{name} already runs on {destination}: rolling back would lose what it did there."""

    status = 29
    cure = "Complete the migration with: {next} -- and move it back with a new migration from there."


class GoneThere(AlreadyRuns):
    """{name} has run on {destination}, and is not there any more, whatever is called so now: destroyed, or renamed."""

    status = 31
    cure = """If it was renamed there, rename it back, with mv rather than with lxc-copy -R, which leaves a copy, and go
    on. If it was destroyed, see there that nothing of it runs by another name (lxc-ls -f). What it has done there is
    lost then; the copy on {source}, as it was before the move, is the last one, and runs on with: {next}"""


class StoppedThere(AlreadyRuns):
    """{name} was let run on {destination}, and had stopped before that could be recorded: it has run there for a while,
    for a moment, or not at all."""

    status = 38
    cure = """Unless {source} was rebooted since, its memory is still frozen there: one of the two is lost, and only you
    can choose. To keep what it has written on {destination} ({rootfs}), and start it from there, type on that host:
    {start} -- to keep the memory instead, destroy it there (lxc-destroy -P {lxcpath} -n {there}), then: {back}"""


class BackThere(AlreadyRuns):
    """{name} had given way on {destination}, and is back there: {how}."""

    status = 19
    cure = """Two must not run, and only you can choose. To keep what stands still, as it was before the move, stop the
    other one on {destination}, by the name that it has there now: lxc-stop -k -P {lxcpath} {there} -- then rename it,
    which keeps what it has written: lxc-copy -R -P {lxcpath} -n {there} -N NEWNAME -- and see that NEWNAME does not
    start at boot, beside the other one and with its addresses: lxc.start.auto = 0 -- or destroy it: lxc-destroy
    -P {lxcpath} -n {there} -- after that: {next} -- To keep that one, and end what stands still: {keep}"""


class MovedOn(BackThere):
    """{name} had given way on {destination}, and has gone elsewhere from there since: the fence of that move stands
    there."""

    status = 81
    cure = """It lives on where it went, with all that it has done: rolled back, two would run. Where that is,
    migrator status -a {there} tells on {destination}. To end what stands still, as it was before the first move:
    {keep}"""


class RunsUnrecorded(AlreadyRuns):
    """{name} runs on {destination}, though the journal there does not say so, which is an older one, or was lost:
    {how}."""

    status = 80
    cure = """Two must not run, and only you can choose. To keep that one, with all that it has done there, and end what
    stands still on the source: {keep} -- To keep the latter, as it was before the move, stop that one on {destination},
    by the name that it has there now: lxc-stop -k -P {lxcpath} {there} -- then rename it, which keeps what it has
    written: lxc-copy -R -P {lxcpath} -n {there} -N NEWNAME -- see that NEWNAME does not start at boot, beside the
    other one and with its addresses: lxc.start.auto = 0 -- after that: {next}"""


class DiskAway(MigratorError):
    """What migrator keeps of {name} below {lxcpath} on {host_name} is not to be seen there ({reason}): it is not
    mounted, or is another disk."""

    status = 39
    cure = """Nothing is taken for lost or removed before it is seen. Mount it on {host_name} (findmnt -T {lxcpath}
    tells what is there now), then run the command again. {otherwise}"""


# --- Jobs -----------------------------------------------------------------------------------------------------


class BrokenOff(MigratorError):
    """Nobody works on the migration {id} of {name}, which is {state}."""

    status = 32
    cure = "Go on with: {next} -- or give it up with: {rollback}"


class RolledBack(MigratorError):
    """The migration {id} of {name} was rolled back; the container stays on {source}."""

    status = 33
    cure = "Begin anew with: {next}"


class AbortElsewhere(MigratorError):
    """{name} is being moved here from {source}, which decides what becomes of it."""

    status = 34
    cure = "Stop it there: {next}"


# --- Preflight ------------------------------------------------------------------------------------------------


class Blocked(MigratorError):
    """{name} cannot be moved to {destination}: {findings}"""

    status = 30
    cure = "See each finding and its cure with: {check} -- accept one by name with --ignore CODE. {instead}"


# --- The other host -------------------------------------------------------------------------------------------


class NotAllowed(MigratorError):
    """{host_name} does not let {caller} do that: {reason}."""

    status = 41
    cure = "{fix}"


class ConsentNeeded(MigratorError):
    """{host_name} does not take from {caller} what reaches out of the container {name}: {lines}."""

    status = 49
    cure = "Remove these lines and start the container anew, or, to trust them there: {fix}"


class DestinationInvalid(MigratorError):
    """{destination} is not a destination: {reason}."""

    status = 40
    cure = "Write it as [user@]host[:port], with an IPv6 address in brackets."


class HostUnreachable(MigratorError):
    """{destination} cannot be reached: {reason}."""

    silent = False  # whether nothing at all came back from that very host's address: not even a refusal
    answered = False  # whether a machine at that very address has refused the connection
    status = 42
    cure = "Check name, address, port and firewall with: ssh -v {destination}"


class HostKeyUnknown(MigratorError):
    """{destination} is not in known_hosts; it shows the {key_type} key {fingerprint}."""

    status = 43
    cure = """Compare the fingerprint on {destination} with: ssh-keygen -lf {key_file} -- if it is the same, add
    --accept-new-host-key."""


class HostKeyChanged(MigratorError):
    """THE HOST KEY OF {destination} HAS CHANGED: it shows the {key_type} key {fingerprint}, but known_hosts has
    another. Somebody may be listening."""

    status = 44
    cure = "Find out why. If the key was changed on purpose: ssh-keygen -R {known_hosts_name}"


class SshRefused(MigratorError):
    """{destination} refused the login as {user}: {reason}."""

    status = 45
    cure = "Let this host's root in: ssh-copy-id {destination}"


class RemoteMissing(MigratorError):
    """migrator cannot be started on {destination}: {reason}."""

    status = 46
    cure = "Install the same version of migrator there, and see that `ssh {destination} migrator --version` works."


class ProtocolError(MigratorError):
    """The other host does not follow the protocol: {reason}."""

    status = 47
    cure = "Install the same version of migrator on both hosts."


class ConnectionLost(MigratorError):
    """The connection to {destination} broke: {reason}."""

    status = 48
    cure = "Check the network and that host."


# --- Data -----------------------------------------------------------------------------------------------------


class NoSpace(MigratorError):
    """{where} has {free} free, but {needed} are needed for {what}."""

    status = 50
    cure = "Make room there: migrator cleanup -- and of what has not ended, on its source: migrator rollback NAME"


class SegmentDamaged(MigratorError):
    """Segment {segment} of {file} does not match its digest."""

    status = 51
    cure = "Its disk or memory may be failing. The data must be sent again."


class NotBtrfs(MigratorError):
    """{path} is not on btrfs or is not a subvolume."""

    status = 52
    cure = """Make the container's root file system a subvolume: btrfs subvolume create NEW, then copy with
    cp -a --reflink."""


class SendFailed(MigratorError):
    """btrfs send of {snapshot} failed: {reason}"""

    status = 53


class ReceiveFailed(MigratorError):
    """btrfs receive into {path} failed: {reason}"""

    status = 54
    cure = "The data must be sent again."


class SnapshotFailed(MigratorError):
    """The subvolume {path} could not be {action}: {reason}"""

    status = 55


class ReadFailed(MigratorError):
    """{file} could not be read to be sent: {reason}."""

    status = 56


class WriteFailed(MigratorError):
    """What arrived could not be written to {path}: {reason}."""

    status = 57
    cure = "Look for errors of that disk: dmesg --level=err,warn"


class DiskFull(MigratorError):
    """There was no room left for what had to be written: {reason}."""

    status = 58
    cure = "Make room there, for example with: migrator cleanup"


# --- Memory ---------------------------------------------------------------------------------------------------


class WatchdogFailed(MigratorError):
    """Nothing would give the container back if this program were stopped: its watchdog did not start ({reason})."""

    status = 59
    cure = "The container runs on. Find out what keeps a second program from being started here, then type it again."


class FreezeFailed(MigratorError):
    """The container {name} did not freeze within {limit} seconds."""

    status = 60
    cure = "A process in uninterruptible sleep may hold it up: ps -eo pid,stat,wchan,cmd | grep ' D'"


class _HasLog:
    """An error that names the host which has the log."""

    def __init__(self, /, **fields: Any) -> None:
        super().__init__(**{"host": socket.gethostname()} | fields)


class DumpFailed(_HasLog, MigratorError):
    """CRIU could not dump {name}: {reason}"""

    status = 61
    cure = "The whole log is {log} on {host}."


class RestoreFailed(_HasLog, MigratorError):
    """{name} could not be restored: {reason}"""

    status = 62
    cure = "The whole log is {log} on {host}."


class DowntimeExceeded(MigratorError):
    """{name} stood still for {seconds} seconds, longer than --max-downtime allows."""

    status = 63
    cure = "Raise --max-downtime, or send the data again first so that less is left."


class DumpRefused(MigratorError):
    """The destination does not take {name} over: {reason}."""

    status = 64
    cure = "Its dump must be sent again."


class StartFailed(MigratorError):
    """{name} could not be started: {reason}"""

    status = 65
    cure = "The whole log is {log}."


class CopyNotEnded(MigratorError):
    """Of the copy of {name} that was left here processes still live in {place}: {pids}."""

    status = 88
    cure = "See what holds them: ps -o pid,stat,wchan,cmd -p {pids} -- when they have ended: {next}"


# --- Ownership ------------------------------------------------------------------------------------------------


class SourceNeeded(MigratorError):
    """{known} What is left to do must be done on {source}, which could not be told: {reason}"""

    status = 66
    cure = "Type there: {next}"


class WordOver(MigratorError):
    """The source's word that {name} may be let run here is over: this host, or this program, stood still meanwhile."""

    status = 36
    cure = "Again, the source is asked once more: {next}"


class SourceFailed(MigratorError):
    """{source} was told to go on with {name}, and could not: {reason}"""

    status = 68
    cure = "See there: {next}"


class TwoCopies(MigratorError):
    """THERE ARE TWO COPIES OF {name}: it has run on {destination}, and its rollback was forced on {source}."""

    status = 69
    cure = """Keep one of them. To give up the one on {destination}, type there: lxc-stop -k -P {lxcpath} {there} -- and
    then: migrator resume {there} {path}"""


class ForceRefused(MigratorError):
    """{name} is not {done} by force: {reason}. {risk}"""

    status = 67
    cure = "Only when that is certain: {command}"


def as_ours(error: BaseException, doing: str = "") -> DocumentedError:
    """The error itself, if it is one that users know; else what it looks like to them. `doing` says when it came."""
    if isinstance(error, DocumentedError):
        return error
    ours: MigratorError
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        ours = DiskFull(reason=f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    else:
        kind = f"{type(error).__name__} in {doing}" if doing else type(error).__name__
        ours = InternalError(reason=f"{kind}: {str(error)[:1000]}")
    ours.__cause__ = error  # for the traceback of --debug
    return ours


def by_code() -> dict[str, type[MigratorError]]:
    """Every error class under its code: how an error from the other host finds its class again."""
    found: dict[str, type[MigratorError]] = {}
    waiting: list[type[MigratorError]] = [MigratorError]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        found[cls.code()] = cls
    return found


def from_json(data: dict[str, Any], host: str) -> MigratorError:
    """The error that the other host sent, as an exception that names that host."""
    cls = by_code().get(str(data.get("code")), InternalError)
    fields = data.get("fields")
    if data.get("code") == Interrupted.code():  # there; nobody has interrupted what is done here
        cls, fields = MigratorError, {"reason": str(data.get("message"))[:1000]}
    if issubclass(cls, OutcomeError) or not isinstance(fields, dict):
        cls, fields = InternalError, {"reason": str(data.get("message"))[:1000]}
    named = {"host": host[:255]} if issubclass(cls, _HasLog) else {}  # an older version does not say
    some = itertools.islice(fields.items(), FIELDS_MAX)
    error = cls(**named | {str(key)[:100]: str(value)[:FIELD_MAX] for key, value in some})
    error.host = host[:255]
    return error
