# SPDX-License-Identifier: GPL-2.0-or-later
"""What is bound from a container's cgroups: in the sandbox of a service its own `memory.pressure`.

systemd mounts the cgroups read-only there, and binds this file over itself, to be written to. Where a container has a
cgroup namespace CRIU takes each mount of cgroups for that of its top (cgroup_parse in criu/filesystems.c, up to 4.2.1
at least). So it would bind the top, a folder, over a file: "Failed to move_mount". In the images each is given the
folder or file again that it shows. Of a CRIU that has been cured they do not say the top, and stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from migrator.criu.image_messages import MOUNTS_MAGIC, number, once, rewrite_mounts, split, string
from migrator.criu.protocol_buffers import bytes_field, fields, rewritten
from migrator.host.mountinfo import parse_mountinfo

_TYPE, _ID, _ROOT = 1, 2, 6  # mnt_entry in images/mnt.proto
_CGROUP2 = 23  # ibid.
_DELETED = "//deleted"  # how the kernel marks the root of a mount that has been removed


def name_roots(images: Path, pids: Iterable[int], cgroup: str, proc: str = "/proc") -> None:
    """Write them into the images of a dump of these processes; raises OSError, ValueError.

    `cgroup` is the container's own, as mountinfo has the roots of mounts on this host.
    """
    if roots := below(pids, cgroup, proc):
        rewrite_mounts(images, lambda texts: {name: named(image, name, roots) for name, image in texts.items()})


def below(pids: Iterable[int], cgroup: str, proc: str = "/proc") -> dict[int, bytes]:
    """What the mounts of cgroups in these processes' namespaces show below the top, by the ids of the mounts."""
    found, seen = {}, set()
    for pid in pids:
        try:
            namespace = os.readlink(f"{proc}/{pid}/ns/mnt")  # noqa: PTH115  # it leads to no file
            if namespace in seen:
                continue
            lines = parse_mountinfo(os.fsdecode(Path(f"{proc}/{pid}/mountinfo").read_bytes()))
        except OSError:  # a zombie, which has none
            continue
        seen.add(namespace)
        for line in lines:
            inside = line.root.removeprefix(cgroup)
            if line.type == "cgroup2" and inside != line.root and inside.startswith("/") and _DELETED not in inside:
                found[line.id] = os.fsencode(inside)
    return found


def named(image: bytes, name: str, roots: Mapping[int, bytes]) -> bytes:
    """The image of one mount namespace with these roots, where it says the top."""
    def change(record: bytes) -> bytes:
        found = once(record, (_TYPE, _ID, _ROOT))
        root = roots.get(number(found.get(_ID)))
        if root is None or found.get(_TYPE) != _CGROUP2 or string(found.get(_ROOT)) != b"/":
            return record
        return b"".join(bytes_field(_ROOT, root) if field == _ROOT else raw for field, _, raw in fields(record))

    for _ in split(image, name, MOUNTS_MAGIC):  # or it is refused
        pass
    return rewritten(image, change)
