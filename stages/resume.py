"""Carry on a migration that was broken off, wherever it stands: forward, unless the destination has given it up.

On the source it takes the stages that are left, as `migrator migrate` would, over one connection. On the destination it
restores the container where that host has taken it over, and otherwise says what to type on the source. Options that
are not given are those of the `migrator migrate` that began it.
"""

from __future__ import annotations

import argparse

from migrator import advice, cli, lxc
from migrator.cli import Result
from migrator.errors import NoMigration, OutOfOrder
from migrator.journal import DEFAULT_PATH, Journal, Migration
from migrator.states import Role, State
from stages import migrate, restore_dump
from stages.drive import Drive, locked_for

NAME = "resume"
HELP = "carry on a migration that was broken off"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add_container(parser)
    cli.add_destination(parser, required=False)
    migrate.add_options(parser)
    parser.set_defaults(**dict.fromkeys(migrate.OPTIONS))


def run(args: argparse.Namespace) -> Result:
    cli.require_root(NAME)
    name, lxcpath = cli.container_of(args)
    with Journal(DEFAULT_PATH) as journal, locked_for(journal, name, lxcpath):
        migration = journal.latest(name, lxcpath)
        if migration is None:
            raise NoMigration(name=name, stage=NAME, next=f"migrator migrate {name} -d HOST")
        if migration.ended:
            return Result({"migration": migration.id, "name": name, "stage": NAME, "already": True},
                          f"The migration of {name} has ended ({migration.state}): there is nothing to carry on.")
        if migration.role is Role.SOURCE:
            complete(args, migration)
            return Drive(args, journal, lxc.Container(name, lxcpath), migration).run()
        if migration.state in (State.OWNED, State.RESTORING):
            return restore_dump.carry_out(migration, args.max_downtime or 120.0)
        raise OutOfOrder(stage=f"{NAME} on this host", missing="the source decides what comes next",
                         next=advice.command(f"{NAME}@source", migration))


def complete(args: argparse.Namespace, migration: Migration) -> None:
    """Fill in what was not given: from the migration's beginning, or else the defaults of `migrator migrate`."""
    stored = {"max_downtime": 120.0, "max_rounds": 5, "reconnect": 300.0, "ignore": [],
              **(migration.detail.get("options") or {})}
    for key in migrate.OPTIONS:
        if getattr(args, key) is None:
            setattr(args, key, stored.get(key))
    args.destination = args.destination or migration.peer
    args.dry_run, args.map_bridge, args.destination_lxcpath = False, [], None
