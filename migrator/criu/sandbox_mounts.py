# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mounts CRIU cannot restore of those that processes have in mount namespaces of their own.

systemd runs most services in a sandbox: a mount namespace whose mounts are slaves of the container's, plus some of the
service's own. CRIU refuses some of these at the dump, others only at the restore: by then the container has been frozen
and sent, and has to be thawed again. So CRIU's rules are applied beforehand (validate_mounts in criu/mount.c, and
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
    namespace: str  # a key of `nested`
    line: MountLine


def troubles(own: Sequence[MountLine], nested: Mapping[str, Sequence[MountLine]],
             outside: Collection[str]) -> list[Trouble]:
    """The mounts that CRIU cannot restore in the mount namespaces `nested` in a container.

    `own` are the mounts of its first process. `outside` are the devices of file systems that are mounted on the host:
    CRIU can bind what is bound from these. What CRIU does not support and `own` has too is not reported here, because
    it is reported for the container itself.
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
    """Its kind, or "" if there is none.

    CRIU mounts only file systems that it supports, and only if their root is mounted somewhere in the container.
    """
    if line.type in OF_PATHS or (line.root == "/" and line.type not in SUPPORTED):
        return "unsupported"
    return "unreachable" if line.device not in whole and line.type not in OF_EVERY_HOST else ""


def _unlike_peers(own: Sequence[MountLine], nested: Mapping[str, Sequence[MountLine]]) -> Iterator[Trouble]:
    """Mounts of one peer group, none of which contains all that the others show.

    CRIU restores the one with the shortest root and copies its propagation to the others. The kernel only allows that
    if their roots are below that one's. Mounts in no peer group are restored one by one (see `slave_mounts`).
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
