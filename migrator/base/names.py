# SPDX-License-Identifier: GPL-2.0-or-later
"""Names from a command line or from the other host, checked before any of them becomes part of a path."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path, PurePosixPath

from migrator.errors.containers import InvalidName

# LXC uses the name in a cgroup's name, an abstract socket's and a host name; 63 is the limit of the last (RFC 1123).
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MIGRATION = re.compile(r"[0-9a-f]{8}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INTERFACE = re.compile(r"[^\s/:\x00-\x1f\x7f\"]+")
# Up to IFNAMSIZ bytes minus the terminating zero; the kernel treats \xa0 as a space (lib/ctype.c), wherever it is.
_KERNELS_INTERFACE = re.compile(rb"[^/:\x00\t-\r \xa0]{1,15}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
PATH_MAX = 4096


def container_name(name: str) -> str:
    """The name itself if LXC can use it and it is safe in a path; raises InvalidName."""
    if len(name) > 63:
        reason = f"it has {len(name)} characters"
        raise InvalidName(what="The container name", name=repr(name[:20] + "…"), reason=reason)
    if not _CONTAINER.fullmatch(name):
        raise InvalidName(what="The container name", name=repr(name), reason="not all of its characters are allowed")
    return name


def migration_id(text: str) -> str:
    """The id itself if it is of the form that `new_migration_id` makes; raises InvalidName."""
    if not _MIGRATION.fullmatch(text):
        raise InvalidName(what="The migration id", name=repr(text[:20]), reason="it is not 8 hexadecimal digits")
    return text


def new_migration_id() -> str:
    """Eight random hexadecimal digits: short enough to type, and part of the name of everything that a migration makes.
    """
    return secrets.token_hex(4)


def uuid(text: str) -> str:
    """A subvolume's UUID in the usual lower-case form; raises InvalidName."""
    if not _UUID.fullmatch(text):
        raise InvalidName(what="The UUID", name=repr(text[:40]), reason="it is malformed")
    return text


def interface_name(name: str) -> str:
    """The name of a host's interface: what the kernel allows, except quotation marks and unprintable characters.

    Raises InvalidName.
    """
    if not _INTERFACE.fullmatch(name):
        raise InvalidName(what="The interface name", name=repr(name[:20]), reason="it is malformed")
    return inside_interface(name)


def inside_interface(name: str) -> str:
    """The name of an interface in a container, whose root may choose any that the kernel allows.

    It must be usable in a path as it is (dev_valid_name in net/core/dev.c), but not by any program. Raises InvalidName.
    """
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:
        raw = b""
    if not _KERNELS_INTERFACE.fullmatch(raw) or raw in (b".", b".."):
        raise InvalidName(what="The interface name", name=repr(name[:20]), reason="it is malformed")
    return name


def cut_interface(name: str) -> str:
    """A configured interface's name as LXC uses it: as many bytes as the kernel has room for, whatever follows.

    See network_ifname in LXC's src/lxc/confile_utils.c.
    """
    return os.fsencode(name)[:15].decode(errors="surrogateescape")


def host_name(text: str) -> str:
    """The name of a host, of the form that one can be given (hostname(7)); raises InvalidName."""
    if not _HOST.fullmatch(text):
        raise InvalidName(what="The host name", name=repr(text[:40]), reason="not all of its characters are allowed")
    return text


def lxcpath(text: str) -> Path:
    """An absolute path without `..` and control characters; raises InvalidName."""
    path = PurePosixPath(text)
    if len(text) > PATH_MAX or not path.is_absolute() or ".." in path.parts or not text.isprintable():
        raise InvalidName(what="The LXC path", name=repr(text[:40]), reason="it must be absolute and without '..'")
    return Path(path)


def in_path(name: str, lxcpath: Path) -> str:
    """A file name that distinguishes a container from every other one, even of the same name: `web@` and digits.

    Only for files on this host and of one boot: where symlinks in the path lead may change.
    """
    return f"{name}@{hashlib.blake2b(os.fsencode(os.path.realpath(lxcpath)), digest_size=8).hexdigest()}"


def same_path(one: Path, other: Path) -> bool:
    """Whether two LXC paths are one directory, however it is spelled: through a symlink or a bind mount.

    Only for comparing: LXC itself identifies a running container by the path as it was spelled when it was started.
    """
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
