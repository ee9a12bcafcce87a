# SPDX-License-Identifier: GPL-2.0-or-later
"""Show what keeps a running container with systemd from being moved, and restart the services that do.

CRIU cannot dump some of what systemd gives its services. `migrate` and `create-dump` deal with part of that themselves,
right before the freeze, and nobody notices. For the rest, services have to be restarted without it. With --yes, a
drop-in is put into /run/systemd/system/service.d of the container, and the services that are listed are restarted, no
others. The drop-in is in memory: it moves along with the container, and is gone after the next boot.

With --for-good, another drop-in is put on the container's disk, and from its next start on the container is denied bpf
and io_uring, which CRIU cannot dump either (Node.js works without io_uring). For that, the container's configuration
names a copy of its seccomp profile with these rules added.

Safe to repeat. --undo takes all of this back: services have their sandboxes again from their next start on.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

from migrator.base import printable
from migrator.base.result import Result
from migrator.config import seccomp_profile
from migrator.errors import EXIT_OK, EXIT_WARNINGS
from migrator.errors.containers import ContainerNotRunning
from migrator.errors.jobs import Blocked
from migrator.guest import live_steps, sessions, units
from migrator.host import cgroups, lxc
from migrator.preflight import findings
from migrator.preflight.checks.case import LIVE
from migrator.preflight.findings import Finding, Severity
from migrator.record.journal import DEFAULT_PATH, Journal
from stages.steps import arguments, examine, prologue
from stages.steps.options import NamedContainer, TargetOptions

NAME = "prepare-guest"
HELP = "restart the services that keep a container from being moved (on its host)"
LOOKS, PAUSE = 10, 0.2  # how often, and after how many seconds, it is looked again at what was restarted


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    container: NamedContainer
    yes: bool = False
    for_good: bool = False
    undo: bool = False
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    parser.add_argument("--yes", action="store_true", help="do it; without this option, only show what would be done")
    parser.add_argument("--for-good", action="store_true", help="with --yes: make it outlast the container's next boot")
    parser.add_argument("--undo", action="store_true", help="take all of it back")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, even with --yes or --undo")


def options(args: argparse.Namespace) -> PrepareOptions:
    return PrepareOptions(arguments.container(args), args.yes, args.for_good, args.undo, args.dry_run)


def run(options: PrepareOptions) -> Result:
    arguments.require_root(NAME)
    name, lxcpath = options.container.name, options.container.lxcpath
    container = lxc.Container(name, lxcpath)
    with Journal(DEFAULT_PATH) as journal, prologue.locked_for(journal, name, lxcpath):
        if (state := container.state) != "RUNNING":
            raise ContainerNotRunning(name=name, lxcpath=lxcpath, state=state)
        if options.undo:
            return _undo(container, dry_run=options.dry_run)
        found = _look(container)
        todo = sorted({finding.unit for finding in found if _blocks(finding) and finding.unit})
        opened = sessions.found(cgroups.processes(str(container.cgroup)))
        do = options.yes and not options.dry_run
        refused = seccomp_profile.refuse(container.config_file) if do and options.for_good else None
        systemd = live_steps.is_systemd(container.init_pid)
        if do and (todo or (options.for_good and systemd)):
            units.restart(container, todo, for_good=options.for_good)
            found = _settled(container)
    return _result(options.container, found, todo, opened, done=do, refused=refused)


def _look(container: lxc.Container) -> list[Finding]:
    return examine.look(TargetOptions(), container, None, full=False).findings


def _settled(container: lxc.Container) -> list[Finding]:
    """What is found once services have been restarted.

    One that is just starting has what it will not have a moment later: so an error counts if it is found twice.
    """
    found = _look(container)
    for _ in range(LOOKS):
        before = {finding for finding in found if _blocks(finding)}
        if not before:
            break
        time.sleep(PAUSE)
        found = _look(container)
        if before == {finding for finding in found if _blocks(finding)}:
            break
    return found


def _blocks(finding: Finding) -> bool:
    return finding.severity is Severity.ERROR


def _result(given: NamedContainer, found: list[Finding], todo: list[str], opened: list[sessions.Session], *, done: bool,
            refused: str | None) -> Result:
    name = given.name
    live = [finding for finding in found if finding.cure == LIVE]
    blocking = [finding for finding in found if _blocks(finding)]
    ends = [session for session in opened if session.ends_with(todo)]
    lines = [findings.render(blocking)] if blocking else []
    if live:
        lines.append("migrate and create-dump deal with the following themselves, right before the freeze:")
        lines += [f"  {printable.line(finding.message)}" for finding in live]
    if done:
        lines.append(f"Restarted: {', '.join(todo)}." if todo else "There was nothing to restart.")
    elif todo:
        lines.append(f"With --yes, these units are restarted, and no others: {', '.join(todo)}.")
        lines += [f"That ends the session {session.shown}." for session in ends]
        if units.LOGIND in todo:
            lines += [f"The session {session.shown} stays open, but {name} cannot be moved until it has ended, as CRIU "
                      f"cannot dump its pipe to the {units.LOGIND} of before: better end it now, and log in again "
                      "afterwards." for session in opened if session not in ends]
    if refused is not None:
        lines.append(f"Its seccomp profile stays as it is: {printable.line(refused)}." if refused else
                     "From its next start on, it is denied bpf and io_uring.")
    elif any(finding.denied for finding in blocking):
        lines.append("With --yes --for-good, it is denied bpf and io_uring from its next start on.")
    left = [finding for finding in blocking if done or not (finding.unit or finding.denied)]
    status = EXIT_OK
    if left and refused == "" and all(finding.denied for finding in left):
        lines.append(f"{name} can be moved once it has been restarted: {examine.restart_command(given)}")
        status = EXIT_WARNINGS
    elif left:
        lines.append(f"{name} cannot be moved as it is; see the errors above.")
        status = Blocked.status if done else EXIT_WARNINGS
    elif not blocking:
        lines.append(f"Nothing in {name} itself keeps it from being moved.")
    return Result(
        {"name": name, "done": done, "units": todo, "seccomp": refused, "live": [finding.message for finding in live],
         "sessions": [{"scope": session.scope, "pid": session.pid, "task": session.task, "ends": session in ends}
                      for session in opened],
         "findings": findings.to_json(blocking)}, "\n".join(lines), status)


def _undo(container: lxc.Container, *, dry_run: bool) -> Result:
    name = container.name
    if not dry_run:
        seccomp_profile.allow(container.config_file)
        if live_steps.is_systemd(container.init_pid):
            units.undo(container)
    drop_ins, link = ("would be", "would be") if dry_run else ("are", "is")
    return Result({"name": name, "undone": not dry_run},
                  f"Drop-ins that migrator has made {drop_ins} removed, and /etc/localtime {link} a symlink again if "
                  f"migrator has replaced it. Services of {name} have their sandboxes again from their next start on, "
                  "and the container its own seccomp profile.")
