# SPDX-License-Identifier: GPL-2.0-or-later
"""Give up a migration: the container keeps running on the source as if nothing had happened.

The destination first records, for good, that it will never let this attempt run; then the source thaws the container,
and both hosts remove what the attempt has left on them. Without an answer from the destination the source thaws only
if the container was never handed over. Once the container runs on the destination, the only way back is a new move.
"""

from __future__ import annotations

import argparse

from migrator.base.result import Result
from stages.steps import abandon, arguments, roll_back
from stages.steps.options import EndOptions

NAME = "rollback"
HELP = "give up a migration and let the container keep running"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_destination(parser, required=False)
    arguments.add_force(
        parser, force="without asking the destination, if that host is lost for good. Leave out the migration's ID to"
                      " see what that risks",
        off="with --force ID: you have made sure that the destination is off and stays off; needed if that cannot be"
            " seen from here, as behind a jump host, with a peer, or when another host answers under its name")
    arguments.add_dry_run(parser)


def options(args: argparse.Namespace) -> EndOptions:
    return arguments.ending(args)


def run(options: EndOptions) -> Result:
    arguments.require_root(NAME)
    return roll_back.run(options)


HANDLERS = abandon.HANDLERS
