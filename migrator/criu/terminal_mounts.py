# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal of LXC's that is mounted in further mount namespaces of a container: of each service that has one.

In the container's own mount namespace it is external, and at the restore one of the host's (see `terminals`). From
there the kernel has it in the other namespaces, as slaves. But CRIU binds it there from whatever of the same file
system it has mounted first, which is the container's /dev/pts: another terminal, which cannot be a slave of the first
(propagate_mount_v2 in criu/mount-v2.c, up to 4.2.1 at least: "Failed to copy sharing"). So in the images each of them
gets a file system of its own, as it will have after the restore; then CRIU finds nothing else to bind it from. To one
that prefers what is external, as it should, this makes no difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from migrator.criu.image_messages import MOUNTS_MAGIC, once, split
from migrator.criu.protocol_buffers import replaced, rewritten

_TYPE, _DEVICE, _ROOT, _KEY = 1, 3, 6, 18  # mnt_entry in images/mnt.proto
_DEVPTS = 6  # ibid.
_UNUSED = 0xFFF00000  # a major number beyond all that are given away (MKDEV in linux/kdev_t.h); the minor is free

Place = tuple[int, bytes]  # a device, and the path on it that is mounted


def separated(images: dict[str, bytes]) -> dict[str, bytes]:
    """The images of all mount namespaces, by their names; one in which there is nothing to do stays as it is."""
    external: set[Place] = set()
    others: set[Place] = set()
    used: set[int] = set()
    for name, image in images.items():
        for _, place, key in _mounts(image, name):
            (external if key else others).add(place)
            used.add(place[0])
    free = (number for number in range(_UNUSED, 1 << 32) if number not in used)
    devices = dict(zip(sorted(external & others), free, strict=False))
    if not devices:
        return images

    def moved(record: bytes) -> bytes:
        place = _place(record)
        return replaced(record, _DEVICE, devices[place]) if place in devices else record

    return {name: rewritten(image, moved) for name, image in images.items()}


def _mounts(image: bytes, name: str) -> Iterator[tuple[bytes, Place, bool]]:
    """Of each terminal that is mounted: its record, its place, whether it is external."""
    for record in split(image, name, MOUNTS_MAGIC):
        place = _place(record)
        if place is not None:
            yield record, place, _KEY in once(record, (_KEY,))


def _place(record: bytes) -> Place | None:
    """Where a terminal lies that is mounted; None for any other mount."""
    found = once(record, (_TYPE, _DEVICE, _ROOT))
    device, root = found.get(_DEVICE), found.get(_ROOT)
    if found.get(_TYPE) != _DEVPTS or not isinstance(device, int) or not isinstance(root, bytes):
        return None
    return (device, root) if os.fsdecode(root).removeprefix("/").isdecimal() else None
