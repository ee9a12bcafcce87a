# SPDX-License-Identifier: GPL-2.0-or-later
"""What CRIU runs once all of a restored container is there and none of it runs yet (criu(8), --action-script).

CRIU starts the script of `script` at each of its stages and gives the restore up if it fails. The script does not
depend on the program that began the restore: if that is killed, the restore it left in progress still ends with a
complete container. The container is down meanwhile, so the script starts without site-packages and imports little.
"""

from __future__ import annotations

import os
import sys

from migrator.criu import mount_flags, mount_sources, pressure_triggers, ran_mark, slave_mounts, systemd_managers
from migrator.host import cgroup_limits, cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:  # each takes longer to import than the work here takes
    from collections.abc import Callable, Iterable
    from pathlib import Path

# The last stage at which a failure undoes everything: all tasks are there, the network is locked.
STAGE = "post-restore"
# PID 1 is in its cgroup, no other task is there yet and no file is open; all mounts are there with their contents, and
# no deleted file has been made again (restore_root_task and restore_task_with_children in criu/cr-restore.c). At an
# earlier stage the task passes through the container's top cgroup, which it could not do once that has enabled
# controllers for its children ("No Internal Process Constraint" in cgroup-v2.rst).
EARLY = "post-setup-namespaces"
# All tasks are complete and held only by ptrace(2), which ends with CRIU if that is killed. Between STAGE and this they
# may be left waiting for each other for ever (ibid.).
LAST = "pre-resume"
FILTER = "device-filter"  # in the images directory: the program of `device_filter`, in hexadecimal; empty for none
EARLY_FILTER = "device-filter.early"  # the same, if not even CRIU may open another device for it; else empty
NAME, NAME_LIMIT = "container", 64  # in the images directory: what the container is called here; bytes
GHOSTS, GHOSTS_LIMIT = "ghosts", 16 << 20  # in the images directory: the plan of `ghost_paths`; bytes
REASON = "at-restore.error"  # in the images directory: why it failed
WARNING = "at-restore.warning"  # in the images directory: what went without, though it has not failed
LET_GO = "at-restore.let-go"  # in the images directory: says that LAST was reached by all

_START = ("import sys; sys.path.insert(0, sys.argv[1]); from migrator.criu import at_restore;"
          " at_restore.main(*sys.argv[2:])")


def script(images: str, mark: str, end: float, commands: Iterable[Iterable[str]] = ()) -> str:
    """The script given to CRIU for a restore from the directory `images`; `mark` is a path, see `ran_mark`.

    The container may be let run until `end` (CLOCK_BOOTTIME) and not afterwards.

    `commands` are for the host, to be run once the container is on its bridges, with its network still locked.
    """
    import shlex

    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = shlex.join([sys.executable, "-I", "-S", "-c", _START, root, images, mark, str(end)])
    # CRIU starts it at every stage, and a shell finds out faster than Python that there is nothing to do.
    musts = "".join(f"\n    must {shlex.join(words)}" for words in commands)
    early = " || ".join(f"[ -s {shlex.quote(os.path.join(images, name))} ]"
                        for name in (cgroup_limits.CONTROLLERS, EARLY_FILTER, GHOSTS, pressure_triggers.RECORD))
    return f"""#!/bin/sh
case $CRTOOLS_SCRIPT_ACTION in
    {EARLY}) {early} || exit 0 ;;
    {STAGE}) ;;
    {LAST}) {{ true >{shlex.quote(os.path.join(images, LET_GO))}; }} 2>/dev/null; exit 0 ;;
    *) exit 0 ;;
esac
must() {{
    said=$("$@" 2>&1 </dev/null) && return
    echo "$*: $said" >{shlex.quote(os.path.join(images, REASON))}
    exit 1
}}
if [ "$CRTOOLS_SCRIPT_ACTION" = {STAGE} ]; then
    :{musts}
fi
exec {command} "$CRTOOLS_SCRIPT_ACTION"
"""


def main(images: str, mark: str, end: str, stage: str) -> None:
    """Take all steps of a stage; the last, before the container is let run, is to mark that, if it may still be done.

    The first step that fails ends the program, and the reason goes into a file beside the images.
    """
    init = int(os.environ["CRTOOLS_INIT_PID"])
    steps = dict(STEPS[stage])
    if stage == STAGE:
        steps["the mark that it may run"] = lambda *_: ran_mark.record_in_time(mark, float(end))
    for what, step in steps.items():
        try:
            step(images, init)
        except Exception as error:
            with open(os.path.join(images, REASON), "w") as file:
                file.write(f"{what}: {error}")
            sys.exit(f"{what}: {error}")


def reason(folder: Path) -> str:
    """Why a restore was given up here, "" if it was not."""
    return _said(folder / REASON)


def warning(folder: Path) -> str:
    """What a restore went without, "" if nothing."""
    return _said(folder / WARNING)


def _said(path: Path) -> str:
    try:
        with path.open(errors="replace") as file:
            return file.read(2000)
    except OSError:
        return ""


def has_let_go(folder: Path) -> bool:
    """Whether CRIU had restored all of it and let go: then it runs, unless it has ended since."""
    return (folder / LET_GO).exists()


def cgroup_owners(images: str, init: int) -> None:
    """Give the container's own users their cgroup files back; see `cgroups`."""
    if record := noted(images, cgroups.RECORD, cgroups.RECORD_LIMIT):
        uids, gids = (cgroups.mapped(_read(f"/proc/{init}/{kind}_map")) for kind in ("uid", "gid"))
        cgroups.give_back(_cgroup(images, init), record, uids, gids, cgroups.delegated())


def early_owners(images: str, init: int) -> None:
    """Before CRIU opens what somebody in it waits by: as the container's root, who may not write to root's files.

    CRIU hands over what it has made of a cgroup when it has opened them all (prepare_cgroup_properties in its cgroup.c,
    up to 4.2.1 at least), and little of it: `memory.pressure` is not among that. Where CRIU or LXC has done it already
    nothing changes here.
    """
    if noted(images, pressure_triggers.RECORD, pressure_triggers.RECORD_LIMIT):
        cgroup_owners(images, init)


def pressure(images: str, init: int) -> None:
    """Have its processes told of pressure again; see `pressure_triggers`."""
    record = noted(images, pressure_triggers.RECORD, pressure_triggers.RECORD_LIMIT)
    if record and (untold := pressure_triggers.write_again(record, cgroups.processes(_cgroup(images, init)))):
        try:  # contextlib is one more import
            with open(os.path.join(images, WARNING), "w") as file:
                file.write(untold)
        except OSError:
            pass  # the disk is full, which must not keep it from running


def managers(images: str, init: int) -> None:
    """Have each systemd in it look at its processes anew; see `systemd_managers`."""
    if record := noted(images, systemd_managers.RECORD, systemd_managers.RECORD_LIMIT):
        systemd_managers.reload(record, cgroups.processes(_cgroup(images, init)))


def controllers(images: str, init: int) -> None:
    """Enable the controllers of its cgroups; see `cgroup_limits`."""
    cgroup_limits.enable(_cgroup(images, init), noted(images, cgroup_limits.CONTROLLERS, cgroup_limits.RECORD_LIMIT))


def early_controllers(images: str, init: int) -> None:
    """Enable, before CRIU opens their files, as many as can be enabled then."""
    try:  # noqa: SIM105  # contextlib is one more import
        controllers(images, init)
    except BlockingIOError:
        pass  # a task is in the way


def limits(images: str, init: int) -> None:
    """Set its limits; see `cgroup_limits`."""
    planned, record = (noted(images, name, cgroup_limits.RECORD_LIMIT)
                       for name in (cgroup_limits.PLAN, cgroup_limits.TAKEN))
    if planned or record:
        cgroup_limits.apply(_cgroup(images, init), planned, record)


def devices(images: str, init: int, name: str = FILTER) -> None:
    """Let it open the devices that it may use, and no others; see `device_filter`."""
    if program := noted(images, name, cgroup_limits.RECORD_LIMIT):
        from migrator.host import device_filter  # imported only if there is a filter, with all that it imports itself

        top = _cgroup(images, init)
        if cgroups.holds(top, _read("/proc/self/cgroup")):  # if someone has forged the images
            raise ValueError(f"{top} is not a container's cgroup: CRIU is in it")
        device_filter.attach(top, bytes.fromhex(program))


def ghosts(images: str, init: int) -> None:
    """Before CRIU recreates deleted files, check where it would do so; see `ghost_paths`."""
    if plan := noted(images, GHOSTS, GHOSTS_LIMIT):
        from migrator.criu import ghost_paths

        ghost_paths.require(plan, init)


def early_devices(images: str, init: int) -> None:
    """Before CRIU opens files for it, because a filter does not affect files that are already open."""
    devices(images, init, EARLY_FILTER)


def mounts(images: str, init: int) -> None:
    """Forbid on the container's mounts what was forbidden before; see `mount_flags`."""
    if record := noted(images, mount_flags.RECORD, mount_flags.RECORD_LIMIT):
        mount_flags.tighten(record, [init, *cgroups.processes(_cgroup(images, init))])


def slaves(images: str, init: int) -> None:
    """Share with nobody what is only to follow another mount; see `slave_mounts`."""
    if record := noted(images, slave_mounts.RECORD, slave_mounts.RECORD_LIMIT):
        slave_mounts.make_slaves(record, cgroups.processes(_cgroup(images, init)))


def sources(images: str, init: int) -> None:
    """Check where its mounts lead, once they are in their final state; see `mount_sources`."""
    if plan := noted(images, mount_sources.PLAN, mount_sources.PLAN_LIMIT):
        mount_sources.require(plan, [init, *cgroups.processes(_cgroup(images, init))], mount_sources.terminals(init))


def _cgroup(images: str, init: int) -> str:
    return cgroups.payload(_read(f"/proc/{init}/cgroup"), noted(images, NAME, NAME_LIMIT))


def noted(images: str, name: str, limit: int) -> str:
    """A record beside the images; "" if the version that sent it did not make one.

    Raises ValueError if it is too large.
    """
    try:
        with open(os.path.join(images, name), errors="surrogateescape", newline="\n") as file:
            text = file.read(limit + 1)
    except FileNotFoundError:
        return ""
    if len(text) > limit:
        raise ValueError(f"{name} is larger than {limit} bytes")
    return text


def _read(path: str) -> str:
    with open(path, errors="surrogateescape", newline="\n") as file:
        return file.read()


STEPS: dict[str, dict[str, Callable[[str, int], None]]] = {
    EARLY: {
        "what is open but deleted": ghosts,
        "what its cgroups control": early_controllers,
        "which devices it may have open": early_devices,
        "the owners of its cgroup's pressure files": early_owners,
    },
    STAGE: {
        "what its cgroups control": controllers,
        "the limits of its cgroups": limits,
        "which devices it may use": devices,
        "the owners of its cgroup's files": cgroup_owners,
        "what may not be done on its mounts": mounts,
        "which of its mounts are shared with nobody": slaves,
        "where its mounts lead": sources,
        "what it wants to be told of pressure": pressure,
        "which processes its systemd takes for its own": managers,
    },
}
