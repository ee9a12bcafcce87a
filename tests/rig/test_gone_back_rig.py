# SPDX-License-Identifier: GPL-2.0-or-later
"""On the source somebody goes back to a snapshot of what the destination has the token of: LXC makes that unfenced."""

from __future__ import annotations

import pytest

from harness.rig import Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.moves import TO_B
from tests.rig.outcomes import failed


@pytest.mark.nightly  # tests/stages/test_gone_back_here.py has it without LXC
def test_it_counts_as_the_container(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120")
    rig.exec("hosta", "lxc-stop", "-k", "-n", "c1")
    rig.exec("hosta", "lxc-snapshot", "-n", "c1")
    rig.exec("hosta", "lxc-start", "-n", "c1")
    rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--no-memory").expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    rig.exec("hosta", "lxc-snapshot", "-n", "c1", "-r", "snap0")
    rig.exec("hosta", "lxc-start", "-n", "c1")
    rig.sh("hostb", "rm -rf /run/migrator")  # as after a reboot: it asks
    assert "runs on hosta" in str(failed(rig.migrator("hostb", "resume", "c1", "--json"), 66, "source-needed"))
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "STOPPED"
    shown = rig.status("hosta", "c1")
    assert str(shown["note"]).startswith("It runs here: ") and shown["next"] == "migrator rollback c1"
    rig.migrator("hosta", "rollback", "c1").expect(0)
    assert rig.probe("hosta", "c1", quick=True)["running"]
    assert "migrator" not in rig.sh("hosta", "cat /pool/c1/config")


@pytest.mark.nightly  # tests/stages/test_told_that_it_is_stopped.py has it without hosts
def test_who_finishes_is_told_that_it_has_stopped(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120")
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.exec("hostb", "lxc-stop", "-k", "-n", "c1")
    done = rig.migrator("hosta", "finish", "c1").expect(0)
    assert "does not run there. hostb says: It is stopped; start it with: lxc-start -n c1 -P /pool" in done.stderr
    rig.sh("hosta", "sed -i '/BEGIN migrator fence/,/END migrator fence/d' /pool/c1/config")
    assert "c1 can be started here, though it has moved to hostb" in rig.migrator("hosta", "status").expect(0).stdout
