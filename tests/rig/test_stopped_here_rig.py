# SPDX-License-Identifier: GPL-2.0-or-later
"""It has run on the destination, which has lost its power since: there it starts only once the source was asked."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import pytest

from harness.rig import Rig
from tests.rig.absence import cut_off, reboot
from tests.rig.boot_guest import dumped, guest, runs_only_on, states  # noqa: F401 -- a fixture


@pytest.fixture
def stopped(rig: Rig, guest: str) -> str:
    """The migration's id."""
    dumped(rig)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.sh("hostb", "sed -i 's/lxc.start.auto = 1/lxc.start.auto = 0/' /pool/c1/config")  # else LXC starts it at boot
    return str(rig.status("hosta", "c1")["id"])


def refuses(rig: Rig, id_: str) -> None:
    """While the source does not answer: nobody says that it runs, that it may be started, or that it can be ended."""
    for status, typed in ((29, "rollback c1"), (27, "restore-dump c1"), (27, f"finish c1 --force {id_}")):
        refused = rig.migrator("hostb", *typed.split()).expect(status)
        assert "migrator resume c1" in refused.stdout + refused.stderr
    for typed in ("resume c1", "resume --all --at-boot"):
        refused = rig.migrator("hostb", *typed.split(), "--timeout", "1")
        assert refused.status == 66 and "lxc-start" not in refused.stdout + refused.stderr
    note = rig.status("hostb", "c1")["note"]
    assert "migrator resume c1" in str(note) and "lxc-start" not in str(note)
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "STOPPED"


@pytest.mark.nightly
def test_the_source_was_forced_meanwhile(rig: Rig, guest: str, stopped: str) -> None:
    with cut_off(rig):
        reboot(rig, "hostb")
        forced = rig.migrator("hosta", "rollback", "c1", "--force", stopped, "--machine-is-off", "--timeout", "1")
        assert "migrator resume c1" in forced.expect(0).stdout
        refuses(rig, stopped)
    assert "migrator resume c1" in str(rig.status("hosta", "c1")["note"])
    rig.migrator("hostb", "resume", "c1").expect(0)
    assert states(rig) == ("rolled-back", "finished")
    assert rig.sh("hosta", "lxc-info -n c1 -sH").strip() == "RUNNING"
    assert rig.exec("hostb", "lxc-start", "-n", "c1", check=False).status != 0, "it is fenced"
    rig.migrator("hostb", "cleanup", "c1").expect(0)


@pytest.mark.nightly  # tests/stages/test_stopped_here.py has these without hosts
def test_the_source_is_lost(rig: Rig, guest: str, stopped: str) -> None:
    with cut_off(rig):
        reboot(rig, "hostb")
        refuses(rig, stopped)
        rig.migrator("hostb", "restore-dump", "c1", "--force", stopped).expect(0)
        assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "RUNNING"
        rig.migrator("hostb", "finish", "c1", "--force", stopped, "--timeout", "1").expect(0)
    rig.migrator("hosta", "resume", "c1").expect(0)
    runs_only_on(rig, "hostb", guest, starts=2)
    assert states(rig) == ("finished", "finished")


@pytest.mark.nightly
def test_the_source_waits(rig: Rig, guest: str, stopped: str) -> None:
    """An ordinary reboot."""
    reboot(rig, "hostb")
    done = rig.migrator("hostb", "resume", "--all", "--at-boot").expect(0).stdout
    assert "Start it with: lxc-start -P /pool c1" in done and states(rig) == ("finished", "finished")
    assert rig.status("hostb", "c1")["note"] == ""
    rig.exec("hostb", "lxc-start", "-P", "/pool", "c1")
    runs_only_on(rig, "hostb", guest, starts=2)
