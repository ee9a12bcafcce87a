# SPDX-License-Identifier: GPL-2.0-or-later
"""What processes of a container have mounted in mount namespaces of their own that CRIU cannot restore.

systemd starts most services in a sandbox: a mount namespace whose mounts are slaves of those of the container, with
some of the service's own. CRIU refuses a few of these at the dump, and others only at the restore, when the container
has been frozen, sent, and thawed again. So its rules are applied before (validate_mounts in criu/mount.c, and
restore_one_sharing_group in criu/mount-v2.c).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

from migrator.criu import terminals
from migrator.criu.mount_sources import is_below
from migrator.host.mountinfo import OF_EVERY_HOST, OF_PATHS, SUPPORTED, MountLine


@dataclasses.dataclass(frozen=True)
class Trouble:
    """A mount that CRIU cannot restore."""

    kind: str  # "unsupported", "unreachable" or "sharing"
    namespace: str  # the mount namespace, as `nested` has it
    line: MountLine


def troubles(own: Sequence[MountLine], nested: Mapping[str, Sequence[MountLine]],
             outside: Collection[str]) -> list[Trouble]:
    """What is wrong in the mount namespaces that are `nested` in a container whose first process has the mounts `own`.

    `outside` are the devices of file systems that are mounted on the host: what is bound from these CRIU binds. What
    CRIU does not know and `own` has too is told of that alone.
    """
    every = [*own, *(line for lines in nested.values() for line in lines)]
    whole = {line.device for line in every if line.root == "/"}
    root = next((line.device for line in own if line.target == "/"), "")
    ttys = {(line.device, line.root) for line in own if terminals.index(line) is not None}
    bound = {*outside, root, *(line.device for line in own if line.type not in SUPPORTED)}
    found = []
    for namespace, lines in nested.items():
        for line in lines:
            if (line.device, line.root) in ttys:
                continue  # see `terminal_mounts`
            kind = "" if line.device in bound else _trouble(line, whole)
            if kind:
                found.append(Trouble(kind, namespace, line))
    return [*found, *_unlike_peers(own, nested)]


def _trouble(line: MountLine, whole: Collection[str]) -> str:
    """What CRIU makes anew must be a file system that it knows, and all of it must be mounted somewhere."""
    if line.type in OF_PATHS or (line.root == "/" and line.type not in SUPPORTED):
        return "unsupported"
    return "unreachable" if line.device not in whole and line.type not in OF_EVERY_HOST else ""


def _unlike_peers(own: Sequence[MountLine], nested: Mapping[str, Sequence[MountLine]]) -> Iterator[Trouble]:
    """Mounts that are shared with each other, of which none shows all that the others show.

    CRIU restores the one with the shortest root, and copies its propagation to the others, which the kernel allows only
    to those whose root is below. Those that share theirs with none are restored one by one (see `slave_mounts`).
    """
    groups: dict[tuple[int, int], list[tuple[str, MountLine]]] = {}
    for namespace, lines in (("", own), *nested.items()):
        for line in lines:
            groups.setdefault((line.shared, line.master), []).append((namespace, line))
    for (peers, _), members in groups.items():
        if not peers:
            continue
        first = min(members, key=lambda member: len(member[1].root))[1]
        if not all(is_below(line.root, first.root) for _, line in members):
            yield from (Trouble("sharing", namespace, line) for namespace, line in members if namespace)
