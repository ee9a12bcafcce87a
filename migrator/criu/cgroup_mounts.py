# SPDX-License-Identifier: GPL-2.0-or-later
"""Bind mounts of a container's cgroup file system, such as a sandboxed service's own `memory.pressure`.

In the sandbox of a service, systemd mounts the cgroups read-only, and binds this file over itself to keep it writable.
If the container has a cgroup namespace, CRIU records for every cgroup mount that it shows the top of the hierarchy
(cgroup_parse in criu/filesystems.c, at least up to 4.2.1). A restore would then bind the top, which is a folder, over a
file: "Failed to move_mount". So the folder or file that each of them really shows is put in the images. If this is
fixed in CRIU, its images do not say the top, and stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from migrator.criu.image_messages import MOUNTS_MAGIC, number, once, rewrite_mounts, split, string
from migrator.criu.protocol_buffers import bytes_field, fields, rewritten
from migrator.host import mount_tables
from migrator.host.mountinfo import parse_mountinfo

_TYPE, _ID, _ROOT = 1, 2, 6  # mnt_entry in images/mnt.proto
_CGROUP2 = 23  # ibid.
_DELETED = "//deleted"  # how the kernel marks the root of a mount that was removed


def name_roots(images: Path, pids: Iterable[int], cgroup: str, proc: str = "/proc") -> None:
    """Write the roots of cgroup mounts into the images of a dump of the processes `pids`.

    `cgroup` is the container's own, as a path from the top of the hierarchy, which is how mountinfo shows roots on this
    host. Raises OSError, and ValueError if an image is damaged or more is mounted than is read.
    """
    if roots := below(pids, cgroup, proc):
        rewrite_mounts(images, lambda texts: {name: named(image, name, roots) for name, image in texts.items()})


def below(pids: Iterable[int], cgroup: str, proc: str = "/proc") -> dict[int, bytes]:
    """The roots of cgroup mounts below the container's top, by mount id, in the mount namespaces of these processes."""
    found, seen, tables = {}, set(), mount_tables.MountTables()
    for pid in pids:
        try:
            namespace = os.readlink(f"{proc}/{pid}/ns/mnt")  # noqa: PTH115  # it leads to no file
            if namespace in seen:
                continue
            lines = parse_mountinfo(tables.read(f"{proc}/{pid}/mountinfo"))
        except OSError:  # a zombie, which has no mount namespace
            continue
        seen.add(namespace)
        for line in lines:
            inside = line.root.removeprefix(cgroup)
            if line.type == "cgroup2" and inside != line.root and inside.startswith("/") and _DELETED not in inside:
                found[line.id] = os.fsencode(inside)
    return found


def named(image: bytes, name: str, roots: Mapping[int, bytes]) -> bytes:
    """The image of one mount namespace with these roots in place of the top; raises ValueError if it is damaged."""
    def change(record: bytes) -> bytes:
        found = once(record, (_TYPE, _ID, _ROOT))
        root = roots.get(number(found.get(_ID)))
        if root is None or found.get(_TYPE) != _CGROUP2 or string(found.get(_ROOT)) != b"/":
            return record
        return b"".join(bytes_field(_ROOT, root) if field == _ROOT else raw for field, _, raw in fields(record))

    for _ in split(image, name, MOUNTS_MAGIC):  # raises ValueError if CRIU would read it differently, or not at all
        pass
    return rewritten(image, change)
