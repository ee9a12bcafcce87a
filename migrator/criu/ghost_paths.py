# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether CRIU, when it recreates a deleted file, stays within the container's own file systems.

CRIU recreates a file or directory that is open although deleted (a *ghost*) under the name that it had, opens it and
removes it again, with this host's root directory and root's privileges (create_ghost and clean_one_remap in
criu/files-reg.c). It follows symbolic links on the way. Any user of a container can have left one in the place of a
directory of theirs that they deleted, and CRIU would create the file wherever that leads on this host. A directory that
already exists it takes for the one that it made: it sets owner and mode of the deleted one, and removes it in the end.
So we check where each name leads once all mounts of the container are there, with their contents, and no ghost is yet.

What CRIU creates when something is missing on the way does no harm: for a directory it creates directories (mkdirpat in
criu/util.c), otherwise it goes up to one that exists (trim_last_parent). A ghost that is itself a symlink could be in
CRIU's way later: `ghosts` refuses these. Nothing else changes these file systems meanwhile, because no task runs yet.

`at_restore` imports this module while a container is down.
"""

from __future__ import annotations

import os
import stat

FOLDER, FILE = "folder", "file"
# Where CRIU has each mount, by its number, in its own mount namespace (get_plain_mountpoint in criu/mount.c).
_PLACE = "/tmp/.criu.mntns.", "mnt-"  # noqa: S108


def line(mount: int, kind: str, depth: int, name: str) -> str:
    """A line of the plan (`at_restore.GHOSTS`), ended by NUL: a name on a mount of the images.

    The first `depth` words of the name lead to the mount point.
    """
    return f"{mount} {kind} {depth} {name}\0"


def require(plan: str, init: int, proc: str = "/proc") -> None:
    """Raise PermissionError if CRIU would be led astray. `init` is the container's PID 1, which was just created."""
    places = _places(f"{proc}/{init}")
    for each in filter(None, plan.split("\0")):
        mount, kind, depth, name = each.split(" ", 3)
        place = places.get(int(mount))
        if place is None:
            raise PermissionError(f"the mount of {name}, a deleted {kind} that is open, cannot be found")
        root = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            trouble = why_not(root, name, folder=kind == FOLDER, skip=int(depth))
        finally:
            os.close(root)
        if trouble:
            raise PermissionError(refused(name, kind, trouble))


def refused(name: str, kind: str, trouble: str) -> str:
    return f"{name}, a deleted {kind} that is open, cannot be recreated: {trouble}"


def _places(process: str) -> dict[int, str]:
    """Where CRIU has the mounts of the images for its own use: each by itself, without what is mounted on it."""
    found = {}
    with open(f"{process}/mountinfo", errors="surrogateescape", newline="\n") as file:
        for each in file:
            target = each.split(" ")[4]
            folder, _, name = target.rpartition("/")
            number = name.removeprefix(_PLACE[1])
            if folder.startswith(_PLACE[0]) and folder.count("/") == 2 and name != number and number.isdecimal():
                found[int(number)] = f"{process}/root{target}"
    return found


def why_not(root: int, name: str, *, folder: bool, skip: int = 0) -> str:
    """Why a deleted file or directory must not be made under a name below the directory `root`; "" if it may be.

    `skip` is the number of directories at the beginning of the name that lead to `root`.
    """
    words = split(name)[skip:]
    if ".." in words:
        return "its name leads upwards"
    here = os.dup(root)
    try:
        for number, word in enumerate(words):
            try:
                there = os.open(word, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            except (FileNotFoundError, NotADirectoryError):
                return ""
            os.close(here)
            here = there
            last = number == len(words) - 1
            if not last and stat.S_ISLNK(os.fstat(here).st_mode):
                return f"/{'/'.join([*split(name)[:skip], *words[:number + 1]])} is now a symbolic link"
    finally:
        os.close(here)
    return "another one now has its name" if folder else ""


def split(name: str) -> list[str]:
    """The components of a path, as the kernel and CRIU split it (get_relative_path in criu/util.c)."""
    return [word for word in name.split("/") if word not in ("", ".")]
