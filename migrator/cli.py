# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one parser made from the stages, and how results are shown."""

from __future__ import annotations

import argparse
import dataclasses
import json
from types import ModuleType
from typing import NoReturn

from migrator import __version__
from migrator.base import log
from migrator.base.result import Result
from stages.steps import arguments

DESCRIPTION = "Move a running LXC container from one host to another, its open connections included."


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are JSON if `--json` was given."""

    def error(self, message: str) -> NoReturn:
        if log.as_json:
            print(json.dumps({"error": {"code": "usage-error", "message": message, "status": 2}}))
        super().error(message)


@dataclasses.dataclass(frozen=True)
class Command:
    """What was typed: a command, and its module's record of the options."""

    stage: ModuleType
    options: object

    def run(self) -> Result | None:
        done: Result | None = self.stage.run(self.options)
        return done


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser for the whole command line; the man page and completion are made from it too.

    With the command line's first word, it has only what that needs: one command, or none of them for `--version`.
    """
    import stages

    parser = Parser(
        prog="migrator", description=DESCRIPTION, epilog=arguments.STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"migrator {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command", parser_class=Parser)
    wanted = () if command == "--version" else (command,) if command in stages.COMMANDS else stages.COMMANDS
    for stage in map(stages.load, wanted):
        sub = commands.add_parser(
            stage.NAME, help=stage.HELP, description=stage.__doc__, epilog=arguments.STATUSES,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )
        stage.add_arguments(sub)
        arguments.add_common(sub)
        sub.set_defaults(stage=stage, usage_error=sub.error)
    return parser


def parse(argv: list[str]) -> Command:
    """Parse a command line and set up the log.

    Exits on wrong usage, as argparse does; raises UsageError, and InvalidName.
    """
    log.as_json = "--json" in argv
    parser = make_parser(argv[0] if argv else None)
    args = parser.parse_args(argv)
    log.level = (log.Level.DEBUG if args.debug else log.Level.QUIET if args.quiet
                 else log.Level.VERBOSE if args.verbose else log.Level.NORMAL)
    return Command(args.stage, args.stage.options(args))


def show(result: Result) -> None:
    """Print a result to stdout."""
    if log.as_json:
        print(json.dumps(result.data))
    elif result.text and not (log.level == log.Level.QUIET and "stage" in result.data):
        # With -q, only what was asked for (status, check), not what a stage reports.
        log.show(result.text, result.paint)
