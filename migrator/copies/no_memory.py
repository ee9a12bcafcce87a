# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving a container without its memory: stopping it on one host and starting it on the other.

This is for containers that CRIU cannot dump. The disk travels as usual; processes end on the source and start afresh on
the destination.
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
STARTS = "MIGRATOR_STARTS"  # environment variable of what we start: the id of the migration
STEADY = 0.3  # seconds that it must have run: what ends sooner has not started
POLL = 0.01


def start_again(migration: Migration) -> bool:
    """On the source, which has the token: start the container if this migration stopped it; returns whether it did.

    Safe to repeat: what a killed program began is completed, and what someone else has started is left alone. Also
    removes the fence, once the container runs. A full disk, where nothing can be written, does not keep it from
    running. Raises StartFailed.
    """
    stopping = migration.still.stopping
    if not stopping and not (migration.lxcpath / migration.name / "config").is_file():
        if _may_have_fence(migration) and not migration_paths.Layout.of(migration).own_snapshots():
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
        # It may or may not have been told to shut down; now it is ended for certain.
        with migration.step("stop", must_be_recorded=False):
            ending.stop(migration, container, migration.still.stop_timeout)
    if not stopping and not (fenced and container.state == "STOPPED"):  # then a reboot was quicker than the stop
        _try(f"the fence of {migration.name} could not be removed",
             lambda: container_config.unfence(container.folder, migration.id))
        return False
    by_us = True
    if runs(container, migration.id):
        by_us = has_monitor(migration.id)  # its program was killed, but the container came up
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
    migration.learn(stopping=False)  # the next record includes it if this one could not be written
    return by_us


def _may_have_fence(migration: Migration) -> bool:
    """Whether it may have been fenced, even if its stop is not on record: the fence is written first."""
    return migration.state in FROZEN and migration.still.held is not False


def is_gone(migration: Migration) -> bool:
    """Whether this container no longer exists here and so must not be started; logs it.

    What was removed needs no start, and what someone has created in its place belongs to them. Raises ContainerNotFound
    if nothing of the migration is there either, because all of it may be on a disk that is not mounted yet. Raises
    StartFailed if nothing tells which container has its name, for example when an older version began the migration and
    its snapshots are gone.
    """
    try:
        if origins.is_source(migration):
            return False
        container = lxc.Container(migration.name, migration.lxcpath)
        if not origins.source_uuids(migration):
            found = _unknown(migration, container)
        elif not container.rootfs.exists():
            return False  # the start itself will report what is missing
        else:
            found = "another container has taken its place, and is left alone"
    except ContainerNotFound:
        if not migration_paths.Layout.of(migration).own_snapshots():
            raise
        found = "it was removed, or renamed"
    log.warning(f"{migration.name} is not started here: {found}. Should it be put back, it may start again after:"
                f" {next_commands.command('rollback', migration)}")
    return True


def _unknown(migration: Migration, container: lxc.Container) -> str:
    """For a container of its name that may or may not be it: what to say if it runs, since no start is needed then.

    Raises StartFailed if it does not.
    """
    unknown = "nothing shows any more whether what has its name is what was frozen or stopped"
    if container.state != "STOPPED":
        return f"{unknown}, and it is not stopped"
    raise StartFailed(name=migration.name, log="not there", reason=(
        f"{unknown}: it has no fence of this migration, whose snapshots are gone, and its root file system is not on"
        f" record. If it is, start it with: lxc-start -P {migration.lxcpath} -n {migration.name} -- what runs is left"
        f" alone by: {next_commands.command('rollback', migration)}"))


def is_lost(migration: Migration, container: lxc.Container) -> bool:
    """Whether a start of it that LXC has lost track of is alive, so that no other may be started beside it; logs it.

    For use once nothing is left of what was frozen or stopped. Raises StartFailed if that start's PID 1 has ended but
    other processes of it have not.
    """
    found = remains.on_disk(migration, lxc.END_LIMIT)
    if found is not None:
        log.warning(f"{container.name} has been started and is alive (process {found}), although LXC no longer knows"
                    f" of it: it is not started a second time{remains.doubt(migration, found)}")
        return True
    remains.require_none(migration)
    return False


def _lives(migration: Migration, container: lxc.Container) -> bool:
    """Whether the start that was to be stopped is still alive, even if LXC has lost track of it."""
    if remains.is_known(migration, container):
        return True
    return not _ours(migration.id) and remains.are_left(migration)


def _try(otherwise: str, step: Callable[[], None]) -> None:
    """Run a step whose failure, on a full disk say, must not keep the container from running.

    A failure is logged, introduced by `otherwise`.
    """
    try:
        step()
    except (MigratorError, OSError) as error:
        log.warning(f"{otherwise}: {error}")


def _copy(migration: str) -> Path:
    return image_folders.RUNTIME / f"{migration}.start"


@contextlib.contextmanager
def unfenced(container: lxc.Container, migration: str, end: float = math.inf) -> Iterator[Path]:
    """A container's configuration without its fence, for a start until `end`; in memory, because its disk may be full.
    """
    path = _copy(migration)
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    text = container_config.unfenced(container_config.text_of(container.config_file))
    container_config.write_file(path, late_start.refused(text, container.config_file, end), mode=0o600)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def log_of(container: lxc.Container | migration_paths.Layout, *, anew: bool = False) -> Path:
    """Where LXC writes the log of a start.

    A log that cannot be written, on a full disk say, must not prevent the start.

    The log is then kept in memory or discarded, because lxc-start exits at once if it cannot open its log. Each LXC
    path has its own log: another container of the same name may be starting at the same time, and `never_ran` trusts
    what it reads.
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
    """Start a container from its disk; returns the process id of its PID 1.

    With `config`, that configuration is used instead of the container's own: one without the fence. With `log_file`, a
    fresh one from `log_of`, nothing is written to any disk before the container is started. `limit` is in seconds.

    Raises StartFailed or CommandTimeout, after ending everything that the attempt left running.
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
    """Check after a moment that `pid` is still PID 1 of the container; if not, end what is left and raise StartFailed.
    """
    time.sleep(STEADY)
    init = remains.init_of(container)
    if init is None or init.pid != pid:
        log_file = log_of(container)
        end(container, migration)
        raise StartFailed(name=container.name, reason=_reason(log_file) or "its PID 1 has ended", log=log_file)


def never_ran(error: StartFailed) -> bool:
    """Whether LXC's log proves that the container's own program was never executed.

    It does if `lxc-start` ended by itself and its log has an error but no notice that the program was about to be
    executed (start in liblxc's start.c), unless executing it failed. The log of a start that was killed proves nothing,
    and neither does one too long to be read in full: hooks write their output there too, and the end alone does not
    tell.
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
    """The first errors near the end of an LXC log, shortened to one line."""
    with contextlib.suppress(OSError):
        lines = bounded_read.tail(log_file).splitlines()
        found = [line.partition(" ERROR ")[2].rpartition(" - ")[2] for line in lines if " ERROR " in line]
        return "; ".join(found[:2])[:600]
    return ""


def runs(container: lxc.Container, migration: str, limit: float = START_LIMIT) -> bool:
    """Whether the container runs once whatever a killed `start` left in progress is over; waits up to `limit` seconds.

    A container that someone has frozen since counts as running.
    """
    until = time.monotonic() + limit
    up = ("RUNNING", "FROZEN")

    def is_over() -> bool:
        return not is_starting(migration) and lxc.told_state(container) in ("STOPPED", *up)

    while not is_over() and time.monotonic() < until:
        time.sleep(POLL)
    return lxc.told_state(container) in up and not is_starting(migration)


def is_starting(migration: str) -> bool:
    """Whether a `start` of this migration is in progress, even if the program that asked for it is gone."""
    return bool(_starting(migration))


def has_monitor(migration: str) -> bool:
    """Whether LXC's monitor of a container that this migration started is alive, or such a start is in progress."""
    return bool(_ours(migration))


def end(container: lxc.Container | migration_paths.Layout, migration: str) -> None:
    """End whatever a `start` of this migration brought up, and nothing else; raises StartFailed if that fails.

    If the container is no longer defined, its `Layout` identifies it.
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
    """The processes that `start` has brought up, each with its command line: lxc-start, then LXC's monitor.

    Processes of the container are not among them, because LXC clears their environment. Nor is another container that
    one of its hooks started: what a hook executes has $LXC_NAME set (lxc.container.conf(5)), whereas `run` passes none
    on.
    """
    mark = f"{STARTS}={migration}".encode()
    found = {}
    for pid, words in running("lxc-start"):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if mark in environment and not any(each.startswith(b"LXC_NAME=") for each in environment):
                found[pid] = [os.fsdecode(word) for word in words]
    return found
