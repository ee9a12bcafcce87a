# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether CRIU, where it makes a deleted file again, stays in the container's own file systems.

A file or folder that is open though deleted (a *ghost*) CRIU makes under the name that it had, opens it and removes it
again: with this host's root folder, and with root's rights here (create_ghost and clean_one_remap in criu/files-reg.c).
It follows symbolic links on the way. Any user of a container can have left one in the place of a folder that he has
deleted, and CRIU would make the file where that leads to on this host; a folder that is there already it takes for the
one that it has made, gives it the owner and mode of the deleted one, and removes it in the end. So it is looked at
where each name leads when all mounts of the container are there, with what they hold, and no ghost is yet.

That what is missing on the way is made up by CRIU does no harm: what it makes are folders, for a folder
(mkdirpat in criu/util.c), or it goes up to a folder that is there (trim_last_parent). A ghost that is itself a link it
could come upon later: `ghosts` refuses these. Nothing else changes these file systems meanwhile: no task runs yet.

`at_restore` imports it while a container stands still.
"""

from __future__ import annotations

import os
import stat

FOLDER, FILE = "folder", "file"
# Where CRIU has each mount, by its number, in its own mount namespace (get_plain_mountpoint in criu/mount.c).
_PLACE = "/tmp/.criu.mntns.", "mnt-"  # noqa: S108


def line(mount: int, kind: str, depth: int, name: str) -> str:
    """A line of the plan (`at_restore.GHOSTS`), which ends with NUL: a name on a mount of the images.

    The first `depth` words of the name lead to where that is mounted.
    """
    return f"{mount} {kind} {depth} {name}\0"


def require(plan: str, init: int, proc: str = "/proc") -> None:
    """Raise PermissionError where CRIU would be led astray. `init` is the container's first process, made just now."""
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
    """Where CRIU has the mounts of the images for itself, each alone, without what is mounted on it."""
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
    """Why a deleted file or folder must not be made under a name below the folder `root`; "" where it may be.

    `skip` are the folders at the name's beginning that lead to `root`.
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
    """The words of a path, as the kernel and CRIU take it (get_relative_path in criu/util.c)."""
    return [word for word in name.split("/") if word not in ("", ".")]
