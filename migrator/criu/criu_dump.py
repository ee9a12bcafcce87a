# SPDX-License-Identifier: GPL-2.0-or-later
"""CRIU: the dump, which we run directly, and what its logs say.

`lxc-checkpoint` cannot dump a container that was itself restored (lxc#4643), so dumps bypass it; restores are left to
LXC, which then owns the container (`migrator.criu.restore`).
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from migrator.base import bounded_read, log, programs
from migrator.base.run import started
from migrator.criu import apart, mount_flags, pressure_triggers, slave_mounts, systemd_managers, terminals
from migrator.criu.terminals import Terminal
from migrator.errors.memory import DumpFailed
from migrator.errors.this_host import CommandFailed
from migrator.host import cgroup_limits, cgroups
from migrator.host.lxc import CGROUP
from migrator.host.processes import running

DUMP_LIMIT = 900.0  # seconds; CRIU itself has no limit for a dump
# CRIU packs the contents of a tmpfs with tar, which leaves out ACLs unless told: a file's mode alone would then let its
# whole group in. They are taken as raw attributes, with numeric ids: tar's own --acls stores names and looks them up on
# either host. No other attribute that means something to the kernel is accepted from a sender.
TAR_OPTIONS = "--xattrs --xattrs-include=user.* --xattrs-include=system.posix_acl_*"
GHOST_LIMIT = "256M"  # deleted files that are still open travel in the images up to this size

def restore_config(lines: Iterable[str] = ()) -> str:
    """What CRIU reads from $CRIU_CONFIG_FILE at a restore (criu(8), configuration files): options without their dashes.

    A word ends at a space or `#`, and an unknown key makes liblxc report that CRIU is not installed.
    """
    return "\n".join([f"ghost-limit {GHOST_LIMIT}", *lines, ""])


CONSOLE_FILE = "tty.info"  # where liblxc looks for the console's name at a restore
NOTES = (CONSOLE_FILE, cgroups.RECORD, cgroup_limits.RECORD, cgroup_limits.CONTROLLERS, mount_flags.RECORD,
         terminals.RECORD, pressure_triggers.RECORD, slave_mounts.RECORD,
         systemd_managers.RECORD)
NOTE_LIMIT = min(cgroups.RECORD_LIMIT, cgroup_limits.RECORD_LIMIT, mount_flags.RECORD_LIMIT,
                 pressure_triggers.RECORD_LIMIT)  # bytes
NFTABLES_LOCK = "network_lock_nftables"  # CRIU's name for the feature


def dump_command(pid: int, cgroup: Path, images: Path, mounts: list[str], ttys: Sequence[Terminal] = (), *,
                 nftables_lock: bool = False) -> list[str]:
    """The command that dumps the container whose PID 1 is `pid`.

    The options are those that liblxc uses for a dump and expects at the restore (src/lxc/criu.c, exec_criu), and these.
    --leave-running, so that the frozen source can be thawed if anything fails later. --freeze-cgroup with the cgroup
    that is already frozen, which CRIU leaves as it is. Only the unified hierarchy, whose name for CRIU is empty, is
    dumped: with cgroup v1's freezer mounted beside it, CRIU would restore its state as FROZEN, and nobody thaws that.
    --cgroup-root, so that an init that has moved itself further down (systemd) takes the whole payload along.

    `mounts` are the targets of the container's bind mounts, `ttys` those that LXC gave it (`terminals`). With
    `nftables_lock`, for which both hosts need NFTABLES_LOCK, CRIU locks the container's network by a table that it
    creates and removes itself. Otherwise it does so, here and at the restore, by a dozen calls of iptables-restore,
    which take 100 ms longer and leave empty tables in the container.
    """
    command = [
        "criu", "dump", "--tree", str(pid), "--images-dir", str(images), "--log-file", "dump.log", "-v2",
        "--leave-running", "--freeze-cgroup", str(cgroup),
        "--cgroup-dump-controller", "", "--cgroup-root", f":/{cgroup.relative_to(CGROUP)}",
        "--manage-cgroups=full", "--tcp-established", "--skip-in-flight", "--file-locks", "--link-remap",
        "--force-irmap", "--ghost-limit", GHOST_LIMIT,
        "--ext-mount-map", "auto", "--enable-external-sharing", "--enable-external-masters",
        "--enable-fs", "hugetlbfs", "--enable-fs", "tracefs",
    ]
    if nftables_lock:
        command += ["--network-lock", "nftables"]
    command += terminals.dump_options(ttys)
    for target in mounts:
        command += ["--ext-mount-map", f"/{target.lstrip('/')}:{target.lstrip('/')}"]
    return command


def path() -> str:
    """The $PATH of a dump, which starts programs by name (run_ip_tool, run_iptables_tool and tmpfs_dump in criu/).

    A directory in it that does not answer would make CRIU, and the container, hang. Determine it before the freeze.
    """
    return programs.path_of("criu", "ip", "iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save",
                            "nft", "tar")


def dump(name: str, command: list[str], images: Path) -> None:
    """Run a command of `dump_command`; raises DumpFailed with CRIU's own reason.

    While it dumps, CRIU runs code of its own inside the tasks, and removes it at the end. Killing it before that leaves
    the tasks broken, so it is waited for without a limit: a dump that takes too long is given up afterwards. A message
    says so every DUMP_LIMIT seconds. Whether it makes progress cannot be seen from outside: tasks may be waiting for a
    disk.
    """
    try:
        with started(command, env={"PATH": path(), "TAR_OPTIONS": TAR_OPTIONS}) as program:
            for trouble in apart.stand(program.pid):  # before it has hold of anything
                log.verbose(f"CRIU may be ended along with this program: {trouble}")
            for times in itertools.count(1):
                if program.ends_within(DUMP_LIMIT):
                    break
                log.warning(f"CRIU has not dumped {name} within {times * DUMP_LIMIT:g} seconds: still waiting for"
                            f" it (process {program.pid}), as killing it would leave the container's processes broken;"
                            " for what can be done see docs/states.md, \"A dump that does not end\"")
            program.finish()
    except CommandFailed as error:
        text = reason(images / "dump.log") or complaint(error.fields["output"])
        raise DumpFailed(name=name, reason=text, log=images / "dump.log") from error


def processes(folders: Iterable[Path]) -> list[int]:
    """The ids of root's own processes (CRIU, lxc-checkpoint) that have one of these images directories as an argument.
    """
    wanted = {str(path).encode() for path in folders}
    return [pid for pid, words in running("criu", "lxc-checkpoint") if wanted & set(words)]


def wait_for_dump(name: str, folders: Sequence[Path], limit: float = DUMP_LIMIT) -> None:
    """Wait until no dump into one of these directories is in progress; raises DumpFailed if one still is after `limit`.

    A killed create-dump leaves CRIU running; its tasks must not be thawed before it has let go of them.
    """
    if left := left_after(limit, folders):
        raise DumpFailed(name=name, reason=f"CRIU does not end (process {left[0]})", log=folders[0] / "dump.log")


def left_after(limit: float, folders: Sequence[Path]) -> list[int]:
    """Those of `processes` that have not ended after `limit` seconds."""
    end = time.monotonic() + limit
    while (found := processes(folders)) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def is_image(name: str) -> bool:
    """Whether a file of that name travels with a dump: one of CRIU's images, or a note beside them."""
    return name.endswith(".img") or name in NOTES


def image_files(images: Path) -> list[Path]:
    """The files of a dump that a restore needs."""
    return sorted(path for path in images.iterdir() if is_image(path.name))


LOG_FOLDER = Path("/var/log/migrator")


def log_path(name: str, action: str) -> Path:
    """Where the log of a failed dump or restore is kept once its images are gone."""
    LOG_FOLDER.mkdir(mode=0o750, exist_ok=True)
    return LOG_FOLDER / f"{name}-{action}.log"


# After these words CRIU only cleans up.
_END = re.compile(r"Dumping FAILED|Restoring FAILED")
# What a log says when nothing is wrong: a limit that root lacks a capability for, and programs that were only probed.
_NOISE = re.compile(r"Can't setup RLIMIT_NOFILE|Killing processes|exited, status=\d+|"
                    r"execvp\(\"ip6?tables-[a-z-]+\", \.\.\.\) failed")
# What is only a consequence of another error.
_CONSEQUENCE = re.compile(r"Dump files \(pid: \d+\) failed|\d+ killed by signal|cgroupd: recv req error")
_LOCK = "Locking network failed"  # the only case in which a missing iptables is the reason
_PREFIX = re.compile(r"^(\(\d+\.\d+\)\s*)?(pie:\s*)?(\s*\d+:\s*)?")
REASON_MAX, REASON_LINES = 600, 4  # characters, lines


def reason(log: Path) -> str:
    """The last real errors near the end of a CRIU log, in one line; "" if there are none."""
    try:
        lines = bounded_read.tail(log).splitlines()
    except OSError:
        return ""
    end = next((number for number, line in enumerate(lines) if _END.search(line)), len(lines))
    errors = [_PREFIX.sub("", line) for line in lines[:end] if "Error (" in line]
    real = [line for line in errors if not _NOISE.search(line)]
    if any(_LOCK in line for line in real):
        real = [*(line for line in errors if "execvp(" in line), *real]
    real = [line for line in real if not _CONSEQUENCE.search(line)] or real
    kept: list[str] = []
    for line in dict.fromkeys(reversed(real)):
        if kept and (len(kept) == REASON_LINES or len("; ".join([line, *kept])) > REASON_MAX):
            break
        kept.insert(0, line)
    return "; ".join(kept)[:REASON_MAX]


def complaint(output: str) -> str:
    """What CRIU says if it does not even begin, without the usage that it prints after it; else all of the output."""
    said = [line for line in output.splitlines() if line.startswith("criu: ") or "Error (" in line]
    return "; ".join(said) or output
