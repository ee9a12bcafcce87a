# SPDX-License-Identifier: GPL-2.0-or-later
"""Who owns what below a container's cgroup: recorded when it is dumped, restored when it is restored.

LXC gives an unprivileged container's root what it needs to manage its cgroup (chown_cgroup_wrapper in liblxc's
cgfsng.c), and whatever is created in there belongs to its creator. CRIU creates the cgroups again as root and leaves
their files to root, and LXC up to 7.0 does not give anything away at a restore (lxc#4695 does). Until ownership is
restored, nothing can be moved into such a cgroup: `lxc-attach` and logins fail, and so does each new unit of a systemd
inside.

`at_restore` imports this module while a container is down.
"""

from __future__ import annotations

import errno
import os
import stat

from migrator.base import deep_folders

TOP = "/sys/fs/cgroup"
PAYLOAD = "lxc.payload."  # and the container's name (cgfsng.c in liblxc)
PROC = "/proc"
RECORD = "cgroup-owners"  # the file that travels beside the images
RECORD_LIMIT = 16 << 20  # bytes
ROOT = 0
PATH_LIMIT = 4096 - len("/cgroup.subtree_control") - 1  # bytes, so that its files can be opened (PATH_MAX)
PATH_SHOWN = 100  # characters
# What is given to root of the container in its own cgroup: what the kernel says is safe to delegate, or if it says
# nothing, liblxc's default list (cgroup-v2.rst, "Delegation"; unified_hierarchy_delegated in liblxc's cgfsng.c).
DELEGATE = "/sys/kernel/cgroup/delegate"
_DELEGATED = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "memory.oom.group")


def payload(proc_cgroup: str, name: str = "") -> str:
    """The payload's cgroup directory from the text of /proc/PID/cgroup (cgroups(7)): the part up to LXC's own name.

    If `name` is given, LXC must have named it for this container: everything in the directory may be frozen, limited or
    killed, so one that several containers share (lxc.cgroup.dir.container = lxc.payload/web) must never be mistaken for
    it. Without `name` it is that of any container, or the whole path if there is none.

    Raises ValueError if there is no cgroup v2, or no part that LXC has named for this container.
    """
    for line in filter(None, proc_cgroup.split("\n")):
        hierarchy, _controllers, path = line.split(":", 2)
        if hierarchy == "0":
            parts = path.strip("/").split("/")
            depth = next((number for number, part in enumerate(parts, 1) if is_named(part, name)), None)
            if name and depth is None:
                raise ValueError(f"{path[:PATH_SHOWN]} has no part that LXC has named for {name}")
            return "/".join([TOP, *parts[:depth]]).rstrip("/")
    raise ValueError("no cgroup v2 line")


def is_named(part: str, name: str = "") -> bool:
    """Whether LXC gives the payload's cgroup of container `name`, or of any, this name; numbered if it was taken."""
    if not name:
        return part.startswith(PAYLOAD)
    own, number = part[:len(PAYLOAD + name)], part[len(PAYLOAD + name):]
    return own == PAYLOAD + name and (not number or (number[0] == "-" and number.isascii() and number[1:].isdecimal()))


def holds(top: str, proc_cgroup: str) -> bool:
    """Whether a process is in the cgroup `top` or below, by the text of its /proc/PID/cgroup."""
    paths = [line[3:] for line in proc_cgroup.split("\n") if line.startswith("0::")]
    return any(f"{TOP}{path}/".startswith(f"{top}/") for path in paths)


def processes(top: str) -> list[int]:
    """The pids of all processes in the cgroup `top` and below; none if it is gone."""
    return ids(top, "cgroup.procs")


def has_process(top: str, pid: int) -> bool:
    """Whether a process is among those.

    The process's own cgroup is looked at first: there may be as many others in `top` as anyone in there cares to make,
    and a thaw is waiting for this.
    """
    return _is_listed(top, pid) or pid in processes(top)


def _is_listed(top: str, pid: int) -> bool:
    """As `has_process`, for one whose own cgroup is known and readable; a zombie is in none but still names one."""
    try:
        with open(f"{PROC}/{pid}/cgroup", "rb") as file:
            said = os.fsdecode(file.read())
        own = next((line[3:] for line in said.split("\n") if line.startswith("0::")), "")
        if not holds(top, said):
            return False
        with open(f"{TOP}{own}/cgroup.procs", opener=deep_folders.opener) as file:
            return str(pid) in file.read().split()
    except OSError:
        return False


def populated(top: str) -> bool:
    """Whether any process is alive in the cgroup `top` or below, frozen or not; False if it is gone. Raises OSError.

    A zombie does not count (cgroup.events in cgroup-v2.rst).
    """
    try:
        with open(f"{top}/cgroup.events") as file:
            return "populated 1" in file.read().split("\n")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):  # the latter if it is removed between open and read
            return False
        raise


def frozen_besides(top: str) -> list[str]:
    """The cgroups in and above `top` with processes that stay frozen when `top` is thawed, by a setting of their own.

    One that cannot be looked at counts too, for instance because its path is too long: CRIU cannot look at it either.
    """
    parts, unseen = top.split("/"), list[str]()
    folders = ["/".join(parts[:depth]) for depth in range(2, len(parts))]
    for folder, _ in deep_folders.walk(top, unseen.append):
        folders.append(folder)
        if len(os.fsencode(f"{folder}/cgroup.freeze")) > 4096:
            break  # one that is too long is enough, and whoever makes such may make thousands
    return [folder for folder in dict.fromkeys([*folders, *unseen]) if folder != top and _is_held(folder)]


def not_dumped(folder: str) -> str:
    """Why CRIU does not dump one of `frozen_besides`."""
    if len(os.fsencode(folder)) > PATH_LIMIT:
        return f"the path of a cgroup in it is too long for CRIU: {folder[:PATH_SHOWN]}..."
    return f"the cgroup {folder} is frozen, and CRIU would wait for it forever"


def _is_held(folder: str) -> bool:
    try:
        with open(f"{folder}/cgroup.freeze") as file:
            return file.read().strip() == "1" and populated(folder)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENODEV)  # it is just being removed


def ids(top: str, name: str) -> list[int]:
    """The numbers in all files `name` in the cgroup `top` and below."""
    found: list[int] = []
    for _, files, folder in deep_folders.descend(top):
        if name in files:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
                with open(fd) as file:
                    found += [int(word) for word in file.read().split()]
            except OSError:  # a cgroup that is just being removed
                continue
    return found


def owners(top: str) -> str:
    """What in the cgroup `top` and below is not wholly root's: a line `UID GID MODE PATH` for each file and directory.

    The mode is octal, and the path is relative to `top`, which itself is `.`.
    """
    lines = []
    for folder, files in deep_folders.walk(top):
        for path in (folder, *(f"{folder}/{name}" for name in files)):
            try:
                found = os.lstat(path)
            except OSError:  # a cgroup that is just being removed, or has a path that is too long, for CRIU as well
                continue
            if found.st_uid != ROOT or found.st_gid != ROOT:
                below = os.path.relpath(path, top)
                lines.append(f"{found.st_uid} {found.st_gid} {found.st_mode & 0o777:o} {below}\n")
    return "".join(lines)


def mapped(id_map: str) -> list[tuple[int, int]]:
    """The ranges of host ids (first, one past the last) in a uid_map or gid_map as seen from the host, and root's own.
    """
    ranges = [(ROOT, ROOT + 1)]
    for line in filter(None, id_map.split("\n")):
        _inside, outside, count = (int(word) for word in line.split())
        ranges.append((outside, outside + count))
    return ranges


def delegated(path: str = DELEGATE) -> set[str]:
    """The names of the files in a container's own cgroup that may belong to its root."""
    try:
        with open(path) as file:
            return set(file.read().split())
    except OSError:
        return set(_DELEGATED)


def give_back(
    top: str, record: str, uids: list[tuple[int, int]], gids: list[tuple[int, int]], may_have: set[str]
) -> None:
    """Make everything in the cgroup `top` belong to whom `record` (of `owners`) says; what does not exist is skipped.

    The record comes from another host, and its paths from the container: of the files in `top` itself, it only gets
    those that it `may_have`, because the others are the limits set by the host. Raises ValueError if the record names
    ids that are neither root's nor the container's (`uids`, `gids`), or a path that leads out.
    """
    for line in filter(None, record.split("\n")):  # a container may put any other line separator into a cgroup's name
        uid, gid, mode, below = line.split(" ", 3)
        parts = [] if below == "." else below.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{below!r} is not a path in a cgroup")
        for id_, ranges in ((int(uid), uids), (int(gid), gids)):
            if not any(first <= id_ < end for first, end in ranges):
                raise ValueError(f"{below!r} would belong to {id_}, which is not one of the container's ids")
        _give(top, parts, (int(uid), int(gid), int(mode, 8) & 0o777), may_have)


def _give(top: str, parts: list[str], owner: tuple[int, int, int], may_have: set[str]) -> None:
    """Set owner, group and mode of what is at `parts` below `top`, without following symlinks on the way."""
    uid, gid, mode = owner
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            parent, fd = fd, -1
            try:
                fd = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            finally:
                os.close(parent)
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind) or (stat.S_ISREG(kind) and (len(parts) > 1 or parts[0] in may_have)):
            os.chown(f"/proc/self/fd/{fd}", uid, gid)
            os.chmod(f"/proc/self/fd/{fd}", mode)
    except (FileNotFoundError, NotADirectoryError):  # CRIU leaves out empty cgroups, and controllers differ by host
        return
    finally:
        if fd >= 0:
            os.close(fd)
