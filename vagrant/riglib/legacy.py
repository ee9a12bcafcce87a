# SPDX-License-Identifier: GPL-2.0-or-later
"""What CRIU may leave behind in the machine's cgroup v1 hierarchies, and its removal.

The rig does not use them. But no namespace hides them, and a CRIU that manages all cgroups makes `lxc.payload.NAME`
there; its freezer even keeps the rig's processes from being ended.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from riglib import paths
from riglib.errors import RigError


def hierarchies() -> dict[str, Path]:
    """Return where each cgroup v1 hierarchy is mounted, by its first controller or its name."""
    found = {}
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup":
            name = next((word for word in options.split(",") if word not in ("rw", "ro", "relatime", "noatime")), "")
            found[name] = Path(folder)
    return found


def folders(pid: int, mounted: dict[str, Path]) -> Iterator[Path]:
    """Yield the v1 cgroups that a process is in."""
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        top = mounted.get(controllers.split(",")[0])
        if controllers and top:
            yield top / path.lstrip("/")


def thaw(pids: list[int]) -> None:
    """Thaw processes in a v1 freezer: until then not even SIGKILL ends them."""
    mounted = {name: folder for name, folder in hierarchies().items() if name == "freezer"}
    for pid in pids if mounted else []:
        with contextlib.suppress(OSError):
            for folder in folders(pid, mounted):
                if (folder / "freezer.state").read_text(encoding="ascii").strip() != "THAWED":
                    (folder / "freezer.state").write_text("THAWED", encoding="ascii")


def leftovers(pid: int) -> list[Path]:
    """Return the folders in which CRIU, on a host with this init, makes payload cgroups."""
    with contextlib.suppress(OSError):
        return list(folders(pid, hierarchies()))
    return []


def sweep(tops: list[Path]) -> None:
    """Remove empty payload cgroups. One with processes cannot be removed, whoever made it."""
    for top in tops:
        for payload in top.glob("lxc.payload.*"):
            for folder in [*sorted(payload.rglob("*/"), reverse=True), payload]:
                if folder.is_dir():
                    with contextlib.suppress(OSError):
                        folder.rmdir()


def host_folders(hosts: tuple[str, ...]) -> list[Path]:
    """Return `leftovers` of these hosts, while they run, and of ourselves: usually the same."""
    found = leftovers(os.getpid())
    for host in hosts:
        with contextlib.suppress(RigError):
            found += leftovers(paths.host_pid(host))
    return sorted(set(found))
