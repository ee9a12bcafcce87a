# SPDX-License-Identifier: GPL-2.0-or-later
"""Mounts that are slaves of one of the container's, and shared with nobody (mount_namespaces(7)).

systemd gives each service in a sandbox such a mount of a folder of its own in /run, by which it hands mounts over to it
(/run/systemd/incoming). They have one master and belong to no group, so that nothing connects them with each other. But
CRIU takes all of them for one group, and copies from the one to the others, which the kernel only does where the roots
lie in each other: "Can't copy sharing from" (restore_one_sharing_group in criu/mount-v2.c, up to 4.2.1 at least, which
knows of this where the master is a mount of the host). So in the images each becomes a group of its own. What is then
shared is made private to it again before a task runs. To a CRIU that has been cured this makes no difference.

`at_restore` imports this module while a container is down.
"""

from __future__ import annotations

import os

from migrator.criu import mount_flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RECORD = "slave-mounts"  # travels beside the images: a line `PID TARGET` for each, as in `mount_flags.RECORD`
RECORD_LIMIT = 16 << 20  # bytes
PROC = "/proc"
_ROOT, _SHARED, _MASTER = 6, 10, 11  # mnt_entry in images/mnt.proto
_MS_SLAVE = 1 << 19


def record(pids: Iterable[int]) -> str:
    """Those of each mount namespace of these processes."""
    text, seen = "", set()
    for pid in pids:
        try:
            namespace = os.readlink(f"{PROC}/{pid}/ns/mnt")
            if namespace not in seen:
                inside = mount_flags.inside(pid)
                text += "".join(f"{inside} {target}\n" for target, kind in _kinds(pid) if kind == {"master"})
                seen.add(namespace)
        except OSError:  # a zombie, which has none
            continue
    return text


def make_slaves(text: str, pids: Iterable[int]) -> None:
    """Make those of a record what they were; `pids` are the processes of the restored container. Raises OSError."""
    wanted: dict[int, set[str]] = {}
    for line in filter(None, text.split("\n")):
        own_id, target = line.split(" ", 1)
        wanted.setdefault(int(own_id), set()).add(target)
    for pid in pids if wanted else ():
        if targets := wanted.pop(mount_flags.inside(pid), None):
            shared = {target for target, kind in _kinds(pid) if kind == {"master", "shared"}}
            if again := targets & shared:
                mount_flags.change(pid, dict.fromkeys(again, _MS_SLAVE))


def _kinds(pid: int) -> Iterator[tuple[str, set[str]]]:
    """Of each mount that a process sees its target and the names of its optional fields (proc_pid_mountinfo(5))."""
    with open(f"{PROC}/{pid}/mountinfo", errors="surrogateescape", newline="\n") as file:
        for line in filter(None, file.read().split("\n")):
            words = line.partition(" - ")[0].split(" ")
            yield words[4], {word.partition(":")[0] for word in words[6:]}


def separated(images: dict[str, bytes]) -> dict[str, bytes]:
    """The images of all mount namespaces, by their names; one in which there is nothing to do stays as it is."""
    from migrator.criu.image_messages import MOUNTS_MAGIC, split
    from migrator.criu.protocol_buffers import number_field, rewritten

    groups: dict[int, list[bytes]] = {}  # by their master, the roots of those that are shared with nobody
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
    """The root of a mount, the group that it is shared in, and its master's; 0 for none."""
    from migrator.criu.image_messages import number, once, string

    found = once(record_, (_ROOT, _SHARED, _MASTER))
    return string(found.get(_ROOT)), number(found.get(_SHARED, 0)), number(found.get(_MASTER, 0))


def _without(record_: bytes, wanted: int) -> bytes:
    from migrator.criu.protocol_buffers import fields

    return b"".join(raw for number, _, raw in fields(record_) if number != wanted)


def _are_nested(roots: list[bytes]) -> bool:
    """Whether one of them is above all others, or the same."""
    top = min(roots, key=len)
    return all(root == top or top == b"/" or root.startswith(top + b"/") for root in roots)
