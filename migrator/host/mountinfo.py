# SPDX-License-Identifier: GPL-2.0-or-later
"""What is mounted in a container, and what of it CRIU takes along, takes from the host, or cannot handle.

The classes follow CRIU's own decisions (validate_mounts, resolve_external_mounts and find_best_external_match in
criu/mount.c), because otherwise a mount that it refuses would only be discovered after the container has been frozen.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Collection, Iterable

# The file systems that CRIU mounts anew and fills (fstypes in criu/filesystems.c), and the two that liblxc enables.
# `fuse` is in CRIU's table too, but only to be refused. CRIU would mount aufs, overlay and simfs anew, but their
# options or their source are paths, for which it would use what the destination has there (`mount_plan.require`).
SUPPORTED = frozenset({
    "proc", "sysfs", "devtmpfs", "binfmt_misc", "tmpfs", "devpts", "pstore", "mqueue", "securityfs", "fusectl",
    "debugfs", "tracefs", "cgroup", "cgroup2", "autofs", "hugetlbfs",
})
# Created anew by LXC or CRIU for each container, although the host has the same file system mounted too.
OF_EVERY_HOST = frozenset({
    "cgroup", "cgroup2", "proc", "sysfs", "mqueue", "securityfs", "debugfs", "tracefs", "binfmt_misc", "pstore",
    "fusectl",
})
# What CRIU would create anew from paths on the host.
OF_PATHS = frozenset({"aufs", "overlay", "simfs"})
# On a disk, although the kernel does not give them a disk's device number (they may span several).
ON_DISKS = frozenset({"bcachefs", "btrfs", "zfs"})
# What has a source name that means nothing, or is on another machine.
SOURCELESS = SUPPORTED | OF_EVERY_HOST | OF_PATHS | frozenset({
    "9p", "bpf", "ceph", "cifs", "configfs", "efivarfs", "nfs", "nfs4", "nfsd", "nsfs", "ramfs", "rootfs", "rpc_pipefs",
    "selinuxfs", "smackfs", "smb3", "virtiofs",
})
# What responds without a server, another host or a process, which may be gone. (An overlay counts as such, whatever it
# is layered over.)
SERVERLESS = OF_EVERY_HOST | frozenset({
    "bcachefs", "bpf", "btrfs", "configfs", "devpts", "devtmpfs", "efivarfs", "erofs", "exfat", "ext2", "ext3", "ext4",
    "f2fs", "hugetlbfs", "iso9660", "jfs", "ntfs3", "overlay", "ramfs", "rootfs", "simfs", "squashfs", "tmpfs", "udf",
    "vfat", "xfs", "zfs",
})


@dataclasses.dataclass(frozen=True)
class MountLine:
    """One line of /proc/PID/mountinfo (proc_pid_mountinfo(5))."""

    id: int
    parent: int
    device: str  # major:minor of the file system
    root: str  # the part of the file system that is mounted
    target: str
    options: frozenset[str]
    type: str
    source: str
    shared: int = 0  # its peer group, 0 for none
    master: int = 0  # the peer group that it receives mounts from, 0 for none


@dataclasses.dataclass(frozen=True)
class Mount:
    """One mount in the container."""

    target: str
    type: str
    kind: str  # "root", "own", "external" (bound from the host), "unsupported", "unreachable", "deleted"
    host_path: str = ""  # for an external one: where the host has it, and where the destination must have it
    read_only: bool = False
    disk: str = ""  # the device that its file system is on, if any; may have been written by the container
    loop: str = ""  # its number if that is a loop device, backed by a file (loop(4); major number 7 in devices.txt)


def parse_mountinfo(text: str) -> list[MountLine]:
    """The mounts in the order of the file; malformed lines are skipped."""
    found = []
    for line in text.split("\n"):  # a mount's names may contain what separates lines elsewhere
        left, _, right = line.partition(" - ")
        first, last = left.split(" "), right.split(" ")
        if len(first) < 6 or len(last) < 2 or not (first[0].isdecimal() and first[1].isdecimal()):
            continue
        found.append(MountLine(
            int(first[0]), int(first[1]), first[2], unescape(first[3]), unescape(first[4]),
            frozenset(first[5].split(",")), last[0], unescape(last[1]),
            _peer_group(first, "shared"), _peer_group(first, "master"),
        ))
    return found


def _peer_group(fields: list[str], kind: str) -> int:
    found = next((field for field in fields[6:] if field.startswith(f"{kind}:")), "").partition(":")[2]
    return int(found) if found.isdecimal() else 0


def unescape(field: str) -> str:
    """Spaces and backslashes are written in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def escape(field: str) -> str:
    """The reverse of `unescape`, for a file in the format of fstab(5)."""
    return re.sub(r"[\s\\#]", lambda found: f"\\{ord(found[0]):03o}", field)


def classify(inside: list[MountLine], outside: list[MountLine], configured: Collection[str] = ()) -> tuple[Mount, ...]:
    """What each mount in the container is to CRIU. `configured` are the targets of the configuration's bind mounts."""
    bound = {"/" + target.strip("/") for target in configured}
    whole = {line.device for line in inside if line.root == "/"}
    root = next((line for line in inside if line.target == "/"), None)
    hosts: dict[str, list[MountLine]] = {}
    for line in outside:
        hosts.setdefault(line.device, []).append(line)
    return tuple(_classify(line, root, hosts.get(line.device, ()), bound, whole) for line in inside)


def _classify(line: MountLine, root: MountLine | None, hosts: Iterable[MountLine], bound: set[str],
              whole: set[str]) -> Mount:
    """`hosts` are the host's own mounts of that file system."""
    read_only = "ro" in line.options
    if line is root:
        return Mount("/", line.type, "root", read_only=read_only)
    if line.root.endswith("//deleted"):
        return Mount(line.target, line.type, "deleted", read_only=read_only)
    if line.type in OF_EVERY_HOST and line.target not in bound:
        return Mount(line.target, line.type, "own", read_only=read_only)
    host_path = _host_path(line, hosts)
    if root and line.device == root.device and _below(line.root, root.root) and line.target not in bound:
        return Mount(line.target, line.type, "own", read_only=read_only)
    if host_path or line.target in bound:
        return Mount(line.target, line.type, "external", host_path, read_only)
    if line.root == "/":
        kind = "own" if line.type in SUPPORTED else "unsupported"
    else:
        kind = "own" if line.device in whole else "unreachable"
    on_disk = not line.device.startswith("0:") or line.type in ON_DISKS
    return Mount(line.target, line.type, kind, read_only=read_only, disk=line.source if on_disk else "",
                 loop=line.device if line.device.startswith("7:") else "")


def _host_path(line: MountLine, hosts: Iterable[MountLine]) -> str:
    """Where the host has what is mounted here, or "" if the host cannot reach it."""
    best: MountLine | None = None
    for candidate in hosts:
        if _below(line.root, candidate.root):
            best = candidate
    if best is None:
        return ""
    rest = line.root[len(best.root.rstrip("/")) :]
    return posixpath.normpath(f"{best.target}/{rest}") if rest.strip("/") else best.target


def _below(path: str, folder: str) -> bool:
    return folder == "/" or path == folder or path.startswith(folder + "/")
