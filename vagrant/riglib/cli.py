# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of `vagrant/rig`: parser and dispatch."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from riglib import nat, network, paths, state
from riglib.errors import NotRunning, RigError
from riglib.guests import KINDS, POOL, Guest, make, probe
from riglib.hosts import HOSTS
from riglib.run import inside

EPILOG = """exit status: 0 done; 2 wrong arguments; 3 the rig failed; 4 the rig or the host is not running;
6 a program that the rig started failed; 7 the rig is held by another process.
`exec` answers with the command's own status (128+N after signal N); 125 when the rig failed, 126 or 127
when the command cannot be run or found. `probe`: 0 intact, 1 not intact.
MIGRATOR_RIG=NAME works on a rig of that name, beside the default one."""

PUT = """set -e
to=$1
[ ! -d "$to" ] || to=$to/$3
cat >"$to.rig-new"
chmod "$2" "$to.rig-new"
mv "$to.rig-new" "$to"
"""
"""Writes standard input to a file on a host, which is never visible half-written."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="rig",
        description="Two LXC hosts on one machine, to move containers between.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_rig_commands(commands)
    add_guest_commands(commands)
    return top


def add_rig_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands for the rig and its hosts."""
    up = commands.add_parser("up", help="start the rig, or bring a running one up to date")
    up.add_argument("--vm", action="store_true", help="hosta and hostb are virtual machines with Debian 13")
    up.add_argument("--cpu-b", metavar="MODEL", default="", help="with --vm: hostb's model of CPU, as QEMU names it")
    about = "with --vm: the suite that hostb's kernel is from, such as trixie-backports"
    up.add_argument("--kernel-b", metavar="SUITE", default="", help=about)
    types = f"{', '.join(nat.KINDS)}; or TYPE,{nat.NO_INPUT_DROP}"
    for side in "ab":
        about = f"the NAT that host{side} is behind: {types}"
        up.add_argument(f"--nat-{side}", metavar="TYPE", default="none", help=about)
    about = "hosts set up for tests (rig), or fresh Debian hosts with what README.md installs (readme)"
    up.add_argument("--hosts", choices=("rig", "readme"), default="rig", help=about)
    up.add_argument("--mbit", type=int, metavar="N", help="limit hosta's and hostb's links to N Mbit/s each way")

    # Parsed by enter.main_exec; here only for the help.
    commands.add_parser("exec", help="run a command on a host", usage="rig exec HOST -- COMMAND...").add_argument(
        "host", metavar="HOST", help=f"one of {', '.join(HOSTS)}"
    )

    copy = commands.add_parser("copy", help="copy a file to a host")
    copy.add_argument("file", metavar="FILE", type=Path)
    copy.add_argument("target", metavar="HOST:PATH")

    status = commands.add_parser("status", help="show what is running; exit status 4 if the rig is not up")
    status.add_argument("--json", action="store_true")

    again = commands.add_parser("reset", help="reset a virtual machine, and wait until it has booted")
    again.add_argument("host", metavar="HOST", help="hosta or hostb")

    commands.add_parser("down", help="take the rig down and remove every trace of it")


def add_guest_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands for the containers to move."""
    guest = commands.add_parser("guest", help="make and start a container to move")
    guest.add_argument("host", metavar="HOST", help="hosta or hostb")
    guest.add_argument("name", metavar="NAME")
    guest.add_argument("kind", metavar="KIND", choices=sorted(KINDS), help=", ".join(sorted(KINDS)))
    own = ", ".join(f"{name}: {kind.address}" for name, kind in KINDS.items() if kind.address)
    guest.add_argument("--ip", metavar="A", help=f"address on lxcbr0 ({own}; others: no network without it)")
    guest.add_argument("--size", type=int, metavar="MIB", help="data to hold (redis: 64, memory: 256)")
    guest.add_argument("--dirty", type=float, metavar="MIB", help="memory: rewritten each second (1)")
    guest.add_argument("--unprivileged", action="store_true", help="in a user namespace, with ids from 100000 on")
    guest.add_argument("--config", action="append", default=[], metavar="LINE", help="one more line of configuration")

    asked = commands.add_parser("probe", help="ask a guest whether its memory and disk are intact; prints JSON")
    asked.add_argument("host", metavar="HOST")
    asked.add_argument("name", metavar="NAME")
    asked.add_argument("--lxcpath", default=POOL)
    asked.add_argument("--quick", action="store_true", help="do not verify all of the memory")


def main(arguments: Sequence[str]) -> int:
    """Run one command; every failure becomes one line and an exit status here."""
    options = parser().parse_args(arguments)
    try:
        check_root()
        return COMMANDS[options.command](options)
    except RigError as error:
        print(f"rig: {error}" + (f" (cure: {error.hint})" if error.hint else ""), file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130


def check_root() -> None:
    """Refuse to start without what every command needs."""
    if os.geteuid() != 0:
        raise RigError("the rig needs root", hint="sudo vagrant/rig ...")


def up(options: argparse.Namespace) -> int:
    """Start the rig."""
    # Only this command needs the builders.
    from riglib.bringup import RIG, VM, bring_up

    if options.vm and options.hosts != RIG:
        raise RigError("--vm and --hosts exclude each other", hint="leave out one of them")
    if (options.cpu_b or options.kernel_b) and not options.vm:
        raise RigError("--cpu-b and --kernel-b are for virtual machines", hint="--vm")
    if options.mbit is not None:
        network.check_mbit(options.mbit)
    nats = (nat.parse(options.nat_a), nat.parse(options.nat_b))
    kind = VM if options.vm else options.hosts
    bring_up(*nats, options.mbit, kind, cpu_b=options.cpu_b, kernel_b=options.kernel_b)
    return 0


def copy(options: argparse.Namespace) -> int:
    """Copy a file to a host, with its permissions."""
    host, colon, path = options.target.partition(":")
    if not colon or not path:
        raise RigError(f"'{options.target}' is not HOST:PATH", hint="rig copy FILE hosta:/tmp/FILE")
    if not options.file.is_file():
        raise RigError(f"no file {options.file}", hint=f"ls -l {options.file}")
    paths.host_pid(host)
    mode = f"{options.file.stat().st_mode & 0o7777:o}"
    inside(host, ["sh", "-c", PUT, "sh", path, mode, options.file.name], file=options.file, timeout=600)
    return 0


def status(options: argparse.Namespace) -> int:
    """Show what is running."""
    loaded = state.load()
    addresses = loaded.get("addresses", {})
    running = {host: state.alive(host) for host in HOSTS}
    complete = loaded.get("phase") == "up" and all(running.values())
    if options.json:
        told = {"instance": paths.INSTANCE, "up": complete, "phase": loaded.get("phase", "down")}
        told |= loaded.get("options", {})
        told["hosts"] = {host: {"running": running[host], "addresses": addresses.get(host, [])} for host in HOSTS}
        print(json.dumps(told, indent=2))
    elif not loaded:
        print(f"rig '{paths.INSTANCE}': down")
    else:
        print(f"rig '{paths.INSTANCE}': {'up' if complete else 'incomplete (cure: vagrant/rig up)'}")
        for host in HOSTS:
            print(f"  {host:<11} {'running' if running[host] else 'dead':<8} {' '.join(addresses.get(host, []))}")
    return 0 if complete else NotRunning.status


def reset(options: argparse.Namespace) -> int:
    """Reset a virtual machine."""
    from riglib import machines

    if not paths.machine_pid(options.host):
        raise RigError(f"{options.host} is no virtual machine", hint="vagrant/rig up --vm")
    machines.reset(options.host)
    return 0


def make_guest(options: argparse.Namespace) -> int:
    """Make and start a container to move."""
    kind = KINDS[options.kind]
    make(
        Guest(
            options.host,
            options.name,
            options.kind,
            address=kind.address if options.ip is None else options.ip,
            size=kind.size if options.size is None else options.size,
            dirty=kind.dirty if options.dirty is None else options.dirty,
            extra=options.config,
            unprivileged=kind.unprivileged or options.unprivileged,
        )
    )
    return 0


def probe_guest(options: argparse.Namespace) -> int:
    """Print what a guest reports about itself."""
    arguments = [options.name, "--lxcpath", options.lxcpath, *(["--quick"] if options.quick else [])]
    told = probe(options.host, arguments)
    print(told, end="")
    return 0 if json.loads(told)["intact"] else 1


def down(_options: argparse.Namespace) -> int:
    """Take the rig down."""
    with state.lock(Path(paths.LOCK), remove=True):
        state.clean(HOSTS)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": up,
    "copy": copy,
    "status": status,
    "guest": make_guest,
    "probe": probe_guest,
    "reset": reset,
    "down": down,
}
