# SPDX-License-Identifier: GPL-2.0-or-later
"""Continue an interrupted migration, wherever it stands: forward, unless the destination has given it up.

On the source it runs the remaining stages, as `migrator migrate` would, over one connection. On the destination it
restores the container if that host has taken it over and still has its memory, and otherwise gives it back; then it has
the source do the rest, over SSH. Options that are not given are those of the `migrator migrate` that began it.

With --all it does this for every unfinished migration of this host. With --all --at-boot, which
migrator-resume.service uses, it only brings each container to where it may run, and leaves transfers for later.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from migrator.base import log, no_core_dump
from migrator.base.result import Result
from migrator.copies import after_crash
from migrator.errors import Interrupted
from migrator.errors.containers import NoMigration, OutOfOrder
from migrator.errors.convert import as_ours
from migrator.record import container_lock, next_commands
from migrator.record.detail import ROOT_CALLER
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.states import Role, State
from migrator.remote.destination import ConnectOptions
from stages.steps import (
    arguments,
    ask_source,
    move_arguments,
    prologue,
    resume_destination,
    resume_source,
    resumed,
    stopped_here,
)
from stages.steps.ask_source import Asking
from stages.steps.options import MAX_DOWNTIME, MOVE_OPTIONS, MoveRequest, NamedContainer

NAME = resumed.STAGE
HELP = "continue an interrupted migration"


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    container: NamedContainer | None = None  # None for every unfinished migration of this host
    destination: str | None = None  # None for the one that the migration began with
    source: str | None = None  # on the destination; None for the source's host name
    connect: ConnectOptions = dataclasses.field(default_factory=ConnectOptions)
    migration: str | None = None  # its id
    at_boot: bool = False
    no_memory: bool = False
    # The fields of MoveOptions that were given.
    given: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}))

    def request(self, migration: Migration) -> MoveRequest:
        """What is to move where, for a migration from here."""
        container = NamedContainer(migration.name, self.container.given_lxcpath if self.container else None)
        return MoveRequest(container, self.destination or migration.peer, self.connect, no_memory=self.no_memory)

    @property
    def asking(self) -> Asking:
        """How to ask the source, for a migration to here."""
        return Asking(self.connect, self.source, self.given.get("max_downtime", MAX_DOWNTIME),
                      among_others=self.container is None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser, required=False)
    arguments.add_destination(parser, required=False)
    parser.add_argument("-s", "--source", metavar="[USER@]HOST[:PORT]",
                        help="on the destination: how to reach the source (default: by its host name)")
    parser.add_argument(ask_source.ONLY, metavar="ID", help="only if NAME's newest migration is this one")
    parser.add_argument("--all", action="store_true", help="every unfinished migration of this host")
    parser.add_argument("--at-boot", action="store_true",
                        help="with --all: only bring each container to where it may run")
    move_arguments.add_options(parser)
    parser.set_defaults(**dict.fromkeys(MOVE_OPTIONS))


def options(args: argparse.Namespace) -> ResumeOptions:
    name = arguments.name_of(args)
    if args.all and (name or args.migration):
        args.usage_error("--all cannot be combined with a name" if name else f"{ask_source.ONLY} needs a name")
    container = None if args.all else arguments.container(args)
    if args.at_boot and container:
        args.usage_error("--at-boot needs --all")
    given = {key: value for key, value in vars(args).items() if key in MOVE_OPTIONS and value is not None}
    if args.ignore is not None:
        given["ignore"] = tuple(args.ignore)
    return ResumeOptions(container, args.destination, args.source, arguments.connect(args), args.migration,
                              args.at_boot, args.no_memory, MappingProxyType(given))


def run(options: ResumeOptions) -> Result:
    arguments.require_root(NAME)
    if options.container:
        return one(options, options.container.name, options.container.lxcpath)
    if options.at_boot:  # it is a service
        no_core_dump.of_this()
    return every(options)


def one(options: ResumeOptions, name: str, lxcpath: Path, *, at_boot: bool = False) -> Result:
    """Continue the newest migration of a container, or get the container to run wherever it may."""
    with Journal(DEFAULT_PATH) as journal:
        with prologue.locked_for(journal, name, lxcpath):
            migration = journal.latest(name, lxcpath)
            if migration is None:
                raise NoMigration(name=name, stage=NAME, next=f"migrator migrate {name} -d HOST")
            if options.migration not in (None, migration.id):
                raise OutOfOrder(stage=NAME, missing=f"the newest migration of {name} here is {migration.id}",
                                 next=next_commands.command("status", migration))
            if migration.role is Role.SOURCE:
                return resume_source.go_on(options.request(migration), options.given, journal, migration,
                                           at_boot=at_boot)
            done = resume_destination.go_on(options.asking, migration)
            stopped = stopped_here.is_stopped(migration)
        if _is_all(migration, at_boot=at_boot):
            return done
        done = ask_source.act(options.asking, migration, done)  # this needs the lock on this host
        migration.refresh()
        if stopped and migration.state is State.FINISHED and not migration.arrived.given_way:
            return Result(done.data, f"{done.text} {after_crash.where(migration)}")
        return done


def _is_all(migration: Migration, *, at_boot: bool) -> bool:
    """Whether nothing is left that the source must do, or that it will do without being asked."""
    if migration.state is State.ABANDONED:
        return not migration.ending.given_up_here or migration.ending.source_knows
    if at_boot:  # data in transfer can wait
        return migration.state not in (State.RESTORED, State.ABANDONING)
    return migration.ended


def every(options: ResumeOptions) -> Result:
    """Each unfinished migration of this host, one after the other; a failure of one does not stop the others.

    Those from here come first, because their containers may be frozen here. Of those to here root's own come first:
    others may have begun many, and each takes a question to its source.
    """
    with Journal(DEFAULT_PATH) as journal:
        newest: dict[tuple[str, str], Migration] = {}
        for each in journal.all():
            key = (each.name, os.path.realpath(each.lxcpath))
            newest.pop(key, None)  # so that they come in the order in which they began
            newest[key] = each
        found = [each for each in newest.values()
                 if not each.ended or (each.role is Role.DESTINATION and not _is_all(each, at_boot=options.at_boot))]
    found.sort(key=lambda each: (each.role is not Role.SOURCE, each.caller != ROOT_CALLER))
    outcomes: list[dict[str, Any]] = []
    lines = []
    for migration in found:
        outcome: dict[str, Any] = {"migration": migration.id, "name": migration.name, "lxcpath": str(migration.lxcpath)}
        try:
            done = one(options, migration.name, migration.lxcpath, at_boot=options.at_boot)
            outcome |= {"status": done.status, "result": done.data}
            lines.append(done.text)
        except Interrupted:
            raise
        except Exception as error:
            ours = as_ours(error, f"{NAME} {migration.name}")
            outcome |= {"status": ours.exit_status, "error": ours.to_json()}
            log.error(str(ours))
            if ours.hint:
                log.cure(ours.hint)
            lines.append(f"{migration.name}: not done (exit status {ours.exit_status}).")
        outcomes.append(outcome)
        container_lock.check_interrupted()  # a signal may have come while that container was being given back
    with Journal(DEFAULT_PATH) as journal:  # last: it reads configurations, which can be on a file server that is gone
        for told in filter(None, map(after_crash.in_use_note, journal.all())):
            log.warning(told)
    return Result({"stage": NAME, "migrations": outcomes}, "\n".join(lines) or "There is no unfinished migration.",
                  status=worst([outcome["status"] for outcome in outcomes]))


def worst(statuses: list[int]) -> int:
    """The most serious exit status: something frozen comes first, then any failure; 0 if all is well."""
    return max(statuses, key=lambda status: (status in (3, 4, 5), status), default=0)


HANDLERS = ask_source.HANDLERS
