# SPDX-License-Identifier: GPL-2.0-or-later
"""What moving a container's memory costs CRIU alone: a dump and a restore by hand, on one host, images on tmpfs.

    by_hand.py NAME LXCPATH IMAGES ROUNDS [--show]      (on a host; Python is that of migrator's installation)

The dump is the very command line that migrator gives CRIU. The restore is `lxc-checkpoint -r`, which calls `criu
restore` and is what migrator calls: LXC would not know a container restored by plain CRIU, so nobody would want one.
Only these two programs are timed; the container is frozen before, as migrator does it (CRIU's own freeze checks ten
times a second whether it is done), and ended in between. At the end it keeps running.

Prints its times, with --show the two commands too, and in the last line {"dump_ms": [...], "restore_ms": [...]}, with
one entry per round.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import textwrap
import time
from pathlib import Path

from migrator.base.run import run, shown
from migrator.criu import criu_dump
from migrator.criu.restore import plain_command
from migrator.errors import MigratorError
from migrator.errors.this_host import CommandFailed
from migrator.host import empty_cgroups, lxc

LIMIT = 600.0  # seconds; for one program


def main(arguments: list[str]) -> int:
    name, lxcpath, images, rounds = arguments[0], Path(arguments[1]), Path(arguments[2]), int(arguments[3])
    figures: dict[str, list[float]] = {"dump_ms": [], "restore_ms": []}
    for number in range(1, rounds + 1):
        images.mkdir(mode=0o700)
        try:
            dump, restore = once(lxc.Container(name, lxcpath), images, show=number == 1 and "--show" in arguments)
        except MigratorError as error:
            for log in ("restore.log", "dump.log"):
                if reason := criu_dump.reason(images / log):
                    print(f"{images / log}: {reason}", file=sys.stderr)
            print(error, file=sys.stderr)
            return 1
        finally:
            shutil.rmtree(images)
        figures["dump_ms"].append(round(dump * 1000, 1))
        figures["restore_ms"].append(round(restore * 1000, 1))
        print(f"  dump {dump * 1000:.0f} ms + restore {restore * 1000:.0f} ms = {(dump + restore) * 1000:.0f} ms")
    print(json.dumps(figures))
    return 0


def once(container: lxc.Container, images: Path, *, show: bool) -> tuple[float, float]:
    """Dump the container, end it, and restore it; returns the seconds of CRIU's dump and of LXC's restore."""
    pid, cgroup = container.init_pid, container.cgroup
    lock = run(["criu", "check", "--feature", criu_dump.NFTABLES_LOCK], check=False, limit=LIMIT).status == 0
    dump = criu_dump.dump_command(pid, cgroup, images, [], nftables_lock=lock)
    restore = plain_command(container.name, container.lxcpath, images)
    lxc.freeze(container, cgroup, limit=LIMIT)
    dump_seconds = timed(dump, show=show)
    (cgroup / "cgroup.kill").write_text("1")
    lxc.wait(lambda: not lxc.processes(cgroup) and container.state == "STOPPED", LIMIT)
    empty_cgroups.drop(container.name)
    restore_seconds = timed(restore, show=show)
    lxc.thaw(container, container.cgroup)
    if container.state != "RUNNING" or not lxc.processes(container.cgroup):
        raise CommandFailed(command=shown(restore), outcome="exit status 0",
                            output=f"yet {container.name} is {container.state}, and has no processes")
    return dump_seconds, restore_seconds


def timed(command: list[str], *, show: bool) -> float:
    if show:
        lines = textwrap.wrap(f"{socket.gethostname()}# {shown(command)}", 98, break_long_words=False,
                              break_on_hyphens=False)
        print(" \\\n    ".join(lines))
    begun = time.monotonic()
    run(command, limit=LIMIT)
    return time.monotonic() - begun


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
