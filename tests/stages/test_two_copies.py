# SPDX-License-Identifier: GPL-2.0-or-later
"""How what runs on the destination comes to its end, where its source runs it again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.errors.containers import ContainerNotFound
from migrator.errors.ownership import TwoCopies
from migrator.host import lxc
from migrator.record.journal import Migration
from migrator.record.next_commands import this_host
from stages.steps import renamed, two_copies
from tests.stages.other_starts import SLEEP, START, lives
from tests.stages.restored_and_stopped import here
from tests.stages.restoring import acts, restoring

__all__ = ["acts", "here", "restoring"]


@pytest.mark.parametrize(("init", "end"), [(4711, "lxc-stop -k -P {} c2 -- and then: migrator resume web"),
                                           (1, "kill -9 4711 4712, once you have seen what that is -- and")])
def test_it_is_stopped_by_its_own_name_where_that_is_it(here: Migration, monkeypatch: pytest.MonkeyPatch, init: int,
                                                        end: str) -> None:
    """And not another one of that name."""
    def cgroup_of(pid: int) -> Path:
        if pid != 4711:
            raise ProcessLookupError(pid)
        return Path("/sys/fs/cgroup/lxc.payload.c2")

    monkeypatch.setattr(lxc, "cgroup_of", cgroup_of)
    monkeypatch.setattr(renamed, "living", lambda *_: [4711, 4712])
    monkeypatch.setattr(lxc, "Container", lambda name, _: SimpleNamespace(name=name, init_pid=init))
    with pytest.raises(TwoCopies) as error:
        two_copies.refuse(here)
    assert f"run there: {end.format(here.lxcpath)}" in error.value.hint


def test_else_its_first_process_is_named(here: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others go with it."""
    def unknown(name: str, lxcpath: Path) -> None:
        raise ContainerNotFound(name=name, lxcpath=lxcpath)

    monkeypatch.setattr(lxc, "Container", unknown)
    with lives(*START, *SLEEP) as found:
        monkeypatch.setattr(renamed, "living", lambda *_: [4711, found[1]])
        with pytest.raises(TwoCopies, match="it has run on") as error:
            two_copies.refuse(here)
        assert f"kill -9 {found[1]}, once" in error.value.hint


def test_who_has_which(here: Migration) -> None:
    error = two_copies.of(here)
    assert f"OF web: it has run on {this_host()}" in str(error) and f"forced on {here.peer}." in str(error)
    assert f"lxc-stop -k -P {here.lxcpath} web -- and then: migrator resume web" in error.hint
    here.note("given", destination_lxcpath="/a b", lxcpath_given=True)
    assert two_copies.of(here).hint.endswith("migrator resume web -P '/a b'")
