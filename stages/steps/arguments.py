# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments that several commands take, and the records made from them (`stages.steps.options`)."""

from __future__ import annotations

import argparse
import os

from migrator.base import names
from migrator.errors.containers import InvalidName
from migrator.errors.this_host import NotRoot
from migrator.remote.destination import ConnectOptions
from stages.steps.options import EndOptions, MoveRequest, NamedContainer, TargetOptions

STATUSES = """\
exit status:
  0      done
  1      done, with warnings (check)
  2      wrong usage, or an error without a number of its own
  3      failed after the freeze; the container was thawed (--no-memory: started again) and keeps running on the source
  4      failed after the freeze; the container is still frozen (--no-memory: stopped) on the source
  5      failed after the freeze; whether the destination may run it is unknown, so it stays frozen
  10-99  one cause each; the container is where it was: see migrator(1) or docs/errors.md
  128+N  ended by signal N
"""


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="results, progress and errors as JSON (docs/json.md)")
    group.add_argument("-v", "--verbose", action="store_true", help="report each step and how long it takes")
    group.add_argument("-q", "--quiet", action="store_true", help="report only problems")
    group.add_argument("--debug", action="store_true", help="show every program that is run, and tracebacks")


def add_container(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The container's name, positional or with -n, and -P, as with the lxc-* tools."""
    parser.add_argument("name_word", metavar="NAME", nargs="?", help="name of the container")
    parser.add_argument("-n", "--name", metavar="NAME", help="the same, as with the lxc-* tools")
    parser.add_argument("-P", "--lxcpath", metavar="PATH", help="where this host keeps its containers")
    parser.set_defaults(name_required=required)


def add_destination(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """-d and how to reach that host."""
    parser.add_argument(
        "-d", "--destination", metavar="[USER@]HOST[:PORT]|peer:NAME", required=required,
        help="the host to move to" + ("" if required else " (default: the one that the migration began with)"),
    )
    parser.add_argument("--accept-new-host-key", action="store_true",
                        help="trust the SSH key of a host that is not yet in known_hosts, and add it")
    parser.add_argument("--timeout", metavar="SECONDS", type=positive, default=ConnectOptions.timeout,
                        help="drop the connection after SECONDS of silence (default: %(default)g)")
    add_path(parser)


def add_path(parser: argparse.ArgumentParser) -> None:
    """--path, for commands that open tunnels."""
    parser.add_argument("--path", choices=("prefer-direct", "direct-only", "relay-only"), default="prefer-direct",
                        help="how to reach a paired peer (default: %(default)s)")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print what both hosts would run, without running it")


def add_request(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Which container is to go where, and as what: all that `request` reads, but for --no-memory."""
    add_container(parser)
    add_destination(parser, required=required)
    parser.add_argument("--destination-lxcpath", metavar="PATH", help="where the destination keeps its containers")
    parser.add_argument("--new-name", metavar="NEW", help="name of the container on the destination; its own host"
                        " name changes only when it is restarted")
    parser.add_argument("--map-bridge", metavar="HERE=THERE", action="append", default=[], type=bridge_pair,
                        help="attach what is on bridge HERE to bridge THERE on the destination (can be repeated)")


def add_force(parser: argparse.ArgumentParser, *, force: str, off: str) -> None:
    """--force and --machine-is-off, with what each of them means to the command."""
    parser.add_argument("--force", metavar="ID", nargs="?", const="", help=force)
    parser.add_argument("--machine-is-off", action="store_true", help=off)


def bridge_pair(text: str) -> tuple[str, str]:
    """`here=there`, for argparse."""
    here, equals, there = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError("must be HERE=THERE")
    try:
        return names.interface_name(here), names.interface_name(there)
    except InvalidName as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> float:
    """A number of seconds above zero, for argparse."""
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("must be above zero")
    return value


# --- what is made of them -------------------------------------------------------------------------------------


def container(args: argparse.Namespace) -> NamedContainer:
    """Which container is meant; raises InvalidName, and exits with a usage error if none was named."""
    name = name_of(args)
    if not name:
        args.usage_error("the name of a container is missing")
    if args.lxcpath:
        names.lxcpath(args.lxcpath)
    return NamedContainer(name, args.lxcpath)


def name_of(args: argparse.Namespace) -> str:
    """A container's name; "" if none was given. Raises InvalidName."""
    if args.name and args.name_word and args.name != args.name_word:
        args.usage_error("two different names were given")
    name = args.name or args.name_word
    return names.container_name(name) if name else ""


def connect(args: argparse.Namespace) -> ConnectOptions:
    """How to reach the other host, from the arguments of `add_destination`."""
    return ConnectOptions(timeout=args.timeout, accept_new_host_key=args.accept_new_host_key, path=args.path)


def target(args: argparse.Namespace) -> TargetOptions:
    """What the container becomes on the destination; raises InvalidName."""
    new_name = names.container_name(args.new_name) if args.new_name else ""
    return TargetOptions(args.destination_lxcpath, new_name, tuple(args.map_bridge))


def request(args: argparse.Namespace) -> MoveRequest:
    """What is to move where; raises InvalidName."""
    return MoveRequest(container(args), args.destination or "", connect(args), target(args), args.no_memory)


def ending(args: argparse.Namespace) -> EndOptions:
    """How a migration is to be ended, from the arguments of `add_destination`, `add_force` and `add_dry_run`."""
    return EndOptions(container(args), args.destination, connect(args), args.force, args.machine_is_off, args.dry_run)


def require_root(command: str) -> None:
    """Raise NotRoot unless this process is allowed to freeze, dump and snapshot."""
    if os.geteuid() != 0:
        raise NotRoot(command=f"migrator {command}")
