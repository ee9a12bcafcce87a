# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a mount in a container is empty, and what of it can be cured live."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from migrator.host import proc
from migrator.host.mountinfo import MountLine, parse_mountinfo
from migrator.preflight.facts import sandbox_facts, watch_facts
from migrator.preflight.facts.mounts_seen import Mounted
from tests.migrator.sandboxes import LOGIND, OWN, RESOLVED


def line_of(folder: Path) -> MountLine:
    """As if the folder were where that which it is on is mounted."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        mount = watch_facts.fdinfo(f"/proc/self/fd/{fd}", "mnt_id")
    finally:
        os.close(fd)
    (line,) = (line for line in parse_mountinfo(proc.read_text("/proc/self/mountinfo")) if str(line.id) == mount)
    return dataclasses.replace(line, target=str(folder))


def test_an_empty_mount(tmp_path: Path) -> None:
    line = line_of(tmp_path)
    assert sandbox_facts.is_empty(os.getpid(), line, Mounted())
    assert not sandbox_facts.is_empty(os.getpid(), dataclasses.replace(line, id=0), Mounted())  # another one is over it
    (tmp_path / "file").touch()
    assert not sandbox_facts.is_empty(os.getpid(), line, Mounted())


def test_no_link_is_followed_on_the_way(tmp_path: Path) -> None:
    """The container's root can have one lead to where nobody ever answers."""
    (tmp_path / "there/empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "itself").symlink_to(tmp_path / "there/empty")
    assert not sandbox_facts.is_empty(os.getpid(), line_of(tmp_path / "link/empty"), Mounted())
    assert not sandbox_facts.is_empty(os.getpid(), line_of(tmp_path / "itself"), Mounted())


@pytest.mark.parametrize("empty", [True, False])
def test_a_service_s_own_tmp_that_holds_something_is_in_use(monkeypatch: pytest.MonkeyPatch, empty: bool) -> None:
    monkeypatch.setattr(sandbox_facts, "is_empty", lambda pid, line, lines: empty)
    status = proc.parse_status(proc.read_text("/proc/self/status"))
    assert status
    nested = {"resolved": Mounted(parse_mountinfo(RESOLVED))}
    found = list(sandbox_facts.found(status, Mounted(parse_mountinfo(OWN)), nested, {"resolved": status}, {}))
    assert {detail: busy for kind, detail, _, busy in found if detail in {"tmpfs /tmp", "tmpfs /var/tmp"}} == {
        "tmpfs /tmp": not empty, "tmpfs /var/tmp": not empty}


@pytest.mark.parametrize("empty", [True, False])
def test_who_has_credentials_open_is_found_wherever_they_are_mounted(monkeypatch: pytest.MonkeyPatch, empty: bool
                                                                     ) -> None:
    """A service with mounts of its own opens them in its own mount of the file system, not in the container's."""
    monkeypatch.setattr(sandbox_facts, "is_empty", lambda pid, line, lines: empty)
    status = proc.parse_status(proc.read_text("/proc/self/status"))
    assert status
    own, nested = Mounted(parse_mountinfo(OWN)), {"logind": Mounted(parse_mountinfo(LOGIND))}
    its = next(line for line in nested["logind"].lines if line.target == "/run/credentials/console-getty.service")
    for held in ({}, {its.id: status}):
        found = [kind for kind, detail, _, _ in sandbox_facts.found(status, own, nested, {"logind": status}, held)
                 if detail == its.target]
        assert found == (["mount-held" if empty else sandbox_facts.CREDENTIALS_HELD] if held else [])
