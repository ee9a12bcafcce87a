# SPDX-License-Identifier: GPL-2.0-or-later
"""Carry on a migration that was broken off, wherever it stands: forward, unless the destination has given it up.

On the source it takes the stages that are left, as `migrator migrate` would, over one connection. On the destination it
restores the container where that host has taken it over and still has its memory, or else gives it back; then it has
the source do the rest, over SSH. Options that are not given are those of the `migrator migrate` that began it.

With --all it does so for every unfinished migration of this host. With --all --at-boot, as migrator-resume.service has
it, it only brings each container to where it may run, and leaves data that were under way for later.
"""

from __future__ import annotations

import argparse

from migrator.base import no_core_dump
from migrator.base.result import Result
from stages import migrate
from stages.steps import arguments, ask_source, heal

NAME = "resume"
HELP = "carry on a migration that was broken off"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser, required=False)
    arguments.add_destination(parser, required=False)
    parser.add_argument("-s", "--source", metavar="[USER@]HOST[:PORT]",
                        help="typed on the destination: how to reach the source (default: by its host name)")
    parser.add_argument(ask_source.ONLY, metavar="ID", help="only if NAME's newest migration is that one")
    parser.add_argument("--all", action="store_true", help="every unfinished migration of this host")
    parser.add_argument("--at-boot", action="store_true",
                        help="with --all: only bring each container to where it may run")
    migrate.add_options(parser)
    parser.set_defaults(**dict.fromkeys(migrate.OPTIONS))


def run(args: argparse.Namespace) -> Result:
    arguments.require_root(NAME)
    if args.all:
        if args.name or args.migration:
            args.usage_error("--all does not go with a name" if args.name else f"{ask_source.ONLY} goes with a name")
        if args.at_boot:  # a service
            no_core_dump.of_this()
        return heal.every(args)
    if not args.name:
        args.usage_error("the name of a container is missing")
    if args.at_boot:
        args.usage_error("--at-boot goes with --all")
    return heal.one(args, *arguments.container_of(args))


HANDLERS = heal.HANDLERS
