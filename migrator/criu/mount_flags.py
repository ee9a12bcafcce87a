# SPDX-License-Identifier: GPL-2.0-or-later
"""What a container's mounts forbid: recorded when it is dumped, enforced again when it is restored.

CRIU binds again what was bound from the host, but does not always set the flags that it had: if the container has two
such mounts of one file system, CRIU takes the second for a copy of the first, which it believes to have those flags
already (do_bind_mount_v2 in criu/mount-v2.c). Thus /lib of lxc-create's busybox container, read-only before, came back
writable: to the container's root, that was the host's own /lib.

`at_restore` imports this module while a container is down.
"""

from __future__ import annotations

import os

from migrator.base.folder_set import tops
from migrator.host import mount_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD = "mount-flags"  # the file that travels beside the images
RECORD_LIMIT = 16 << 20  # bytes
# Words of /proc/PID/mountinfo, flags of mount(2) (linux/mount.h).
FORBID = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "nosymfollow": 256}
KEEP = {"noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
REMOUNT = 32 | 4096  # MS_REMOUNT | MS_BIND: of this mount, not of its file system
NOTHING = "-"  # for the words of a mount that forbids nothing
_CLONE_NEWNS = 0x20000


def record(pids: Iterable[int]) -> str:
    """What is forbidden on the mounts of the container's processes, as each of them sees them.

    A line `PID FLAGS TARGET` for each mount at each target at which any forbids anything, bottom first: a process by
    its pid in the container, the words (NOTHING for none), and the target as in its mountinfo (proc_pid_mountinfo(5)).

    mountinfo lists only the mounts below the process's root (show_mountinfo in the kernel's fs/proc_namespace.c). CRIU
    takes the mounts of a namespace from one process in it (collect_mntinfo in criu/mount.c), and a container can
    arrange which. So a process only stands for those that are in its namespace and have the very same root.

    Raises TooManyMounts if there are more than are read.
    """
    text, tables = "", mount_tables.MountTables()
    seen = set()
    for pid in pids:
        try:
            seen_from = sees(pid)
            if seen_from in seen:
                continue
            own_id = inside(pid)
            text += "".join(f"{own_id} {','.join(sorted(each.forbidden)) or NOTHING} {target}\n"
                            for target, found in mounts(tables.read(f"/proc/{pid}/mountinfo")).items()
                            if any(each.forbidden for each in found) for each in found)
            seen.add(seen_from)
        except (FileNotFoundError, ProcessLookupError):  # a zombie, which has none
            continue
        if len(text) > RECORD_LIMIT:  # no destination accepts it
            break
    return text


def sees(pid: int) -> tuple[object, ...]:
    """What determines which mounts a process sees; raises OSError.

    It takes a tenth of the time of reading its mountinfo.
    """
    from migrator.host import roots

    root, mount = roots.mounted(pid)
    return os.readlink(f"/proc/{pid}/ns/mnt"), root, mount if mount is not None else ("of its own", pid)


class Mount:
    """What one mount forbids, which flags of KEEP it has, and whether the path of its target leads to it."""

    def __init__(self, words: set[str], *, visible: bool) -> None:
        self.forbidden, self.kept, self.visible = words & FORBID.keys(), words & KEEP.keys(), visible


def mounts(mountinfo: str) -> dict[str, list[Mount]]:
    """For each target what is mounted there, bottom first, because what is below the top may be uncovered again.

    Ordered by what each is mounted on, which a restore preserves, not by the lines' order, which it need not preserve.
    """
    lines = {}
    for line in filter(None, mountinfo.split("\n")):  # a container may put any other line separator into a target
        id_, parent, _device, _root, target, words = line.split(" ")[:6]
        lines[id_] = parent, target, set(words.split(","))
    on: dict[str, dict[str, str]] = {}  # for each mount what is mounted on it, by target
    for id_, (parent, target, _) in lines.items():
        if id_ != parent:
            on.setdefault(parent, {})[target] = id_
    level = sorted((target, id_) for id_, (parent, target, _) in lines.items() if id_ == parent or parent not in lines)
    reached = {id_ for _, id_ in level}  # those that nothing on the way to them covers
    found: dict[str, list[Mount]] = {}
    while level:
        beyond = []
        for target, id_ in level:
            here = on.get(id_, {})
            visible = id_ in reached and target not in here
            found.setdefault(target, []).append(Mount(lines[id_][2], visible=visible))
            beyond += sorted(here.items())
            if id_ in reached:
                reached |= {here[place] for place in tops(here)}
        level = beyond
    return found


def missing(recorded: dict[str, list[set[str]]], mountinfo: str) -> dict[str, int | None]:
    """The flags for a remount of each target that allows what it did not allow before.

    None if that is a mount beneath another one, which no remount can reach. Counted from the top, because an older
    version recorded only the uppermost.
    """
    found: dict[str, int | None] = {}
    for target, there in mounts(mountinfo).items():
        for before, now in zip(reversed(recorded.get(target, [])), reversed(there), strict=False):
            if wanted := before - now.forbidden:
                flags = [FORBID[word] for word in wanted | now.forbidden] + [KEEP[word] for word in now.kept]
                found[target] = sum(flags) if now.visible and found.get(target, 0) is not None else None
    return found


def tighten(text: str, pids: Iterable[int]) -> None:
    """Forbid on the mounts of a container, whose processes are `pids`, what a record says.

    Raises OSError, and TooManyMounts if more is mounted there than is read.
    """
    recorded: dict[int, dict[str, list[set[str]]]] = {}
    for line in filter(None, text.split("\n")):
        own_id, words, target = line.split(" ")
        recorded.setdefault(int(own_id), {}).setdefault(target, []).append(set(words.split(",")) & FORBID.keys())
    for pid in pids:
        if recorded and (wanted := recorded.pop(inside(pid), None)) is not None:
            found = missing(wanted, _restored(pid))
            if reached := {target: flags for target, flags in found.items() if flags is not None}:
                change(pid, {target: REMOUNT | flags for target, flags in reached.items()})
            if left := missing(wanted, _restored(pid)):
                raise OSError(f"{', '.join(left)} could not be mounted as before"
                              + (", as another mount hides it" if None in left.values() else ""))


def _restored(pid: int) -> str:
    """What a process of a restored container has mounted; raises TooManyMounts and OSError."""
    return os.fsdecode(mount_tables.read(f"/proc/{pid}/mountinfo", mount_tables.RESTORED_LIMIT))


def change(pid: int, found: dict[str, int]) -> None:
    """Change mounts in the mount namespace of a process, by paths from its root, with flags of mount(2).

    Our own namespace is left for that and entered again.
    """
    import ctypes

    from migrator.base import libc

    library = libc.library()
    here, there = (os.open(f"/proc/{each}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) for each in ("self", pid))
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        libc.must(library.setns(there, _CLONE_NEWNS), f"the mount namespace of process {pid}")
        os.fchdir(root)
        os.chroot(".")
        os.chroot("/..")  # into what is mounted over it, as setns(2) does
        for target, flags in found.items():
            libc.must(library.mount(None, _unescape(target), None, ctypes.c_ulong(flags), None), target)
    finally:
        libc.must(library.setns(here, _CLONE_NEWNS), "our own mount namespace")  # and its root
        for each in (here, there, root):
            os.close(each)


def _unescape(target: str) -> bytes:
    """A target in mountinfo, in which space, tab, newline and backslash are written in octal."""
    first, *rest = os.fsencode(target).split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def inside(pid: int) -> int:
    """A process's id in its own PID namespace."""
    return int(_read(f"/proc/{pid}/status").rpartition("\nNSpid:")[2].partition("\n")[0].split()[-1])


def _read(path: str) -> str:
    with open(path, errors="surrogateescape", newline="\n") as file:
        return file.read()
