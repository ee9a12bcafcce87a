# SPDX-License-Identifier: GPL-2.0-or-later
"""CRIU's image of a container's cgroups, without the controllers that each cgroup enables for its children.

CRIU enables them only after it has opened all files, so it does not find the memory.events that a systemd watches. And
if they are enabled, it fails: it writes the file's trailing newline back to the kernel, which refuses that
(restore_cgroup_subtree_control in criu/cgroup.c, up to 4.2.1 at least). So they are taken out of the image, and
`cgroup_limits.enable` does it instead, earlier.

A failed restore is tried again, and what arrived is checked against its digests first: so it is kept as it came.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from migrator.base import bounded_read
from migrator.criu.protocol_buffers import bytes_field, content, fields, rewritten

IMAGE = "cgroup.img"
ARRIVED = f"{IMAGE}.arrived"  # its name while another one is in its place
LIMIT = 4 << 20  # bytes; a cgroup takes a few hundred
DEPTH_MAX = 128  # levels of nested cgroups
SUBTREE = b"cgroup.subtree_control"
_HEAD = struct.pack("<II", 0x54564319, 0x59383330)  # IMG_COMMON_MAGIC, CGROUP_MAGIC in criu/include/magic.h
# images/cgroup.proto: from cgroup_entry through its controllers and their dirs, each of which may have children, to the
# properties.
_CONTROLLERS, _DIRS, _CHILDREN, _PROPERTIES, _NAME = 2, 2, 2, 3, 1


def leave_controllers(images: Path) -> None:
    """Replace the dump's image with one without them, until `put_back`. One of the two is there at any moment.

    Raises OSError, and ValueError if the image makes no sense.
    """
    put_back(images)
    path, beside = images / IMAGE, images / f"{IMAGE}.new"
    if not path.exists():
        return
    image = bounded_read.read(path, LIMIT)
    new = without_controllers(image)
    if new == image:
        return
    beside.unlink(missing_ok=True)
    found = path.stat()
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(new)
        os.fchown(fd, -1, found.st_gid)  # the container's root has to read it, see `image_folders.give_images`
        os.fchmod(fd, stat.S_IMODE(found.st_mode))
    os.link(path, images / ARRIVED)
    beside.replace(path)


def put_back(images: Path) -> None:
    """Put the dump's image back in its place as it arrived; safe to repeat, also after being killed."""
    arrived = images / ARRIVED
    if arrived.exists():
        arrived.replace(images / IMAGE)
        arrived.unlink(missing_ok=True)  # rename(2) leaves both if they are hard links to one file


def without_controllers(image: bytes) -> bytes:
    """The image without the property SUBTREE of any cgroup; everything else is unchanged."""
    if not image.startswith(_HEAD):
        return image
    try:
        return rewritten(image, lambda record: _rewritten(record, [_CONTROLLERS, _DIRS]))
    except (IndexError, struct.error) as error:
        raise ValueError(f"{IMAGE} is damaged") from error


def _rewritten(record: bytes, way: list[int], depth: int = 0) -> bytes:
    """A message, rewritten; `way` has the numbers of the fields that lead to a cgroup_dir_entry, empty if it is one."""
    if depth > DEPTH_MAX:
        raise ValueError(f"{IMAGE} has cgroups more than {DEPTH_MAX} deep")
    out = bytearray()
    for number, value, raw in fields(record):
        onward = number == (way[0] if way else _CHILDREN)
        if value is None and onward:
            inner = _rewritten(content(raw), way[1:], depth + 1)
            out += bytes_field(number, inner)
        elif way or number != _PROPERTIES or not _is_subtree(content(raw)):
            out += raw
    return bytes(out)


def _is_subtree(record: bytes) -> bool:
    return any(number == _NAME and content(raw) == SUBTREE for number, value, raw in fields(record) if value is None)
