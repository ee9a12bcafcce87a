# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests could leave on the machine. Other rigs, and other sessions of tests, may run beside them: not counted."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

MARK = "MIGRATOR_TEST_SESSION"  # in the environment of every process that a session of tests starts


def state(instance: str, temporary: Path | None = None) -> set[str]:
    """Mounts, loop devices, interfaces, firewall tables, cgroups and files that may be `instance`'s.

    What lies in pytest's temporary folders is another session's, unless `temporary` says that it is this one's.
    """
    own = _name(instance)
    found = {f"mount: {line}" for line in Path("/proc/self/mounts").read_text().splitlines()}
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            backing = file.read_text().strip()
            if not _others(backing, own):
                found.add(f"loop device: {file.parts[3]} {backing}")
    found |= {f"interface: {path.name}" for path in Path("/sys/class/net").iterdir()}
    found |= {f"firewall: {line}" for line in _output(["nft", "list", "tables"]).splitlines()}
    for hierarchy in _hierarchies():
        found |= {f"cgroup: {path}" for path in hierarchy.iterdir() if path.is_dir() and not _others(path.name, own)}
    found |= {f"file: {path}" for folder in ("/run", "/run/lock", "/run/netns", "/var/lib") if Path(folder).is_dir()
              for path in Path(folder).iterdir() if "migrator" in path.name and not _others(path.name, own)}
    return {line for line in found if "/pytest-of-" not in line or (temporary and str(temporary) in line)}


def traces(instance: str, mark: str = "") -> set[str]:
    """Processes that carry `mark`, if any, in their environment or live in namespaces below this instance's folders."""
    found = set()
    own = _name(instance)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            text = f"process: {folder.name} " + (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
            if mark and mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(text)
            if f"/var/lib/{own}/" in (folder / "mounts").read_text():
                found.add(text)
    return found


def others(text: str, instance: str) -> bool:
    """Whether a path or name is of a rig that is not this instance."""
    return _others(text, _name(instance))


def _name(instance: str) -> str:
    return "migrator-rig" if instance == "rig" else f"migrator-rig-{instance}"


def _others(text: str, own: str) -> bool:
    """Whether a path or name is another instance's."""
    match = re.search(r"migrator-rig(-[A-Za-z0-9-]+)?", text)
    return match is not None and match[0] != own


def _hierarchies() -> Iterator[Path]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind.startswith("cgroup"):
            yield Path(point)


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True).stdout
