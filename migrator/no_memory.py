# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving a container without its memory: how it is stopped on one host and started on the other.

For what CRIU cannot dump. The disk travels as ever; processes end on the source and start anew on the destination.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from migrator import container_config, criu, holder, limited, log, lxc, network
from migrator.errors import CommandFailed, ContainerNotRunning, StartFailed
from migrator.journal import Migration
from migrator.processes import running
from migrator.run import run

START_LIMIT = 120.0
END_LIMIT = 30.0
STARTS = "MIGRATOR_STARTS"  # environment variable of what was started: the id of the migration
STEADY = 0.3  # seconds that it must have run: what ends sooner has not started
POLL = 0.01


def init_of(container: lxc.Container) -> list[int] | None:
    """Which start of a container this is: its first process, and when that began, in ticks since the host's boot.

    None where it does not run.
    """
    with contextlib.suppress(ContainerNotRunning, OSError):
        pid = container.init_pid
        return [pid, holder.start_time(pid)]
    return None


def stop_command(container: lxc.Container) -> list[str]:
    """Asks the first process to end, with the signal that the container's configuration names."""
    return ["lxc-stop", "-n", container.name, "-P", str(container.lxcpath), "--nowait"]


def stop(container: lxc.Container, limit: float) -> bool:
    """End a container in order; past `limit` seconds kill it. Returns whether it had to be killed.

    We wait ourselves, so that nothing is left waiting, and killing, when this program is killed.
    """
    run(stop_command(container), check=False)
    end = time.monotonic() + limit
    while container.state != "STOPPED":
        if time.monotonic() > end:
            log.warning(f"{container.name} has not ended within {limit:g} seconds and is killed")
            with contextlib.suppress(ContainerNotRunning):  # it has ended after all
                lxc.kill(container)
            return True
        time.sleep(POLL)
    return False


def start_again(migration: Migration) -> bool:
    """On the source, which has the token: start the container if this migration has stopped it; True if so.

    Safe to repeat: what a killed program had begun is completed, and what somebody else has started is left alone. Also
    takes the fence away. Raises StartFailed.
    """
    container = lxc.Container(migration.name, migration.lxcpath)
    stopping = bool(migration.detail.get("stopping"))
    fenced = container_config.fence_of(container.config_file.read_text(errors="replace")) == migration.id
    if stopping and init_of(container) == migration.detail["init"]:
        log.info(f"{migration.name} was told to end, and is started again when it has")
        with migration.step("stop"):  # it may have been told to end, or not: now it ends for certain
            stop(container, float(migration.detail["stop_timeout"]))
    container_config.unfence(container.folder, migration.id)
    if not stopping and not (fenced and container.state == "STOPPED"):  # then a reboot was quicker
        return False
    by_us = True
    if runs(container, migration.id):
        by_us = bool(_ours(migration.id))  # its program was killed, but what it had started came up
        if not by_us:
            log.warning(f"{migration.name} has been started by somebody else, and runs")
    else:
        end(container, migration.id)
        with migration.step("start"):
            stay(container, migration.id, start(container, migration.id))
    with contextlib.suppress(ContainerNotRunning):
        network.announce(container.init_pid, (0.0,)).join()
    migration.note("started", stopping=False)
    return by_us


def start_command(name: str, lxcpath: Path, config: Path | None, log_file: Path) -> list[str]:
    command = ["lxc-start", "-d", "-n", name, "-P", str(lxcpath)]
    return [*command, *(("-f", str(config)) if config else ()), "-o", str(log_file), "-l", "WARN"]


def start(container: lxc.Container, migration: str, *, config: Path | None = None, limit: float = START_LIMIT) -> int:
    """Start a container from its disk; returns its first process.

    With `config` from that configuration instead of its own: one without the fence.
    Raises StartFailed or CommandTimeout, after everything that the attempt left running has been ended.
    """
    log_file = criu.log_path(container.name, "start")
    log_file.unlink(missing_ok=True)
    try:
        run(start_command(container.name, container.lxcpath, config, log_file), limit=limit, env={STARTS: migration})
        return container.init_pid
    except BaseException as error:
        end(container, migration)
        if isinstance(error, CommandFailed | ContainerNotRunning):
            reason = _reason(log_file) or error.message
            raise StartFailed(name=container.name, reason=reason, log=log_file) from error
        raise


def stay(container: lxc.Container, migration: str, pid: int) -> None:
    """Raises StartFailed, after it has ended what is left, unless `pid` is still the first process in a moment."""
    time.sleep(STEADY)
    init = init_of(container)
    if init is None or init[0] != pid:
        log_file = criu.log_path(container.name, "start")
        end(container, migration)
        raise StartFailed(name=container.name, reason=_reason(log_file) or "its first process has ended", log=log_file)


def _reason(log_file: Path) -> str:
    """The first errors at the end of a log of LXC, shortened to a line."""
    with contextlib.suppress(OSError):
        lines = limited.tail(log_file).splitlines()
        found = [line.partition(" ERROR ")[2].rpartition(" - ")[2] for line in lines if " ERROR " in line]
        return "; ".join(found[:2])[:600]
    return ""


def runs(container: lxc.Container, migration: str, limit: float = START_LIMIT) -> bool:
    """Whether the container runs, when what a killed `start` has left under way is over; at most `limit` seconds on."""
    until = time.monotonic() + limit
    while (_starting(migration) or container.state not in ("STOPPED", "RUNNING")) and time.monotonic() < until:
        time.sleep(POLL)
    return container.state == "RUNNING" and not _starting(migration)


def end(container: lxc.Container, migration: str) -> None:
    """End whatever a `start` of this migration has brought up, and nobody else's; raises StartFailed if it cannot."""
    until = time.monotonic() + END_LIMIT
    while ours := _ours(migration):
        if time.monotonic() > until:
            raise StartFailed(name=container.name, reason=f"what was started does not end (process {min(ours)})",
                              log=criu.log_path(container.name, "start"))
        starting = _starting(migration)
        for pid in starting:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not starting:
            run(["lxc-stop", "-k", "-n", container.name, "-P", str(container.lxcpath)], check=False)
        time.sleep(POLL)


def _starting(migration: str) -> list[int]:
    """Each lxc-start of this migration that has not brought its container up yet."""
    return [pid for pid, words in _ours(migration).items() if any(Path(word).name == "lxc-start" for word in words[:2])]


def _ours(migration: str) -> dict[int, list[str]]:
    """The processes that `start` has brought up, each with its command: lxc-start, then LXC's monitor.

    None of the container is among them, as LXC clears its environment.
    """
    mark = f"{STARTS}={migration}".encode()
    found = {}
    for pid, words in running("lxc-start"):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found[pid] = [os.fsdecode(word) for word in words]
    return found
