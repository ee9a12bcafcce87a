# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that is started at boot, dumped and perhaps restored: where it runs then, and where it must not start."""

from __future__ import annotations

import pytest

from harness.rig import Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.fault_steps import PAUSES, hooked
from tests.rig.moves import TO_B


@pytest.fixture
def guest(rig: Rig, clean_hosts: CleanHosts) -> str:
    """A tick guest on hosta that is started at boot, imported on hostb; returns its start."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120", config=["lxc.start.auto = 1"])
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    return str(rig.probe("hosta", "c1")["start"])


def dumped(rig: Rig) -> None:
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)


def runs_only_on(rig: Rig, host: str, start: str, *, starts: int = 1) -> None:
    """One copy runs, here, and the other host could not start its own.

    It is the one whose first start this was, with all its memory; or with two `starts`, one from the same disk anew.
    """
    found = rig.probe(host, "c1")
    assert found["running"] and found["advances"] and found["errors"] == 0 and found["starts"] == starts, found
    assert found["intact"] == (found["start"] == start) == (starts == 1), found
    other = {"hosta": "hostb", "hostb": "hosta"}[host]
    if rig.exec(other, "lxc-info", "-n", "c1", check=False).status == 0:
        refuses_to_start(rig, other)
    rig.reaches("client", "10.0.3.120")


def states(rig: Rig) -> tuple[str, str]:
    return rig.status("hosta", "c1")["state"], rig.status("hostb", "c1")["state"]


def killed_before_the_record(rig: Rig) -> str:
    """It runs on hostb, and who has restored it was killed before that was recorded; the migration's id."""
    dumped(rig)
    with hooked(rig):
        rig.put("hostb", f"{PAUSES}/c1", "before destination restored done 1")
        with rig.start("hostb", "migrator", "restore-dump", "c1") as restoring:
            wait_for(lambda: "reached" in rig.sh("hostb", f"ls {PAUSES}"), "it runs, and that is about to be recorded")
            restoring.signal(9)
            restoring.wait()
    return str(rig.status("hosta", "c1")["id"])


def refuses_to_start(rig: Rig, host: str) -> None:
    """Neither lxc-start nor what runs at boot (lxc-autostart) starts it."""
    assert rig.exec(host, "lxc-start", "-n", "c1", check=False).status != 0
    rig.exec(host, "lxc-autostart", check=False)
    assert rig.sh(host, "lxc-info -n c1 -sH").strip() == "STOPPED"
