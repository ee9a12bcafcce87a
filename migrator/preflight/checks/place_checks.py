# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the destination has a place for the container: its name, its disk, its memory, its time."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterator

from migrator.preflight.checks.case import Case, Check, listed, size
from migrator.preflight.findings import Finding, Severity, define

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
MIB = 1 << 20
SPARE_DISK = 256 * MIB  # bytes that must be left: btrfs needs space for its own trees
SPARE_MEMORY = 64 * MIB
CLOCK_TOLERANCE = 1.0  # seconds

NOT_RUNNING = define("container-not-running", ERROR, "Only a running container has memory to move.")
FROZEN = define("container-frozen", WARNING, """Someone froze the container; it will no longer be frozen once it has
    moved.""")
UNDER_WAY = define("under-way", ERROR, """A move of the container is under way, and what is frozen, stopped or running,
    here and there, is one of its two copies: do not thaw, start, rename or remove either by hand. So nothing else is
    reported about it. On the source this begins with the freeze, or the stop: until then it runs as before.""")
MOVED_AWAY = define("moved-away", ERROR, """What is left here of a container that has moved away is its stopped copy,
    and what has its name on the other host is that container: nothing else is reported about either.""")
EPHEMERAL = define("ephemeral", WARNING, """LXC destroys a container with lxc.ephemeral, disk and all, once it stops,
    and goes by the value at the time when it was started: no copy is kept, and with --no-memory, which must stop it
    first, all would be lost. So it is not stopped then, even if this finding is ignored.""")
NAME_TAKEN = define("name-taken", ERROR, "The destination has another container of that name in its LXC path.")
PATH_MISSING = define("lxcpath-missing", ERROR, "The destination's LXC path does not exist.")
NOT_BTRFS = define("destination-not-btrfs", ERROR, """The disk travels by `btrfs send`; it can be received only on
    btrfs.""")
ROOTFS = define("rootfs-not-subvolume", ERROR, "Only a btrfs subvolume can be snapshotted in an instant and sent.")
REPLACED = define("rootfs-replaced", ERROR, """The disk that moves is the one that the configuration names. If a
    snapshot was put in its place, the path was edited or another disk was mounted there, the running container still
    lives on the earlier one: what it has written since would be lost. The same is reported if its first process has
    changed its root into another file system, or into a folder of the same one: CRIU would restore it with all of that
    as its root, where the names of its sockets may lead elsewhere (`socket-astray`). Ignore this only if you trust the
    container's root user.""")
NESTED = define("nested-subvolume", ERROR, """A snapshot leaves out subvolumes inside the root file system: their files
    would be missing on the destination (btrfs-subvolume(8)).""")
NESTED_UNKNOWN = define("nested-unknown", ERROR, """Whether the root file system has subvolumes inside, which a snapshot
    leaves out, could not be determined.""")
QUOTA = define("disk-quota", WARNING, """btrfs quotas of the root file system are set on its host: the copy has no
    limit, nor does it after moving back, until someone sets it again (btrfs-qgroup(8)).""")
DISK_FULL = define("disk-full", ERROR, "The destination has less free space than the container's files need.")
DISK_TIGHT = define("disk-tight", WARNING, "The container's files fit, but hardly any space would be left.")
DISK_UNKNOWN = define("disk-size-unknown", INFO, "The size of the container's files was not determined.")
MEMORY_SHORT = define("memory-short", ERROR, """The destination has less free memory than the container uses; other
    processes there would be killed. A container that is restarted may need less.""")
MEMORY_TIGHT = define("memory-tight", WARNING, """The memory fits once, but not a second time as images on tmpfs: they
    go to disk, and the container is frozen for longer.""", memory_only=True)
CLOCK = define("clock-difference", WARNING, """Programs in the container see the time jump: certificates, leases and
    tickets may count as expired, and timestamps may go backwards.""")

# GNU's: any other refuses these options, and so does nothing; as another find refuses --version.
TAR = "tar --xattrs --xattrs-include='*' --acls --numeric-owner"


def state(case: Case) -> Iterator[Finding]:
    facts = case.container
    if facts.state == "FROZEN":
        yield FROZEN.found(f"{facts.name} is frozen.",
                           f"Thaw it: lxc-unfreeze -P {shlex.quote(facts.lxcpath)} {facts.name}")
    elif facts.state != "RUNNING":
        yield NOT_RUNNING.found(f"{facts.name} is {facts.state}.",
                                f"Start it: lxc-start -P {shlex.quote(facts.lxcpath)} {facts.name}")
    if facts.ephemeral:
        kept = f"{facts.lxcpath}/{facts.name}.kept"  # its own directory is removed with everything in it
        yield EPHEMERAL.found(
            f"{facts.name} was started as ephemeral: once it stops, LXC destroys it, disk and all, whatever its "
            "configuration says now.",
            "Do not stop it before you have a copy: end what writes in it, then btrfs subvolume snapshot -r "
            f"{shlex.quote(facts.rootfs.path)} {shlex.quote(kept)} && cp {shlex.quote(case.config_file)} "
            f"{shlex.quote(f'{kept}.config')} -- and create a new container from these, with lxc.ephemeral = 0.",
            severity=case.hinders_start)
    elif facts.config.ephemeral:
        yield EPHEMERAL.found(
            f"The configuration of {facts.name} makes it ephemeral: from its next start on, LXC destroys it when it "
            "stops.", f"Set lxc.ephemeral = 0 in {case.config_file}", severity=case.hinders_start)


def name(case: Case) -> Iterator[Finding]:
    there = case.destination
    wanted = case.options.name or case.container.name
    if there and not case.options.known_copy and any(other.name == wanted for other in there.containers):
        yield NAME_TAKEN.found(
            f"{there.name} already has a container {wanted} in {there.storage.path}.",
            "Rename or remove it there, or choose another name with --new-name.",
        )


def storage(case: Case) -> Iterator[Finding]:
    rootfs = case.container.rootfs
    if case.container.config.backend.startswith("overlay"):
        yield ROOTFS.found(
            f"The root file system of {case.container.name} is an overlay of {rootfs.path}.",
            "Stop the container, copy all that it sees as its root into a btrfs subvolume, and set that as "
            f"lxc.rootfs.path in {shlex.quote(case.config_file)}.")
    elif not rootfs.subvolume:
        new = shlex.quote(f"{rootfs.path}.new")
        where = "no subvolume" if rootfs.filesystem == "btrfs" else f"on {rootfs.filesystem or 'no file system'}"
        yield ROOTFS.found(
            f"The root file system {rootfs.path} is {where}.",
            f"Stop the container, then: btrfs subvolume create {new} && "
            f"cp -a --reflink=auto {shlex.quote(f'{rootfs.path}/.')} {new}/ -- and replace the old one with it.",
        )
    if rootfs.replaced:
        yield REPLACED.found(
            f"{case.container.name} lives on another disk, or in another folder, than {rootfs.path}, which would be "
            "moved.",
            f"See on which: awk '$5 == \"/\"' /proc/{case.container.init_pid}/mountinfo -- and put that back in its "
            "place, or set lxc.rootfs.path to it.",
        )
    if rootfs.nested:
        yield NESTED.found(
            f"{rootfs.path} has subvolumes inside, which a snapshot leaves out: {listed(list(rootfs.nested))}.",
            _into_a_folder(case, f"/{rootfs.nested[0]}"),
        )
    if rootfs.nested_unknown:
        yield NESTED_UNKNOWN.found(
            f"Which subvolumes are inside {rootfs.path} could not be determined: {rootfs.nested_unknown.rstrip('.')}.",
            f"Check again; see also: btrfs subvolume list -o {shlex.quote(rootfs.path)}")
    there = case.destination
    if not there:
        return
    if not there.storage.exists:
        yield PATH_MISSING.found(f"{there.name} has no {there.storage.path}.",
                                 f"On {there.name}: mkdir -p {shlex.quote(there.storage.path)}")
    if there.storage.filesystem != "btrfs":
        yield NOT_BTRFS.found(
            f"{there.storage.path} on {there.name} is on {there.storage.filesystem or 'an unknown file system'}.",
            f"Mount a btrfs file system on {there.storage.path}, or choose another path with --destination-lxcpath.",
        )


def _into_a_folder(case: Case, path: str) -> str:
    """How the subvolume at a path in the container is turned into a directory, with its contents.

    This is done inside, and not by its path from here as the host's root, because anyone in there could meanwhile make
    that path lead elsewhere. So could a user in there, if a directory on the way is theirs; then that user has to do
    it. What is mounted there refuses to be moved (EBUSY); what is mounted in it is left alone by find (-xdev), but
    would not be by rm -r. With -T, nothing goes into a directory that someone has put there under the new name, or that
    a symlink of theirs leads to. Root moves it to where nobody else has access; but a user who is in there already, if
    only by an open descriptor, can still replace a directory of theirs by a symlink to /root. cp opens directories by
    their paths and would read on there; GNU tar and find open each one relative to the last.
    """
    named, away = shlex.quote(path), shlex.quote(f"{path}.subvolume")
    if case.is_fixed(path):
        inner = shlex.quote(f"{path}.subvolume/{posixpath.basename(path)}")
        made = (f"{TAR} --version >/dev/null && mkdir -m 700 {away} && mv -T {named} {inner} && mkdir -m 700 {named}"
                f" && ({TAR} -C {inner} -Scf - . || echo NOT ALL >&2) | {TAR} -C {named} -xpf -")
        ended = f"find --version >/dev/null && find {inner} -xdev -delete && rmdir {away}"
        return (f"Make {named} a folder, with nothing at work in it, by the GNU tar and find and no others: "
                f"{case.inside('sh', '-c', made)} -- and once all is there: {case.inside('sh', '-c', ended)}")
    if path not in case.container.owned:
        return (f"Let those whose it is move what {named} holds into a folder, or delete it, not root: a user in there "
                "may make that path lead elsewhere.")
    made, ended = f"mv -T {named} {away} && cp -aT {away} {named}", f"find {away} -xdev -delete"
    return (f"Make {named} a folder as the USER in there whose it is, if all in it is his, or delete it so, not as "
            f"root, whom he may lead elsewhere by that path: {_as_user(case, made)} -- and once all is there: "
            f"{_as_user(case, ended)}")


def _as_user(case: Case, words: str) -> str:
    """Through su, which sets that user's groups and no others: lxc-attach -u would take any that it is told."""
    return case.inside("su", "-s", "/bin/sh", "-c", words, "USER")


def quota(case: Case) -> Iterator[Finding]:
    rootfs, there = case.container.rootfs, case.destination
    path = there.storage.path if there else case.container.lxcpath
    copy = shlex.quote(f"{path}/{case.options.name or case.container.name}/rootfs")
    shown, commands = [], []
    for group, *limits in rootfs.quota:
        for limit, option, of_what in zip(limits, ("", "-e "), ("", " that only it uses"), strict=True):
            if limit >= 0:
                shown.append(f"{size(limit)}{of_what} (qgroup {group})")
                # Any other group may contain more than this container.
                commands += [f"btrfs qgroup limit {option}{limit} {copy}"] if group.startswith("0/") else []
    if shown:
        yield QUOTA.found(
            f"{rootfs.path} is limited to {listed(shown)}; its copy will not be.",
            f"Once it is there, with quotas enabled (btrfs quota enable {shlex.quote(path)}), on "
            f"{there.name if there else 'that host'}: {' && '.join(commands) or 'add it to such a qgroup'}")


def disk_room(case: Case) -> Iterator[Finding]:
    there = case.destination
    if not there or case.options.disk_needed == 0:
        return
    needed = case.options.disk_needed if case.options.disk_needed is not None else case.container.rootfs.used
    if needed < 0:
        yield DISK_UNKNOWN.found(f"The size of {case.container.rootfs.path} is unknown.",
                                 f"Compare: du -shx {shlex.quote(case.container.rootfs.path)} with "
                                 f"{size(there.storage.free)} free.")
        return
    left = there.storage.free - needed
    sentence = (f"{there.storage.path} on {there.name} has {size(there.storage.free)} free, and {case.container.name} "
                f"needs {size(needed)}")
    if left < 0:
        yield DISK_FULL.found(f"{sentence}.", f"Free up space on {there.name}, for example with: migrator cleanup")
    elif left < SPARE_DISK:
        yield DISK_TIGHT.found(f"{sentence}: only {size(left)} would be left.", f"Free up space on {there.name}.")


def memory_room(case: Case) -> Iterator[Finding]:
    there, needed = case.destination, case.container.memory
    if not there or not there.memory_available:
        return
    sentence = (f"{there.name} has {size(there.memory_available)} of memory available, and {case.container.name} "
                f"uses {size(needed)}")
    if there.memory_available < needed + SPARE_MEMORY:
        yield MEMORY_SHORT.found(f"{sentence}.", f"Stop something on {there.name}, or move to a host with more memory.",
                                 severity=case.hinders_restore)
    elif there.memory_available < 2 * needed + SPARE_MEMORY:
        yield MEMORY_TIGHT.found(f"{sentence}, too much to hold the images in memory as well.",
                                 f"Free memory on {there.name} for a shorter downtime.")


def clock(case: Case) -> Iterator[Finding]:
    there = case.destination
    if not there:
        return
    offset = case.options.clock_offset
    if offset is None:
        offset = there.time - case.source.time
    if abs(offset) > CLOCK_TOLERANCE:
        word = "ahead of" if offset > 0 else "behind"
        yield CLOCK.found(f"The clock of {there.name} is {abs(offset):.1f} seconds {word} that of {case.source.name}.",
                          "Synchronise both clocks with the same time servers: timedatectl set-ntp true")


CHECKS: tuple[Check, ...] = (state, name, storage, quota, disk_room, memory_room, clock)
