# SPDX-License-Identifier: GPL-2.0-or-later
"""Mounts that are slaves of one of the container's mounts and belong to no peer group (mount_namespaces(7)).

systemd gives each sandboxed service such a mount, at /run/systemd/incoming, of a folder that it has for that service in
/run, and passes mounts on to the service through it. All of them have the same master, and nothing else in common. But
CRIU takes them for one group, and copies the propagation of one to the others. The kernel only allows that if the root
of the one contains those of the others; otherwise the restore fails with "Can't copy sharing from"
(restore_one_sharing_group in criu/mount-v2.c, at least up to 4.2.1, which avoids it only if the master is a mount of
the host). So in the images each of them is put in a peer group of its own, and taken out of that again before any task
runs. It makes no difference to a CRIU in which this is fixed.

`at_restore` imports this module while a container is down, so it imports little itself.
"""

from __future__ import annotations

import os

from migrator.criu import mount_flags
from migrator.host import mount_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RECORD = "slave-mounts"  # sent with the images: a line `PID TARGET` for each such mount, as in `mount_flags.RECORD`
RECORD_LIMIT = 16 << 20  # bytes
PROC = "/proc"
_ROOT, _SHARED, _MASTER = 6, 10, 11  # mnt_entry in images/mnt.proto
_MS_SLAVE = 1 << 19


def record(pids: Iterable[int]) -> str:
    """The record of such mounts in all the mount namespaces of these processes; raises TooManyMounts."""
    text, seen, tables = "", set(), mount_tables.MountTables()
    for pid in pids:
        try:
            namespace = os.readlink(f"{PROC}/{pid}/ns/mnt")
            if namespace not in seen:
                inside = mount_flags.inside(pid)
                text += "".join(f"{inside} {target}\n" for target, kind in _kinds(pid, tables) if kind == {"master"})
                seen.add(namespace)
        except OSError:  # a zombie, which has no mount namespace
            continue
    return text


def make_slaves(text: str, pids: Iterable[int]) -> None:
    """Make the recorded mounts slaves without a peer group again.

    `pids` are the processes of the restored container. Raises OSError, and ValueError if the record is damaged, or
    more is mounted there than is read.
    """
    wanted: dict[int, set[str]] = {}
    for line in filter(None, text.split("\n")):
        own_id, target = line.split(" ", 1)
        wanted.setdefault(int(own_id), set()).add(target)
    for pid in pids if wanted else ():
        if targets := wanted.pop(mount_flags.inside(pid), None):
            tables = mount_tables.MountTables(mount_tables.RESTORED_LIMIT)
            shared = {target for target, kind in _kinds(pid, tables) if kind == {"master", "shared"}}
            if again := targets & shared:
                mount_flags.change(pid, dict.fromkeys(again, _MS_SLAVE))


def _kinds(pid: int, tables: mount_tables.MountTables) -> Iterator[tuple[str, set[str]]]:
    """Each mount that a process sees: its target, and the names of its optional fields (proc_pid_mountinfo(5))."""
    for line in filter(None, tables.read(f"{PROC}/{pid}/mountinfo").split("\n")):
        words = line.partition(" - ")[0].split(" ")
        yield words[4], {word.partition(":")[0] for word in words[6:]}


def separated(images: dict[str, bytes]) -> dict[str, bytes]:
    """Put each of these mounts in a peer group of its own in the mount images, which are passed by file name.

    Images that need no change are returned as they are. Raises ValueError if one is damaged.
    """
    from migrator.criu.image_messages import MOUNTS_MAGIC, split
    from migrator.criu.protocol_buffers import number_field, rewritten

    groups: dict[int, list[bytes]] = {}  # by master, the roots of its slaves that are in no peer group
    shared = {0}
    for name, image in images.items():
        for record_ in split(image, name, MOUNTS_MAGIC):
            root, group, master = _sharing(record_)
            shared |= {group, master}
            if master and not group:
                groups.setdefault(master, []).append(root)
    apart = {master for master, roots in groups.items() if not _are_nested(roots)}
    if not apart:
        return images
    last = max(shared)

    def moved(record_: bytes) -> bytes:
        nonlocal last
        _, group, master = _sharing(record_)
        if group or master not in apart:
            return record_
        last += 1
        return _without(record_, _SHARED) + number_field(_SHARED, last)

    return {name: rewritten(image, moved) for name, image in images.items()}


def _sharing(record_: bytes) -> tuple[bytes, int, int]:
    """The root of a mount, its peer group, and that of its master; 0 for none."""
    from migrator.criu.image_messages import number, once, string

    found = once(record_, (_ROOT, _SHARED, _MASTER))
    return string(found.get(_ROOT)), number(found.get(_SHARED, 0)), number(found.get(_MASTER, 0))


def _without(record_: bytes, wanted: int) -> bytes:
    """A message without one of its fields."""
    from migrator.criu.protocol_buffers import fields

    return b"".join(raw for number, _, raw in fields(record_) if number != wanted)


def _are_nested(roots: list[bytes]) -> bool:
    """Whether one of them contains all others, or is the same."""
    top = min(roots, key=len)
    return all(root == top or top == b"/" or root.startswith(top + b"/") for root in roots)
