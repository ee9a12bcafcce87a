# SPDX-License-Identifier: GPL-2.0-or-later
"""A container that has more mounted than is read: dump and restore fail and do not take the host's memory for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.criu import (
    bound_sockets,
    cgroup_mounts,
    ghost_paths,
    ghosts,
    mount_flags,
    mount_sources,
    pressure_triggers,
    slave_mounts,
    terminals,
)
from migrator.criu.bound_sockets import Bound
from migrator.host import mount_tables, roots
from migrator.host.mount_tables import MountTables, TooManyMounts

HERE = os.getpid()
LOOKS: dict[str, Callable[[], Any]] = {
    "flags": lambda: mount_flags.record([HERE]),
    "slaves": lambda: slave_mounts.record([HERE]),
    "cgroups": lambda: cgroup_mounts.below([HERE], "/lxc.payload.c1"),
    "ghosts": lambda: ghosts.require_here(Path("/nonexistent"), HERE),
    "sockets": lambda: bound_sockets.require_here(Path("/nonexistent"), HERE, [HERE]),
    "sockets, in another namespace": lambda: bound_sockets._from_the_top(HERE, MountTables()),
    "triggers": lambda: pressure_triggers.CgroupMounts().hold(HERE, 0),
    "terminals": lambda: terminals.found(HERE),
    "restored flags": lambda: mount_flags.tighten(f"{mount_flags.inside(HERE)} ro /x\n", [HERE]),
    "restored slaves": lambda: slave_mounts.make_slaves(f"{mount_flags.inside(HERE)} /x\n", [HERE]),
    "restored sources": lambda: mount_sources.require("", [HERE], []),
    "restored sources, from the top": lambda: mount_sources._from_the_top(HERE),
}


class Namespaces:
    """The C library, for who enters one: it is ours."""

    @staticmethod
    def unshare(_: int) -> int:
        return 0

    @staticmethod
    def setns(*_: int) -> int:
        return 0


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_tables, "LIMIT", 10)
    monkeypatch.setattr(ghosts, "ghosts", lambda _: [ghosts.Ghost(1, "/x", ghost_paths.FILE)])
    monkeypatch.setattr(bound_sockets, "bound", lambda _: [Bound(1, "/x", 1, deleted=False, connected=False)])
    monkeypatch.setattr(bound_sockets, "bound_to", lambda *_: {})
    monkeypatch.setattr(roots, "libc", Namespaces)
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: Namespaces)
    monkeypatch.setattr(roots, "mounted", lambda _: (roots.Root(30, 256), 90))


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.usefixtures("limited")
def test_no_more_is_read(look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_tables, "RESTORED_LIMIT", 10)
    with pytest.raises(TooManyMounts):
        LOOKS[look]()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.usefixtures("limited")
def test_only_a_restored_container_may_have_more(look: str) -> None:
    """Whether a descriptor is of a cgroup is asked at both times."""
    if look.startswith("restored") or look == "triggers":
        with contextlib.suppress(PermissionError):  # its mounts are not those of a plan
            LOOKS[look]()
    else:
        with pytest.raises(TooManyMounts):
            LOOKS[look]()


def test_as_much_as_a_restored_container_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process is asked, and those that see the same count once."""
    line = b"1 0 0:1 / / rw - tmpfs x rw\n"
    seen = {1: line, 2: line, 3: line.replace(b"1 0", b"2 0"), 4: line, 5: line.replace(b"1 0", b"3 0")}
    read: list[str] = []

    def reads(path: str, limit: int) -> bytes:
        assert limit == mount_tables.RESTORED_LIMIT
        read.append(path.split("/")[2])
        return seen[int(read[-1])]

    monkeypatch.setattr(mount_tables, "read", reads)
    monkeypatch.setattr(mount_sources, "os", SimpleNamespace(fsdecode=os.fsdecode, readlink=lambda _: "mnt:[1]"))
    monkeypatch.setattr(mount_sources, "_from_the_top", lambda _: "")
    monkeypatch.setattr(mount_flags, "sees", lambda pid: (3 if pid == 4 else pid,))
    monkeypatch.setattr(mount_tables, "RESTORED_LIMIT", 3 * len(line))
    found = list(mount_sources._seen([1, 2, 3, 4, 5]))
    assert found[0] == "" and sorted(found[1:]) == sorted(os.fsdecode(seen[pid]) for pid in (1, 3, 5))
    assert read == ["1", "2", "3", "5"], "what sees the same as another is not asked"
    monkeypatch.setattr(mount_tables, "RESTORED_LIMIT", 3 * len(line) - 1)
    with pytest.raises(TooManyMounts):
        list(mount_sources._seen([1, 2, 3, 5]))


def test_what_is_read_from_the_top_may_be_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a dump reads, as paths may be longer here."""
    monkeypatch.setattr(mount_tables, "LIMIT", 10)
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: Namespaces)
    assert len(mount_sources._from_the_top(HERE)) > 10


def test_no_mounts_name_passes_for_another_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process has open on a tmpfs is not of a cgroup, although a mount point's name has a carriage return."""
    lines = b"41 1 0:2 / /x\r36 rw - cgroup2 none rw\n36 1 0:3 / /y rw - tmpfs none rw\n"
    monkeypatch.setattr(pressure_triggers, "_read", lambda _: b"pos:\t0\nmnt_id:\t36\n")
    monkeypatch.setattr(mount_tables, "read", lambda *_: lines)
    monkeypatch.setattr(mount_flags, "sees", lambda _: ("all",))
    assert not pressure_triggers.CgroupMounts().hold(7, 3)
