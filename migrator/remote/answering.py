# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination's end of a connection: what `migrator serve` keeps while it answers one source.

The answers themselves are in `stages/`, next to the stages that ask for them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from migrator.base import bounded_read, log, names
from migrator.config import container_config
from migrator.config.container_config import Carried
from migrator.errors.connection import NotAllowed
from migrator.errors.containers import NoMigration
from migrator.errors.this_host import JournalBroken
from migrator.record import callers, grant
from migrator.record.grant import (
    ABANDONS_MAX,
    EVENTS_MAX,
    EVENTS_SIZE,
    KNOWN_MAX,
    ORIGINS_MAX,
    ROOT,
    TOLD_MAX,
    UNFINISHED_MAX,
    UNKNOWN_MAX,
    Grant,
)
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout, locked
from migrator.record.next_commands import this_host
from migrator.record.states import Role, State
from migrator.transfer import room_bounds
from migrator.transfer.frames import CONTROL_MAX
from migrator.transfer.live_import import Behind
from migrator.transfer.messages import Begin, KindTransfer
from migrator.transfer.room_bounds import Bounds
from migrator.transfer.rpc import Takeover
from migrator.transfer.wire_codec import Answer, Request

CONFIG_FILE = "config.json"  # in the spool
REST = 0.5  # seconds for which a caller who is not root has to leave a container unlocked between two locks or attempts
_KEPT_LIMIT = 8 * CONTROL_MAX  # bytes: JSON turns one into up to six


class Place(NamedTuple):
    """Where a transfer goes, whether it must be on disk before it is acknowledged, and who is told as it arrives.

    `accepts` says which names the sender may give its files: those that belong there, and none of the files that this
    host keeps beside them. `bounds` limits their size.
    """

    folder: Path
    durable: bool
    accepts: Callable[[str], bool]
    behind: Behind | None = None
    bounds: Bounds | None = None


class Service:
    """One connection's journal and locks.

    A container stays locked from one request to the next while its migration to this host is in progress, for as long
    as the connection lasts. For any other request it is locked only for that request: see `end_request`.
    """

    def __init__(self, journal: Journal, stack: contextlib.ExitStack, grant: Grant = ROOT,
                 clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        self.journal = journal
        self.grant = grant  # what the other side may do here
        self.looks = 0  # how often it has had this host's facts collected
        self.unknown: set[str] = set()  # ids that it has named and that are not its own
        self.origins: set[str] = set()  # of the containers that it has asked about
        self.abandons = 0  # how many migrations unknown to this host it has abandoned
        self._stack = stack
        self._locked: dict[tuple[str, Path], contextlib.ExitStack] = {}
        self._clock, self._sleep = clock, sleep
        self._rests_until = 0.0  # by the clock: until then a caller who is not root gets no lock
        self.behind: Behind | None = None  # the import of what this connection brought last
        self.images_of = ""  # the migration whose images this process has checked, all of them, as they arrived

    def lock(self, name: str, lxcpath: Path) -> tuple[str, Path] | None:
        """Keep other commands off a container; raises Busy.

        Returns an argument for `_let_go`; None if it was locked already.

        A caller who is not root and asks again and again holds the lock for only a small part of the time. On a host
        that knows no migration of such a container, no lock file stays behind, however many names are tried.
        """
        def nothing_known() -> bool:
            return self.journal.latest(name, lxcpath) is None

        if any(name == held and names.same_path(lxcpath, path) for held, path in self._locked):
            return None
        if self.grant.restricted and (rest := self._rests_until - self._clock()) > 0:
            self._sleep(rest)
        with contextlib.ExitStack() as lock:
            self._rests_until = self._clock() + REST
            lock.enter_context(locked(name, lxcpath=lxcpath, needless=nothing_known))
            self._locked[name, lxcpath] = self._stack.enter_context(lock.pop_all())
        return name, lxcpath

    def _let_go(self, container: tuple[str, Path]) -> None:
        self._rests_until = self._clock() + REST
        self._locked.pop(container).close()

    def end_request(self) -> None:
        """Release every container except those whose migration to here continues: nobody waits for this connection to
        end.

        Once a migration has ended or was given up, its remains are up to this host; and so is what goes out from here.
        """
        for container in list(self._locked):
            with contextlib.suppress(JournalBroken):
                newest = self.journal.latest(*container)
                if not (newest and self._goes_on(newest)):
                    self._let_go(container)

    def _goes_on(self, migration: Migration) -> bool:
        """Whether it is a migration to here by this caller, and not over for this host."""
        over = migration.ended or migration.state is State.ABANDONING
        return migration.role is Role.DESTINATION and self.grant.owns(migration) and not over

    @contextlib.contextmanager
    def locking(self, name: str, lxcpath: Path) -> Iterator[Callable[[], None]]:
        """As `lock`, but the lock is released if the block raises an error, or calls what it is given.

        Until then nothing shows that the caller has anything to do with a container of that name. A lock that was
        already held stays.
        """
        fresh = self.lock(name, lxcpath)

        def let_go() -> None:
            if fresh:
                self._let_go(fresh)

        try:
            yield let_go
        except BaseException:
            let_go()
            raise

    def import_behind(self, file: Path, target: Path) -> Behind | None:
        """The watcher for the transfer of `file`, which becomes the subvolume `target` while it arrives.

        None if an earlier import does not end; then this one is made from the spool.
        """
        # Each time, because the container locked last must stay locked until then.
        self._stack.callback(self.wait_behind)
        if not self.end_behind():
            return None
        leave = room_bounds.reserve(file.parent) if self.grant.restricted else room_bounds.MARGIN
        self.behind = Behind(file, target, leave)
        return self.behind

    def wait_behind(self) -> None:
        """Break off the import running behind the last transfer and wait for its end: nobody else learns its outcome.
        """
        if self.behind and not self.end_behind():
            self.behind.wait()

    def end_behind(self) -> bool:
        """Break it off: nobody needs its result, and someone may be waiting with a frozen container.

        Returns whether it ended.
        """
        if self.behind is None or self.behind.wait(0.0):
            return True
        log.warning(f"The import of {self.behind.target} was interrupted, and has not ended yet")
        return False

    def disk_bounds(self, migration: Migration) -> Bounds:
        """The limits for the caller's streams of that migration's disk."""
        if not self.grant.restricted:
            return room_bounds.OF_DISK
        return room_bounds.of_disk(migration.lxcpath, migration.data.announced)

    def lxcpath(self, wanted: str | None) -> Path:
        """The LXC path that the source asked for, or this host's default."""
        return self.grant.lxcpath(wanted or "")

    def known(self, id_: str) -> Migration | None:
        """The migration to this host that the source refers to, which must be its own; None if there is none.

        An id names a directory of memory images, ports and a firewall table, whichever way the migration goes: one that
        goes out from here belongs to nobody who connects to this host. Raises NotAllowed.
        """
        outgoing, migration = (self.journal.by_id(id_, role) for role in (Role.SOURCE, Role.DESTINATION))
        if outgoing or not migration or not self.grant.owns(migration):
            self.refuse_guesses(id_)
        if outgoing:
            raise self.grant.not_its_own(outgoing)
        if migration:
            self.grant.check_owner(migration)
        return migration

    def refuse_guesses(self, id_: str) -> None:
        """Count an id that is not the caller's; raises NotAllowed, whatever the id is, once there are too many."""
        self.unknown.add(id_)
        if self.grant.restricted and len(self.unknown) > UNKNOWN_MAX:
            self.unknown.discard(id_)
            raise self.grant.refusal("it has asked for too many migrations that it has not begun over one connection")

    def origin(self, told: str, migration: Migration | None = None) -> str:
        """The origin of the container that the source refers to, "" for none; fixed once there is a `migration`.

        Whoever knows the origin passes for the one who brings that container, so each one asked about is counted;
        raises NotAllowed if a caller who is not root tries too many.
        """
        if migration:
            return migration.begun.origin or migration.id
        if told:
            self.origins.add(told)
        if self.grant.restricted and len(self.origins) > ORIGINS_MAX:
            self.origins.discard(told)
            raise self.grant.refusal("it has asked about too many containers over one connection")
        return told

    def refuse_crowds(self) -> None:
        """Raise NotAllowed if a caller who is not root has begun too much."""
        if self.grant.restricted:
            known, unfinished = callers.count(self.journal, self.grant.caller)
            if known >= KNOWN_MAX or unfinished >= UNFINISHED_MAX:
                raise self.grant.refusal("it has too many migrations here")

    def refuse_new(self) -> None:
        """Raise NotAllowed or NoSpace if no further migration of the caller may begin."""
        self.refuse_crowds()
        self._refuse_filling()

    def refuse_data(self, migration: Migration) -> None:
        """Raise NotAllowed or NoSpace if no more data of that migration may be brought."""
        self.refuse_more(migration)
        self._refuse_filling()

    def _refuse_filling(self) -> None:
        """For a caller who is not root: NotAllowed if too much is on record for it, NoSpace without room for more.

        Records stay when a migration has ended, on a file system that may hold much else of this host.
        """
        if self.grant.restricted:
            if callers.told(self.journal, self.grant.caller) >= TOLD_MAX:
                raise NotAllowed(host_name=this_host(), caller=self.grant.name,
                                 reason="too much is recorded about its migrations to begin more",
                                 fix=f"On {this_host()}: migrator cleanup --forget (removes what has ended)")
            room_bounds.check_journal(self.journal.path.parent)

    def refuse_abandons(self) -> None:
        """Count another migration that never began; raises NotAllowed if a caller who is not root has too many."""
        self.abandons += 1
        if self.grant.restricted and self.abandons > ABANDONS_MAX:
            raise self.grant.refusal("it gives up too many migrations that never began")

    def refuse_more(self, migration: Migration) -> None:
        """Raise NotAllowed if a caller who is not root has caused too many records of a migration.

        Ask before something begins: what gives a container back, or says where it is, is always recorded.
        """
        count, size = migration.length()
        if self.grant.restricted and (count >= EVENTS_MAX or size >= EVENTS_SIZE):
            raise NotAllowed(host_name=this_host(), caller=self.grant.name,
                             reason=f"too much has happened in migration {migration.id} for it to go on",
                             fix="Give it up on its source, with `migrator rollback`, and start over.")

    def find(self, id_: str) -> Migration | None:
        """The migration that the source refers to, locked; None if this host does not know it.

        One that never began has nothing to do with a container of that name and is not locked; nor is one that
        `is_past`.
        """
        migration = self.known(id_)
        if migration and not migration.never_began and not is_past(migration):
            self.lock(migration.name, migration.lxcpath)
            migration = self.known(id_)  # it may have moved on before we had the lock
        return migration

    def migration(self, id_: str) -> Migration:
        """As `find`, after recording what its caller may bring along by now; raises NoMigration."""
        migration = self.find(id_)
        if migration is None:
            raise NoMigration(name=id_, stage="the source", next="migrator prepare-data")
        if self._goes_on(migration) and migration.state is not State.RESTORED:  # otherwise nothing more comes along
            self.note_consent(migration)
        return migration

    def note_consent(self, migration: Migration) -> None:
        """Record whether settings that reach out may come along, if permission for that was given or withdrawn since.
        """
        if grant.recorded(migration).hooks is not self.grant.hooks:
            migration.note("consent", hooks=self.grant.hooks, hooks_fix=self.grant.hooks_fix)


Handlers = dict[type[Request[Any]], Callable[[Service, Any], Answer | Takeover]]
Receivers = dict[type[KindTransfer], Callable[[Service, Any], Place]]


def is_past(migration: Migration) -> bool:
    """Whether it has ended and another migration of that container is in progress by now, perhaps from here.

    Nothing is to be done for it any more, so it must keep nobody off a container that may be frozen.
    """
    newest = migration.journal.latest(migration.name, migration.lxcpath)
    return migration.ended and newest is not None and newest.id != migration.id and not newest.ended


def keep_config(layout: Layout, asked: Begin, *, includes: bool = True) -> None:
    """Store the container's configuration as it came from the source, until the container is defined here.

    Without `includes`, no included files come along: this host's own files of those names are used.
    """
    data = {"text": asked.config, "includes": asked.includes if includes else {}, "bridges": asked.bridges}
    container_config.write_file(layout.spool / CONFIG_FILE, json.dumps(data), mode=0o600)


def kept_config(layout: Layout) -> tuple[Carried, dict[str, str]]:
    """The configuration that `keep_config` stored, and the bridge map."""
    data = json.loads(bounded_read.read(layout.spool / CONFIG_FILE, _KEPT_LIMIT))
    return Carried(data["text"], data["includes"]), data["bridges"]
