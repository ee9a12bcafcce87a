# SPDX-License-Identifier: GPL-2.0-or-later
"""What the next `rig up` finds when one has not come to its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from riglib import bringup, by_readme, install, rendezvous, state
from riglib.errors import CommandFailed

UP = {"phase": "up", "addresses": {"rendezvous": ["10.0.3.5"]}}


@pytest.fixture
def end_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """An update whose installation ends with this; nothing of it is real."""
    monkeypatch.setattr(install, "install_helpers", lambda: None)
    monkeypatch.setattr(rendezvous, "serve", lambda addresses, *, restart: None)

    def set_end(error: BaseException | None) -> None:
        def ends() -> None:
            assert state.load()["phase"] == "updating"
            if error:
                raise error

        monkeypatch.setattr(install, "install_migrator", ends)

    return set_end


def test_an_update(end_with: Callable[[BaseException | None], None]) -> None:
    end_with(None)
    bringup.update(dict(UP))
    assert state.load().keys() > UP.keys()
    assert state.load()["phase"] == "up"


def test_a_killed_update_is_known_by_its_phase(end_with: Callable[[BaseException | None], None]) -> None:
    end_with(KeyboardInterrupt())  # as good as SIGKILL: nothing is undone
    with pytest.raises(KeyboardInterrupt):
        bringup.update(dict(UP))
    assert state.load()["phase"] == "updating"


def test_after_a_failed_update_the_rig_goes_on(end_with: Callable[[BaseException | None], None]) -> None:
    end_with(CommandFailed("pip"))
    with pytest.raises(CommandFailed):
        bringup.update(dict(UP))
    assert state.load()["phase"] == "up"
    assert "helpers" in state.load()
    assert "migrator" not in state.load()


def test_hosts_by_the_readme_are_booted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """LXC's bridge is started by a helper, and what the page installs comes last; nobody serves at the rendezvous."""
    done: list[str] = []
    monkeypatch.setattr(install, "install_helpers", lambda: done.append("helpers"))
    monkeypatch.setattr(by_readme, "boot", lambda addresses, *, lan: done.append(f"boot {lan}"))
    monkeypatch.setattr(by_readme, "install_migrator", lambda *, lan: done.append(f"install {lan}"))
    monkeypatch.setattr(rendezvous, "serve", lambda addresses, *, restart: done.append("serve"))
    new = UP | {"options": {"hosts": "readme", "nat_a": "none", "nat_b": "symmetric", "mbit": None}}
    bringup.update(dict(new))
    assert done == ["helpers", "boot False", "install False"]
    bringup.update(state.load())
    assert len(done) == 3
