# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal: what this host knows of each migration, written before each step and after its outcome.

It is one SQLite file per host, with full synchronisation: a state or a note that has been recorded survives a power cut
(sqlite.org/pragma.html#pragma_synchronous). Steps within a state are written without a sync; they survive a crash of
the program, and a power cut once the next state is recorded. `docs/states.md` explains the states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from migrator.base import boot_clock, log, names
from migrator.base.process_id import Process
from migrator.errors.documented import DocumentedError
from migrator.errors.this_host import JournalBroken
from migrator.record import states
from migrator.record.detail import Recorded, Told, written
from migrator.record.states import Event, Owner, Role, State
from migrator.record.transactions import Transactions

DEFAULT_PATH = Path("/var/lib/migrator/journal.db")
KEPT = 20  # ended migrations of a container; older ones are forgotten when the next begins


@dataclasses.dataclass(frozen=True)
class Record:
    """One event: `step` with `phase` begin, done or failed; `time` is Unix time in seconds."""

    time: float
    step: str
    phase: str
    detail: dict[str, Any]  # all of it, as `--json` shows it
    told: Told  # the part of it that concerns steps


class AlreadyRecorded(Exception):
    """A migration of that id and role is recorded: another process has been faster."""


class Migration(Recorded):
    """One migration as this host sees it. Attributes reflect the last write made through this object."""

    def __init__(self, journal: Journal, row: sqlite3.Row) -> None:
        super().__init__(row["detail"], journal.path)
        self.journal = journal
        self.id: str = row["id"]
        self.role = Role(row["role"])
        self.name: str = row["name"]
        self.lxcpath = Path(row["lxcpath"])
        self.peer: str = row["peer"]  # as given with -d on the source; the source's host name on the destination
        self.state = State(row["state"])
        self.owner = Owner(row["owner"])
        self.created: float = row["created"]
        self.updated: float = row["updated"]

    @property
    def journal_path(self) -> Path:
        return self.journal.path

    @property
    def other_name(self) -> str:
        """The container's name on the other host."""
        return self.begun.other_name or self.name

    @property
    def caller(self) -> str:
        """Who began it, in the form of `grant.Grant.caller`."""
        return self.consent.caller

    @property
    def ended(self) -> bool:
        return self.state in states.ENDED

    def was_ended_by(self, process: Process) -> bool:
        """Whether this process of the current boot ended it."""
        return self.ending.ended_by == (boot_clock.BOOT_ID.read_text().strip(), *process)

    @property
    def never_began(self) -> bool:
        """The source gave it up before this host had heard of it; recorded so that nothing begins it any more."""
        return self.begun.never_began

    @property
    def owes(self) -> bool:
        """Rolled back, by force or before the token was offered, without the destination having heard of it yet."""
        return self.ending.abandoned is False

    @property
    def may_be_asked_for(self) -> bool:
        """It ended without the word of the other host, which may come back and must not be told that nobody knows it.

        The same holds if it was finished by force, until the source has ended its copy and said so.
        """
        return self.owes or (self.state is State.FINISHED and self.ending.forced)

    @property
    def ticket(self) -> str:
        """What the destination made up when it recorded this, for the source to learn; see `resume_rules.is_known`."""
        return self.begun.ticket

    @property
    def memory(self) -> bool:
        """Whether its memory moves along; False with --no-memory."""
        return self.begun.memory

    @property
    def still_at(self) -> float:
        """On the source: when it was frozen, or stopped with --no-memory; Unix time in seconds, 0 for never."""
        return (self.still.frozen_at if self.memory else self.still.stopped_at) or 0.0

    @property
    def still_since(self) -> float:
        """On the source: the same by time.monotonic(), which starts anew at each boot; 0 for never."""
        return self.still.still_monotonic

    def move(self, event: Event, **detail: Any) -> None:
        """Take the step that `event` names in the state machine, durably; `detail` is merged into the record.

        Each key must be a field of a part in `migrator.record.detail`; raises TypeError for others.

        An end that is requested again is recorded `anew`: see `note`.
        """
        new = states.after(self.role, self.state, event)
        again = new is self.state and event in (Event.FINISHED, Event.ABANDON)
        self._write(new, states.owner(new), str(event), "done", written(detail), anew=again)

    def refresh(self) -> None:
        """Reload what is on record: an exception may have come between a write and this object's update."""
        self.journal.end_unfinished()
        (row,) = self.journal.rows(
            "SELECT state, owner, detail FROM migrations WHERE id = ? AND role = ?", self.id, self.role)
        self.state, self.owner = State(row["state"]), Owner(row["owner"])
        self._take_over(row["detail"])

    def note(self, step: str, *, anew: bool = False, **detail: Any) -> None:
        """Record something without a change of state; `detail` is merged into the record.

        With `anew`, it replaces the last event if that is of the same step: for what the other host can cause to be
        recorded over and over.
        """
        self._write(self.state, self.owner, step, "done", written(detail), anew=anew)

    @contextlib.contextmanager
    def step(self, step: str, *, must_be_recorded: bool = True,
             end_must_be: bool = True) -> Iterator[Told]:
        """Record that `step` begins and how it ended; what the block fills in is recorded along with it.

        If the record cannot be written, the step is not taken; unless `must_be_recorded` is off, for a step that gives
        something back, which then does not wait for whoever has the journal locked either. `end_must_be` is off for a
        step that lets something run: only its beginning must be on record, and what runs is not ended for want of a
        record.
        """
        record = self._event if must_be_recorded else self._event_at_once
        record(step, "begin", {})
        told = Told()
        try:
            yield told
        except BaseException as error:
            text = str(error) if isinstance(error, DocumentedError) else repr(error)
            self._event_if_possible(step, "failed", {"reason": text[:2000]})
            raise
        (record if end_must_be else self._event_if_possible)(step, "done", told.to_json())

    def _event_at_once(self, step: str, phase: str, detail: dict[str, Any]) -> None:
        with self.journal.hurried():
            self._event_if_possible(step, phase, detail)

    def others(self) -> list[Migration]:
        """The other migrations of this container on this host, oldest first."""
        found = [each for each in self.journal.all(self.name) if names.same_path(each.lxcpath, self.lxcpath)]
        return [each for each in found if (each.id, each.role) != (self.id, self.role)]

    def events(self) -> list[Record]:
        """What happened, oldest first."""
        rows = self.journal.rows(
            "SELECT time, step, phase, detail FROM events WHERE id = ? AND role = ? ORDER BY number", self.id, self.role
        )
        return [Record(row["time"], row["step"], row["phase"], *self._told(row["detail"])) for row in rows]

    def length(self) -> tuple[int, int]:
        """How many events are recorded, and the size in bytes of what they say."""
        ((count, size),) = self.journal.rows(
            "SELECT count(*), total(length(detail)) FROM events WHERE id = ? AND role = ?", self.id, self.role)
        return count, int(size)

    def _event(self, step: str, phase: str, detail: dict[str, Any]) -> None:
        with self.journal.transaction(synced=False) as db:  # a sync takes long, and a container may be frozen
            self._insert_event(db, time.time(), step, phase, detail)

    def _event_if_possible(self, step: str, phase: str, detail: dict[str, Any]) -> None:
        try:
            self._event(step, phase, detail)
        except JournalBroken as error:
            log.warning(f"The journal could not record that {step} is {phase}: {error}")

    def _write(self, state: State, owner: Owner, step: str, phase: str, detail: dict[str, Any], *,
               anew: bool = False) -> None:
        now = time.time()
        merged = self._keys | detail
        if state in states.ENDED and not self.ended:
            merged["ended_by"] = _this_process()
        with self.journal.transaction() as db:
            db.execute(
                "UPDATE migrations SET state = ?, owner = ?, detail = ?, updated = ? WHERE id = ? AND role = ?",
                (state, owner, json.dumps(merged), now, self.id, self.role),
            )
            if anew:
                db.execute("DELETE FROM events WHERE step = ? AND number = "
                           "(SELECT max(number) FROM events WHERE id = ? AND role = ?)", (step, self.id, self.role))
            self._insert_event(db, now, step, phase, {"state": state} | detail)
        self.state, self.owner, self.updated = state, owner, now
        self._know(merged)

    def _insert_event(
        self, db: sqlite3.Connection, now: float, step: str, phase: str, detail: dict[str, Any]
    ) -> None:
        db.execute(
            "INSERT INTO events (id, role, time, step, phase, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (self.id, self.role, now, step, phase, json.dumps(detail)),
        )


def _this_process() -> list[Any]:
    """Boot id, pid and start time: together these never identify another process."""
    return [boot_clock.BOOT_ID.read_text().strip(), *Process.current()]


class Journal(Transactions):
    """The migrations of a host, in an open journal."""

    def create(
        self, *, id: str, role: Role, name: str, lxcpath: Path, peer: str, event: Event, **detail: Any
    ) -> Migration:
        """A new migration, in the state that `event` leads to from nothing; recorded with its event or not at all.

        Raises AlreadyRecorded.
        """
        migration = self._record(id=id, role=role, name=name, lxcpath=lxcpath, peer=peer, event=event,
                                 detail=written(detail))
        try:
            self._forget_old(migration)
        except JournalBroken as error:  # the next migration will do it
            log.warning(f"What has ended long ago could not be forgotten: {error}")
        return migration

    def _record(self, *, id: str, role: Role, name: str, lxcpath: Path, peer: str, event: Event,
                detail: dict[str, Any]) -> Migration:
        now = time.time()
        state = states.after(role, None, event)
        with self.transaction() as db:
            if db.execute("SELECT 1 FROM migrations WHERE id = ? AND role = ?", (id, role)).fetchone():
                raise AlreadyRecorded(id)
            db.execute(
                "INSERT INTO migrations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (id, role, name, str(lxcpath), peer, state, states.owner(state), json.dumps(detail), now, now),
            )
            (row,) = db.execute("SELECT * FROM migrations WHERE id = ? AND role = ?", (id, role)).fetchall()
            migration = Migration(self, row)
            migration._insert_event(db, now, str(event), "done", {"state": state})
        return migration

    def never_begin(self, *, id: str, name: str, lxcpath: Path, peer: str, caller: str) -> Migration:
        """Record that an attempt which this host has never heard of must not begin; see `Migration.never_began`.

        That takes no lock on the container, because it says nothing about it; a `begin` of the same id in progress
        finds the id already recorded. Raises AlreadyRecorded if the `begin` was faster.
        """
        migration = self._record(id=id, role=Role.DESTINATION, name=name, lxcpath=lxcpath, peer=peer,
                                 event=Event.ABANDON, detail={"never_began": True, "caller": caller})
        migration.move(Event.ABANDONED)
        for each in [each for each in self._like(migration, self._recorded(name)) if each.never_began][KEPT:]:
            self.forget(each)
        return migration

    @staticmethod
    def _like(migration: Migration, recorded: list[Migration]) -> list[Migration]:
        """Those of the same place that the same caller began, newest first: no other caller's make way for it."""
        return [each for each in reversed(recorded)
                if names.same_path(each.lxcpath, migration.lxcpath) and each.caller == migration.caller]

    def _forget_old(self, begun: Migration) -> None:
        """Forget what ended long ago, except for migrations whose snapshots the next one can start from.

        Those are the newest ones that succeeded, and attempts that have kept a base. One that left a last copy stays as
        well.
        """
        ended = [each for each in self._like(begun, self.all(begun.name)) if each.ended]
        succeeded = next((each.id for each in ended if each.state is State.FINISHED), "")
        for migration in ended[KEPT:]:
            keeps = migration.copy.kept or migration.copy.last_copy
            if migration.id != succeeded and not migration.may_be_asked_for and not keeps:
                self.forget(migration)

    def by_id(self, id: str, role: Role) -> Migration | None:
        rows = self.rows("SELECT * FROM migrations WHERE id = ? AND role = ?", id, role)
        return Migration(self, rows[0]) if rows else None

    def unused_id(self) -> str:
        """An id for a migration that begins here: unused in both roles, because what is named by an id does not show
        the role.
        """
        while True:
            id = names.new_migration_id()
            if not any(self.by_id(id, role) for role in Role):
                return id

    def latest(self, name: str, lxcpath: Path, role: Role | None = None) -> Migration | None:
        """The newest migration of a container on this host, in one role or in either."""
        found = [each for each in self.all(name)
                 if role in (None, each.role) and names.same_path(each.lxcpath, lxcpath)]
        return found[-1] if found else None

    def all(self, name: str | None = None) -> list[Migration]:
        """Every migration that has begun here, in the order in which they were recorded."""
        return [each for each in self._recorded(name) if not each.never_began]

    def _recorded(self, name: str | None = None) -> list[Migration]:
        rows = self.rows("SELECT * FROM migrations WHERE ? IS NULL OR name = ? ORDER BY rowid", name, name)
        return [Migration(self, row) for row in rows]

    def forget(self, migration: Migration) -> None:
        """Remove a migration that has ended, with its events."""
        with self.transaction() as db:
            for table in ("migrations", "events"):
                db.execute(f"DELETE FROM {table} WHERE id = ? AND role = ?", (migration.id, migration.role))  # noqa: S608
