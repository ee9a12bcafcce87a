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
from types import MappingProxyType

from migrator.base import no_core_dump
from migrator.base.result import Result
from stages.steps import arguments, ask_source, heal, move_arguments
from stages.steps.options import MOVE_OPTIONS

NAME = "resume"
HELP = "continue an interrupted migration"


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


def options(args: argparse.Namespace) -> heal.ResumeOptions:
    name = arguments.name_of(args)
    if args.all and (name or args.migration):
        args.usage_error("--all cannot be combined with a name" if name else f"{ask_source.ONLY} needs a name")
    container = None if args.all else arguments.container(args)
    if args.at_boot and container:
        args.usage_error("--at-boot needs --all")
    given = {key: value for key, value in vars(args).items() if key in MOVE_OPTIONS and value is not None}
    if args.ignore is not None:
        given["ignore"] = tuple(args.ignore)
    return heal.ResumeOptions(container, args.destination, args.source, arguments.connect(args), args.migration,
                              args.at_boot, args.no_memory, MappingProxyType(given))


def run(options: heal.ResumeOptions) -> Result:
    arguments.require_root(NAME)
    if options.container:
        return heal.one(options, options.container.name, options.container.lxcpath)
    if options.at_boot:  # a service
        no_core_dump.of_this()
    return heal.every(options)


HANDLERS = heal.HANDLERS
