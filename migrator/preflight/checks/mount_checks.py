# SPDX-License-Identifier: GPL-2.0-or-later
"""The container's mounts: what CRIU refuses, and what must exist on the destination."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.config.lxc_settings import MountEntry
from migrator.criu.terminals import is_lxcs
from migrator.guest import live_steps
from migrator.host.mountinfo import ON_DISKS, SOURCELESS, Mount
from migrator.preflight.checks.case import LIVE, Case, Check, holder
from migrator.preflight.checks.config_checks import answered
from migrator.preflight.facts import mounts_seen
from migrator.preflight.facts.container_facts import ContainerFacts
from migrator.preflight.facts.sandbox_facts import CREDENTIALS_HELD
from migrator.preflight.facts.task_facts import Note
from migrator.preflight.findings import Finding, Severity, define

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
# Bound from the host by LXC and lxcfs themselves: every host has its own.
SYSTEM = ("/dev/", "/sys/", "/proc/", "/var/lib/lxcfs/", "/run/lxcfs/")
# File systems that the kernel itself never writes to.
UNWRITTEN = frozenset({"squashfs", "erofs", "iso9660"})
# By the kernel's device numbers, because a mount's source may be another device, or an option.
LOSETUP = "losetup --list --output MAJ:MIN,BACK-FILE"
UNSUPPORTED = define("mount-unsupported", ERROR, """CRIU remounts only the file systems that it knows, and takes others
    from the host only as bind mounts (criu/filesystems.c). It knows overlays, but would build them from the folders
    that the destination itself has under the paths in their options.""", memory_only=True)
UNREACHABLE = define("mount-unreachable", ERROR, """A bind mount whose source is mounted neither in the container nor on
    the host cannot be recreated ("doesn't have a proper root mount" in criu/mount.c).""", memory_only=True)
DELETED = define("mount-deleted", ERROR, """If a mounted file or folder has been deleted, CRIU recreates it under its
    old name, as the host's root, and follows symbolic links on the way (do_bind_mount_v2 in criu/mount-v2.c): so it is
    not restored.""", memory_only=True)
MISSING = define("mount-source-missing", ERROR, """A file, folder or device of the host that is mounted in the
    container. LXC does not start a container without it; an `optional` mount it skips, which leaves an empty
    folder.""")
DISK = define("disk-stays-behind", ERROR, """The root file system is the only disk that moves. Any other stays where it
    is, with everything on it, and what the destination has under its name may be anybody's: the container would write
    to that, or find an empty folder. Nor does a file that is mounted through a loop device move completely: the kernel
    releases it after the container has ended, and what is written then comes after the last snapshot. Only a warning
    where nothing is ever written (squashfs, erofs, iso9660).""")
BOUND = define("bind-mount", WARNING, """Files on the host stay there: the restored container sees the files that the
    destination has under that path.""")
TERMINAL = define("terminal-mounted", ERROR, """A terminal of the host is mounted in the container where LXC mounts
    none. (LXC's own console and ttys do not matter: they are replaced by new ones.)""", memory_only=True)
TOO_MANY = define("mounts-too-many", ERROR, """Of what is mounted in a container, migrator reads 16 MiB, in all of its
    mount namespaces together (a mount usually takes 100 to 300 bytes of /proc/PID/mountinfo), and no path of more than
    32 KiB: a mount costs the container little, and its line may be very long, so that reading all of it could take all
    of the host's memory. What is not read cannot be checked, and the dump would fail.""", memory_only=True)
UNREAD = define("mounts-unread", ERROR, """As `mounts-too-many`, of the mounts that the container's own first process
    sees. So nobody knows whether other disks are among them, which would stay behind: with --no-memory too.""")
SHARING = define("mount-propagation", ERROR, """CRIU restores how a mount propagates by copying that from another of its
    peer group, which the kernel allows only where that one shows all that this one shows
    (restore_one_sharing_group in criu/mount-v2.c).""", memory_only=True)

# What is wrong with a mount in a mount namespace of a process's own: the kind of note, its code, and the words.
_SANDBOXED = (
    ("unsupported", UNSUPPORTED, "is a file system of type {type}"),
    ("unreachable", UNREACHABLE,
     "is a folder of a {type} that is mounted nowhere as a whole, as PrivateTmp=disconnected makes it"),
    ("sharing", SHARING, "is shared with mounts that show another folder"),
)


def externals(container: ContainerFacts) -> list[Mount]:
    """The mounts whose source the destination must have. The root file system's own snapshot does not count."""
    return [mount for mount in container.mounts if mount.kind == "external"]


def needed_paths(container: ContainerFacts) -> tuple[str, ...]:
    """Paths that the destination is asked about: the sources of mounts, as they are and as configured."""
    return tuple(dict.fromkeys([*_restored(container), *_left_out(container)]))


def _restored(container: ContainerFacts) -> tuple[str, ...]:
    """What CRIU bind-mounts, and what LXC does at the next start."""
    paths = [mount.host_path for mount in externals(container) if mount.host_path.startswith("/")]
    return tuple(dict.fromkeys([*paths, *_configured(container)]))


def _configured(container: ContainerFacts) -> list[str]:
    """What LXC mounts when it starts the container, and must find."""
    return [entry.source for entry in container.config.mounts
            if "optional" not in entry.options and (_binds(entry) or (_is_disk(entry) and _is_path(entry.source)))]


def _left_out(container: ContainerFacts) -> list[str]:
    """What LXC bind-mounts, and silently skips if it is missing."""
    mounted = {mount.target for mount in container.mounts}
    return [entry.source for entry in container.config.mounts
            if "optional" in entry.options and _binds(entry) and not entry.source.startswith(SYSTEM)
            and _target(entry) in mounted]


def _binds(entry: MountEntry) -> bool:
    return entry.bind and entry.source.startswith("/")


def _is_disk(entry: MountEntry) -> bool:
    """Whether it mounts a disk, or what may be one: a source that is a path, and a type that needs one."""
    path = entry.source.startswith("/") and not entry.source.startswith("//")  # that would be another host's
    sourceless = entry.type in SOURCELESS or entry.type == "none" or entry.source == "/dev/fuse"
    return not entry.bind and (entry.type in ON_DISKS or (path and not sourceless))


def _is_path(source: str) -> bool:
    """Whether the destination can be asked about it: not a ZFS data set, nor a list of several (`/a:/b`)."""
    return source.startswith("/") and ":/" not in source


def _target(entry: MountEntry) -> str:
    return "/" + entry.target.strip("/")


def supported(case: Case) -> Iterator[Finding]:
    held = {note.detail: note for kind in ("mount-held", CREDENTIALS_HELD) for note in reversed(case.notes(kind))}
    for mount in case.container.mounts:
        if (case.container.init_name == "systemd" and mount.kind == "unsupported"
                and live_steps.credentials_of(mount.type, mount.target)):
            yield _credentials(case, mount, held.get(mount.target))
        elif mount.kind == "unsupported":
            yield UNSUPPORTED.found(
                f"{mount.target} in {case.container.name} is a file system of type {mount.type}.",
                _capital(_unmount(case, mount)))
        elif mount.kind == "unreachable":
            yield UNREACHABLE.found(f"{mount.target} in {case.container.name} is bound from nowhere within reach.",
                                    _capital(_unmount(case, mount)))
        elif mount.kind == "deleted":
            yield DELETED.found(f"What is mounted at {mount.target} in {case.container.name} has been deleted.",
                                _capital(_unmount(case, mount)))


def read(case: Case) -> Iterator[Finding]:
    for note in case.notes(mounts_seen.TOO_MANY)[:1]:
        code = TOO_MANY if case.container.mounts else UNREAD  # its first process has some at least
        yield code.found(
            f"{case.container.name} has more mounted than is read, or at a longer path (all of its mount namespaces "
            f"together, up to {holder(note)}).",
            "See how many mounts that one has, and how long they are: wc --lines --bytes --max-line-length "
            f"/proc/{note.pid}/mountinfo -- and unmount what is not needed, or restart the container.")


def _unmount(case: Case, mount: Mount) -> str:
    """How to unmount it, as part of a sentence."""
    if case.is_fixed(mount.target):
        return f"unmount it in the container: {case.inside('umount', mount.target)}"
    return ("unmount it as the user who mounted it, or restart the container without it: a user inside may lead root "
            "elsewhere by that path; for FUSE: fusermount3 -u")


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def sandboxes(case: Case) -> Iterator[Finding]:
    """The mount namespaces that processes have of their own."""
    for kind, code, what in _SANDBOXED:
        for note in case.notes(f"sandbox-{kind}"):
            type_, _, target = note.detail.partition(" ")
            live = (case.container.init_name == "systemd" and live_steps.is_cured(kind, type_, target)
                    and not note.busy)
            yield code.found(
                f"{holder(note)} has a mount namespace of its own, in which {target} {what.format(type=type_)}.",
                LIVE if live else _prepared(case, note), severity=INFO if live else None,
                unit=case.restarted(note))


def _prepared(case: Case, note: Note) -> str:
    if case.restarted(note):
        return f"Have {note.unit} restarted without it: {case.prepare}"
    return f"End what runs in it: kill {note.pid}"


def _credentials(case: Case, mount: Mount, held: Note | None) -> Finding:
    """A unit's credentials, as a ramfs, in which something may be `held` open."""
    found = f"{mount.target} in {case.container.name} is a file system of type {mount.type}"
    if held and held.kind == CREDENTIALS_HELD:  # restarted, the unit would be given them again
        unit = live_steps.credentials_of(mount.type, mount.target)
        return UNSUPPORTED.found(f"{found}, and {holder(held)} has a file of it open.",
                                 f"Stop what it is for during the move: {case.inside('systemctl', 'stop', unit)}")
    if held:
        return UNSUPPORTED.found(f"{found}, and {holder(held)} has it open.", _prepared(case, held),
                                 unit=case.restarted(held))
    return UNSUPPORTED.found(f"{found}.", LIVE, severity=INFO)


def sources(case: Case) -> Iterator[Finding]:
    there, needed = case.destination, _restored(case.container)
    if not case.options.memory:
        needed = (*_configured(case.container), *_left_out(case.container))
    for path in needed:
        if _terminal(path):
            continue
        if there and path not in there.present and answered(path, there):
            left_out = not case.options.memory and path not in _configured(case.container)
            yield MISSING.found(
                f"{there.name} has no {path}, which {case.container.name} mounts from its host"
                f"{' and would be started without' if left_out else ''}.",
                f"Create it on {there.name}, or remove its lxc.mount.entry and unmount it.",
                severity=WARNING if left_out else None)


def disks(case: Case) -> Iterator[Finding]:
    name, here = case.container.name, case.source.name
    shared = f"-- or, if the destination has the very same disk under that name: --ignore {DISK.name}"
    entries = {_target(entry): entry for entry in case.container.config.mounts if _is_disk(entry)}
    for target, entry in entries.items():
        yield DISK.found(
            f"{entry.source} of {here}, which {name} mounts at {target}, does not move along.",
            "Copy its contents into the container's root file system, and remove its lxc.mount.entry from "
            f"{case.config_file} {shared}")
    for mount in case.container.mounts:
        if not mount.disk or mount.kind not in ("unsupported", "unreachable") or mount.target in entries:
            continue
        if mount.loop and mount.type in UNWRITTEN:
            yield DISK.found(
                f"The loop device {mount.loop} of {here}, mounted in {name} at {mount.target}, is backed by a file, "
                "and moves along only if that is in the container's own root file system.",
                f"See which file backs {mount.loop}: {LOSETUP} -- and copy it there.", severity=WARNING)
        elif mount.loop:
            yield DISK.found(
                f"The loop device {mount.loop} of {here}, mounted in {name} at {mount.target}, is backed by a file: "
                f"what its file system still writes while {name} ends comes too late for the last snapshot.",
                f"Make sure that the file that backs {mount.loop} is in the container's own root file system: "
                f"{LOSETUP} -- and {_unmount(case, mount)}")
        else:
            yield DISK.found(
                f"{mount.disk} of {here}, mounted in {name} at {mount.target}, does not move along.",
                f"Copy its contents into the container's root file system, and {_unmount(case, mount)} {shared}")


def bound(case: Case) -> Iterator[Finding]:
    configured = {_target(entry): entry.source for entry in case.container.config.mounts if _binds(entry)}
    for mount in externals(case.container):
        path = mount.host_path or configured.get(mount.target, "")  # the host may no longer have it
        if _terminal(path):
            if not is_lxcs(mount.target):
                yield TERMINAL.found(
                    f"{mount.target} in {case.container.name} is the terminal {path} of the host.",
                    _capital(_unmount(case, mount)),
                )
        elif path and not path.startswith(SYSTEM):
            yield BOUND.found(
                f"{mount.target} in {case.container.name} is {path} of the host, which does not move along.",
                "Make sure that the destination has the same files there, or copy them into the container.",
            )


def _terminal(path: str) -> bool:
    return path.startswith("/dev/pts/") or path == "/dev/console"


CHECKS: tuple[Check, ...] = (read, supported, sandboxes, sources, disks, bound)
