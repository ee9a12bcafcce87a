# SPDX-License-Identifier: GPL-2.0-or-later
"""The container's mounts: what CRIU refuses, and what must exist on the destination."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from migrator.preflight.case import Case, Check, holder
from migrator.preflight.checks_config import answered
from migrator.preflight.container_facts import ContainerFacts
from migrator.preflight.findings import Finding, Severity, define
from migrator.preflight.mount_facts import Mount
from migrator.terminals import is_lxcs

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
# Bound from the host by LXC and lxcfs themselves: every host has its own.
SYSTEM = ("/dev/", "/sys/", "/proc/", "/var/lib/lxcfs/", "/run/lxcfs/")

UNSUPPORTED = define("mount-unsupported", ERROR, """CRIU mounts only the file systems that it knows anew, and takes
    others from the host only as bind mounts (criu/filesystems.c). An overlay it knows, but would make it of the folders
    that the destination itself has under the paths in its options.""", memory_only=True)
UNREACHABLE = define("mount-unreachable", ERROR, """A bind mount whose source is mounted neither in the container nor on
    the host cannot be made again ("doesn't have a proper root mount" in criu/mount.c).""", memory_only=True)
DELETED = define("mount-deleted", ERROR, """What is mounted of a file or folder that has been deleted CRIU makes again
    under its old name, with the host's root, and follows symbolic links on the way (do_bind_mount_v2 in
    criu/mount-v2.c): it is not restored.""", memory_only=True)
MISSING = define("mount-source-missing", ERROR, "A file, folder or device that the container binds from its host.")
BOUND = define("bind-mount", WARNING, """What lies on the host stays there: the restored container sees the files that
    the destination has under that path.""")
TERMINAL = define("terminal-mounted", ERROR, """A terminal of the host is mounted in the container where LXC mounts
    none. (LXC's own console and ttys are no hindrance: there will be others in their place.)""", memory_only=True)


def externals(container: ContainerFacts) -> list[Mount]:
    """The mounts whose source the destination must have. The root file system's own snapshot does not count."""
    return [mount for mount in container.mounts if mount.kind == "external"]


def needed_paths(container: ContainerFacts) -> tuple[str, ...]:
    """Paths that the destination is asked about: the sources of mounts, as they are and as configured."""
    paths = [mount.host_path for mount in externals(container) if mount.host_path]
    return tuple(dict.fromkeys(path for path in [*paths, *_configured(container)] if path.startswith("/")))


def _configured(container: ContainerFacts) -> list[str]:
    """What LXC binds when it starts the container, and must find."""
    return [entry.source for entry in container.config.mounts
            if entry.bind and "optional" not in entry.options and entry.source.startswith("/")]


def supported(case: Case) -> Iterator[Finding]:
    for mount in case.container.mounts:
        if mount.kind == "unsupported":
            yield UNSUPPORTED.found(
                f"{mount.target} in {case.container.name} is a file system of the type {mount.type}.",
                f"Unmount it in the container: umount {shlex.quote(mount.target)}")
        elif mount.kind == "unreachable":
            yield UNREACHABLE.found(f"{mount.target} in {case.container.name} is bound from nowhere within reach.",
                                    f"Unmount it in the container: umount {shlex.quote(mount.target)}")
        elif mount.kind == "deleted":
            yield DELETED.found(f"What is mounted at {mount.target} in {case.container.name} has been deleted.",
                                f"Unmount it in the container: umount {shlex.quote(mount.target)}")


def nested(case: Case) -> Iterator[Finding]:
    for note in case.notes("nested-mount"):
        type_, _, target = note.detail.partition(" ")
        yield UNSUPPORTED.found(
            f"{holder(note)} has a mount namespace of its own, in which {target} is a file system of the type {type_}.",
            f"End what runs in there: kill {note.pid}")


def sources(case: Case) -> Iterator[Finding]:
    there = case.destination
    for path in needed_paths(case.container) if case.options.memory else _configured(case.container):
        if _terminal(path):
            continue
        if there and path not in there.present and answered(path, there):
            yield MISSING.found(f"{there.name} has no {path}, which {case.container.name} binds from its host.",
                                f"Make it on {there.name}, or remove its lxc.mount.entry and unmount it.")


def bound(case: Case) -> Iterator[Finding]:
    for mount in externals(case.container):
        if _terminal(mount.host_path):
            if not is_lxcs(mount.target):
                yield TERMINAL.found(
                    f"{mount.target} in {case.container.name} is the terminal {mount.host_path} of the host.",
                    f"Unmount it in the container: umount {shlex.quote(mount.target)}",
                )
        elif mount.host_path and not mount.host_path.startswith(SYSTEM):
            yield BOUND.found(
                f"{mount.target} in {case.container.name} is {mount.host_path} of the host and is not moved along.",
                "See that the destination has the same files there, or copy them into the container.",
            )


def _terminal(path: str) -> bool:
    return path.startswith("/dev/pts/") or path == "/dev/console"


CHECKS: tuple[Check, ...] = (supported, nested, sources, bound)
