# SPDX-License-Identifier: GPL-2.0-or-later
"""LXC's terminals in the other mount namespaces of a container, such as those of its sandboxed services.

In the container's own mount namespace these terminals are external mounts, and a restore replaces them by terminals of
the host (see `terminals`). In the other namespaces the kernel has slaves of those mounts. But there CRIU binds them
from whatever it has mounted first from the same file system, and that is the container's /dev/pts: a different
terminal, which cannot be a slave of the external mount (propagate_mount_v2 in criu/mount-v2.c, at least up to 4.2.1:
"Failed to copy sharing"). So in the images each terminal is put on a file system of its own, which is how it will be
after the restore, and then CRIU finds nothing but the external mount to bind it from. It makes no difference to a CRIU
that prefers external mounts, as it should.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from migrator.criu.image_messages import MOUNTS_MAGIC, once, split
from migrator.criu.protocol_buffers import replaced, rewritten

_TYPE, _DEVICE, _ROOT, _KEY = 1, 3, 6, 18  # mnt_entry in images/mnt.proto
_DEVPTS = 6  # ibid.
_UNUSED = 0xFFF00000  # a major number above all that are assigned (MKDEV in linux/kdev_t.h), with any minor

Place = tuple[int, bytes]  # a device number, and the path on that device which is mounted


def separated(images: dict[str, bytes]) -> dict[str, bytes]:
    """Give each of these terminals a device number of its own in the mount images, which are passed by file name.

    Images that need no change are returned as they are. Raises ValueError if one is damaged.
    """
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
    """Each terminal that is mounted: its record, where it is, and whether the mount is external."""
    for record in split(image, name, MOUNTS_MAGIC):
        place = _place(record)
        if place is not None:
            yield record, place, _KEY in once(record, (_KEY,))


def _place(record: bytes) -> Place | None:
    """Where the terminal is that this record mounts; None for any other mount."""
    found = once(record, (_TYPE, _DEVICE, _ROOT))
    device, root = found.get(_DEVICE), found.get(_ROOT)
    if found.get(_TYPE) != _DEVPTS or not isinstance(device, int) or not isinstance(root, bytes):
        return None
    return (device, root) if os.fsdecode(root).removeprefix("/").isdecimal() else None
