# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments that several of the commands which move a container have in common."""

from __future__ import annotations

import argparse

from migrator.transfer import plan
from stages.steps import arguments
from stages.steps.options import MoveOptions


def add_no_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-memory", action="store_true", default=False,
                        help="for what cannot be dumped: stop the container here, and start it there from its disk")


def add_stop_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stop-timeout", metavar="SECONDS", type=arguments.positive, default=plan.STOP_TIMEOUT,
                        help="with --no-memory: kill what has not ended after SECONDS (default: 60)")


def add_ignore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ignore", metavar="CODE", action="append", default=[],
                        help="continue despite the finding CODE of `migrator check` (can be repeated)")


def rate(text: str) -> int:
    """Bytes per second with an optional suffix k, M or G (powers of 1024), for argparse."""
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
    value = float(text.rstrip("kKmMgG")) * factor
    if not 1 <= value < 1 << 50:
        raise argparse.ArgumentTypeError("must be above zero")
    return int(value)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of MoveOptions, and --no-memory, which is recorded on both hosts."""
    add_no_memory(parser)
    add_stop_timeout(parser)
    parser.add_argument("--max-downtime", metavar="SECONDS", type=arguments.positive, default=MoveOptions.max_downtime,
                        help="thaw here and give up if the container is frozen for longer (default: 120)")
    parser.add_argument("--max-rounds", metavar="N", type=rounds, default=MoveOptions.max_rounds,
                        help="send the disk at most this many times before the freeze (default: 5)")
    parser.add_argument("--bwlimit", metavar="RATE", type=rate,
                        help="send at most RATE bytes a second (k, M, G) while the container runs")
    parser.add_argument("--reconnect", metavar="SECONDS", type=seconds, default=MoveOptions.reconnect,
                        help="if the connection is lost, keep trying for SECONDS from the last progress; 0: give up at "
                        "once (default: 300)")
    add_ignore(parser)
    copy = parser.add_mutually_exclusive_group()
    copy.add_argument("--keep-source", dest="undefine_source", action="store_false", default=False,
                      help="keep the stopped, fenced copy here (the default)")
    copy.add_argument("--undefine-source", dest="undefine_source", action="store_true",
                      help="remove the copy here once the container runs there")


def seconds(text: str) -> float:
    """A number of seconds, for argparse."""
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def rounds(text: str) -> int:
    """A number of rounds, for argparse."""
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError("must be from 1 to 100")
    return value
