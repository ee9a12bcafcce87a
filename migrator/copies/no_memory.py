# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving a container without its memory: how it is stopped on one host and started on the other.

For what CRIU cannot dump. The disk travels as ever; processes end on the source and start anew on the destination.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from migrator.base import bounded_read, log, names
from migrator.base.run import run
from migrator.config import container_config
from migrator.copies import ending, late_start, origins, remains
from migrator.criu import criu_dump
from migrator.errors import MigratorError
from migrator.errors.containers import ContainerNotFound, ContainerNotRunning
from migrator.errors.memory import StartFailed
from migrator.errors.this_host import CommandFailed, CommandTimeout
from migrator.host import lxc, network
from migrator.host.processes import running
from migrator.record import image_folders, migration_paths, next_commands
from migrator.record.journal import Migration
from migrator.record.states import FROZEN

START_LIMIT = 120.0
END_LIMIT = 30.0
STARTS = "MIGRATOR_STARTS"  # environment variable of what was started: the id of the migration
STEADY = 0.3  # seconds that it must have run: what ends sooner has not started
POLL = 0.01


def start_again(migration: Migration) -> bool:
    """On the source, which has the token: start the container if this migration has stopped it; True if so.

    Safe to repeat: what a killed program had begun is completed, and what somebody else has started is left alone. Also
    takes the fence away, once it runs. What cannot be written, as on a full disk, keeps nothing from running. Raises
    StartFailed.
    """
    stopping = migration.still.stopping
    if not stopping and not (migration.lxcpath / migration.name / "config").is_file():
        if _may_have_fence(migration) and not migration_paths.Layout(
                migration.lxcpath, migration.name, migration.id).own_snapshots():
            raise ContainerNotFound(name=migration.name, lxcpath=migration.lxcpath)  # as in `is_gone`
        return False  # it was removed meanwhile
    if stopping and is_gone(migration):
        _try("That could not be recorded", lambda: migration.note("gone", stopping=False))
        migration.learn(stopping=False)
        return False
    container = lxc.Container(migration.name, migration.lxcpath)
    fenced = container_config.fence_of(container.config_file.read_text(errors="replace")) == migration.id
    if stopping and _lives(migration, container):
        log.info(f"{migration.name} was told to end, and is started again once it has")
        # It may have been told to end, or not: now it ends for certain.
        with migration.step("stop", must_be_recorded=False):
            ending.stop(migration, container, migration.still.stop_timeout)
    if not stopping and not (fenced and container.state == "STOPPED"):  # then a reboot was quicker
        _try(f"the fence of {migration.name} could not be removed",
             lambda: container_config.unfence(container.folder, migration.id))
        return False
    by_us = True
    if runs(container, migration.id):
        by_us = has_monitor(migration.id)  # its program was killed, but what it had started came up
        if not by_us:
            log.warning(f"{migration.name} has been started by someone else, and runs")
    else:
        end(container, migration.id)
        remains.require_none(migration)
        by_us = not is_lost(migration, container)
        if by_us:
            with migration.step("start", must_be_recorded=False), unfenced(container, migration.id) as config:
                stay(container, migration.id, start(container, migration.id, config=config))
    with contextlib.suppress(ContainerNotRunning, CommandTimeout):
        network.announce(container.init_pid, (0.0,)).join()
    _copy(migration.id).unlink(missing_ok=True)  # of a program that was killed meanwhile
    runs_on = f"{migration.name} runs again here, but"
    _try(f"{runs_on} its fence could not be removed", lambda: container_config.unfence(container.folder, migration.id))
    _try(f"{runs_on} that could not be recorded", lambda: migration.note("started", stopping=False))
    migration.learn(stopping=False)  # the next record has it, where this one could not be made
    return by_us


def _may_have_fence(migration: Migration) -> bool:
    """Whether it may have been fenced, be it that its stop is not on record: that comes second."""
    return migration.state in FROZEN and migration.still.held is not False


def is_gone(migration: Migration) -> bool:
    """Whether the container has no place here any more, and so is not to be started; says so.

    What was removed needs no start, and what somebody has made in its place is his. Raises ContainerNotFound where
    nothing of the migration is there either: all of it may lie on what is not mounted yet. And StartFailed where
    nothing tells which container has its name, as where it was begun by an older version, and its snapshots are gone.
    """
    try:
        if origins.is_source(migration):
            return False
        container = lxc.Container(migration.name, migration.lxcpath)
        if not origins.source_uuids(migration):
            found = _unknown(migration, container)
        elif not container.rootfs.exists():
            return False  # the start itself will tell what is missing
        else:
            found = "another container has taken its place, and is left alone"
    except ContainerNotFound:
        if not migration_paths.Layout(migration.lxcpath, migration.name, migration.id).own_snapshots():
            raise
        found = "it was removed, or renamed"
    log.warning(f"{migration.name} is not started here: {found}. Should it be put back, it may start again after:"
                f" {next_commands.command('rollback', migration)}")
    return True


def _unknown(migration: Migration, container: lxc.Container) -> str:
    """Of a container that has its name, and may be it: that it runs, so that it needs no start; raises StartFailed."""
    unknown = "nothing shows any more whether what has its name is what was frozen or stopped"
    if container.state != "STOPPED":
        return f"{unknown}, and it is not stopped"
    raise StartFailed(name=migration.name, log="not there", reason=(
        f"{unknown}: it has no fence of this migration, whose snapshots are gone, and its root file system is not on"
        f" record. If it is, start it with: lxc-start -P {migration.lxcpath} -n {migration.name} -- what runs is left"
        f" alone by: {next_commands.command('rollback', migration)}"))


def is_lost(migration: Migration, container: lxc.Container) -> bool:
    """Whether a start of it lives that LXC does not know any more, so that none may come beside it; says so.

    Once nothing is left of what was brought to a stand. Raises StartFailed where such a one has ended, and others with
    it have not.
    """
    found = remains.on_disk(migration, lxc.END_LIMIT)
    if found is not None:
        log.warning(f"{container.name} has been started and is alive (process {found}), although LXC no longer knows"
                    f" of it: it is not started a second time{remains.doubt(migration, found)}")
        return True
    remains.require_none(migration)
    return False


def _lives(migration: Migration, container: lxc.Container) -> bool:
    """Whether the start that was to be stopped has not ended, be it that LXC knows nothing of it any more."""
    if remains.is_known(migration, container):
        return True
    return not _ours(migration.id) and remains.are_left(migration)


def _try(otherwise: str, step: Callable[[], None]) -> None:
    """What a full disk keeps from being written keeps nothing from running."""
    try:
        step()
    except (MigratorError, OSError) as error:
        log.warning(f"{otherwise}: {error}")


def _copy(migration: str) -> Path:
    return image_folders.RUNTIME / f"{migration}.start"


@contextlib.contextmanager
def unfenced(container: lxc.Container, migration: str, end: float = math.inf) -> Iterator[Path]:
    """A container's configuration without its fence: in memory, as its disk may be full. For a start until `end`."""
    path = _copy(migration)
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    text = container_config.unfenced(container_config.text_of(container.config_file))
    container_config.write_file(path, late_start.refused(text, container.config_file, end), mode=0o600)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def log_of(container: lxc.Container | migration_paths.Layout, *, anew: bool = False) -> Path:
    """Where LXC writes the log of a start: what cannot be written there, as on a full disk, keeps nothing from running.

    Then it is in memory, or goes nowhere: lxc-start ends at once where it cannot open its log. Another container of
    that name, in another LXC path, may be started at the same time: `never_ran` believes what it reads.
    """
    for folder in (criu_dump.LOG_FOLDER, image_folders.RUNTIME):
        path = folder / _log_name(container.name, container.lxcpath)
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o750 if folder == criu_dump.LOG_FOLDER else 0o711, exist_ok=True)
            if anew:
                path.unlink(missing_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            return path
    return Path(os.devnull)


def _log_name(name: str, lxcpath: Path) -> str:
    return f"{names.in_path(name, lxcpath)}-start.log"


def start_command(name: str, lxcpath: Path, config: Path | None, log_file: Path | None = None) -> list[str]:
    log_file = log_file or criu_dump.LOG_FOLDER / _log_name(name, lxcpath)
    command = ["lxc-start", "-d", "-n", name, "-P", str(lxcpath)]
    return [*command, *(("-f", str(config)) if config else ()), "-o", str(log_file), "-l", "NOTICE"]


def start(container: lxc.Container, migration: str, *, config: Path | None = None, limit: float = START_LIMIT,
          log_file: Path | None = None) -> int:
    """Start a container from its disk; returns its first process.

    With `config` from that configuration instead of its own: one without the fence. With `log_file`, a new one of
    `log_of`, nothing is made on any disk before it is started.
    Raises StartFailed or CommandTimeout, after everything that the attempt left running has been ended.
    """
    log_file = log_file or log_of(container, anew=True)
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
    init = remains.init_of(container)
    if init is None or init[0] != pid:
        log_file = log_of(container)
        end(container, migration)
        raise StartFailed(name=container.name, reason=_reason(log_file) or "its PID 1 has ended", log=log_file)


def never_ran(error: StartFailed) -> bool:
    """Whether LXC itself says, and completely, that the container's own program was not executed.

    `lxc-start` ended by itself, and its log has an error; but not that the program was about to be executed (start in
    liblxc's start.c), unless that failed. With the log of a start that was killed nothing is proved, nor with one that
    is too long to be read as a whole: a hook's output goes there too, and the end alone does not tell.
    """
    cause = error.__cause__
    if not isinstance(cause, CommandFailed) or not str(cause.fields.get("outcome", "")).startswith("exit status"):
        return False
    try:
        text = bounded_read.read(Path(str(error.fields["log"])), bounded_read.LOG_LIMIT).decode(errors="replace")
    except (OSError, ValueError):
        return False
    return " ERROR " in text and ("Exec'ing " not in text or "Failed to exec " in text)


def _reason(log_file: Path) -> str:
    """The first errors at the end of a log of LXC, shortened to a line."""
    with contextlib.suppress(OSError):
        lines = bounded_read.tail(log_file).splitlines()
        found = [line.partition(" ERROR ")[2].rpartition(" - ")[2] for line in lines if " ERROR " in line]
        return "; ".join(found[:2])[:600]
    return ""


def runs(container: lxc.Container, migration: str, limit: float = START_LIMIT) -> bool:
    """Whether the container runs, when what a killed `start` has left under way is over; at most `limit` seconds on.

    One that somebody has frozen since has come up too.
    """
    until = time.monotonic() + limit
    up = ("RUNNING", "FROZEN")

    def is_over() -> bool:
        return not is_starting(migration) and lxc.told_state(container) in ("STOPPED", *up)

    while not is_over() and time.monotonic() < until:
        time.sleep(POLL)
    return lxc.told_state(container) in up and not is_starting(migration)


def is_starting(migration: str) -> bool:
    """Whether a `start` of this migration is under way, if without who has asked for it."""
    return bool(_starting(migration))


def has_monitor(migration: str) -> bool:
    """Whether LXC's monitor of what `start` of this migration has brought up lives, or that is under way."""
    return bool(_ours(migration))


def end(container: lxc.Container | migration_paths.Layout, migration: str) -> None:
    """End whatever a `start` of this migration has brought up, and nobody else's; raises StartFailed if it cannot.

    Where the container is not defined any more its `Layout` tells which it is.
    """
    until = time.monotonic() + END_LIMIT
    while ours := _ours(migration):
        if time.monotonic() > until:
            raise StartFailed(name=container.name, reason=f"what was started does not end (process {min(ours)})",
                              log=log_of(container))
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

    None of the container is among them, as LXC clears its environment. Nor another container that a hook of it has
    started: what a hook executes has $LXC_NAME (lxc.container.conf(5)), and `run` passes none on.
    """
    mark = f"{STARTS}={migration}".encode()
    found = {}
    for pid, words in running("lxc-start"):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if mark in environment and not any(each.startswith(b"LXC_NAME=") for each in environment):
                found[pid] = [os.fsdecode(word) for word in words]
    return found
