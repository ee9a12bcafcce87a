# SPDX-License-Identifier: GPL-2.0-or-later
"""What a killed restore has left, as LXC has it, and what is done to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from migrator.config import container_config
from migrator.copies import no_memory, origins
from migrator.copies.origins import Whose
from migrator.criu import criu_dump, restore
from migrator.errors.containers import ContainerNotRunning
from migrator.host import empty_cgroups, lxc, network
from migrator.record.journal import Migration
from stages.steps import settling
from tests.migrator.layouts import layout_of
from tests.stages.restoring import ID


class Container:
    """A container as LXC has it; each question is told one state, the last for ever."""

    def __init__(self, name: str, lxcpath: Path) -> None:
        self.name, self.lxcpath, self.states, self.init_pid = name, lxcpath, ["STOPPED"], 4711
        self.folder = lxcpath / "cgroup"

    @property
    def state(self) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    @property
    def cgroup(self) -> Path:
        if not self.folder.is_dir():
            raise ContainerNotRunning(name=self.name, lxcpath=self.lxcpath, state="STOPPED")
        return self.folder


@pytest.fixture
def container(restoring: Migration, monkeypatch: pytest.MonkeyPatch) -> Container:
    made = Container("web", restoring.lxcpath)

    def known(name: str, lxcpath: Path) -> Container:
        assert (name, lxcpath) == ("web", restoring.lxcpath)
        return made

    monkeypatch.setattr(lxc, "Container", known)
    return made


@pytest.fixture
def acts(restoring: Migration, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in order."""
    done: list[str] = []

    def act(word: str, answer: object = None) -> Any:
        def note(*args: object, **more: object) -> object:
            shown = [str(each) for each in args if isinstance(each, str | int)]
            done.append(" ".join([word, *shown, *(f"{key}={value}" for key, value in more.items())]))
            return answer
        return note

    class Announced:
        join = staticmethod(act("announced to its end"))

    monkeypatch.setattr(origins, "whose", lambda *_: Whose.OURS)
    monkeypatch.setattr(criu_dump, "processes", lambda folders: [])
    monkeypatch.setattr(criu_dump, "left_after", lambda limit, folders: [])
    monkeypatch.setattr(lxc, "processes", lambda cgroup: [])
    monkeypatch.setattr(lxc, "container_processes", lambda name: [])
    monkeypatch.setattr(empty_cgroups, "drop", act("cgroups dropped"))
    monkeypatch.setattr(restore, "cgroup_folder", lambda layout: "guests" if layout == layout_of(restoring) else "")
    monkeypatch.setattr(no_memory, "end", act("start ended"))
    monkeypatch.setattr(no_memory, "log_of", lambda *_, **__: Path("/log"))
    monkeypatch.setattr(restore, "clear", act("restore cleared"))
    monkeypatch.setattr(restore, "complete", act("restore completed"))
    monkeypatch.setattr(network, "bring_back_dad", act("dad"))
    monkeypatch.setattr(network, "announce", act("announced", Announced))
    monkeypatch.setattr(settling, "give_back_rootfs", act("deleted"))
    folder = restoring.lxcpath / "web"
    folder.mkdir()
    container_config.fence(folder, "lxc.uts.name = web\n", ID, "no")
    return done


def fence(restoring: Migration) -> str:
    return container_config.fence_of((restoring.lxcpath / "web" / "config").read_text())
