# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's word that the destination may let the container run: who does not have it lets nothing run."""

from __future__ import annotations

import pytest

from harness.rig import Rig
from tests.rig.absence import reboot
from tests.rig.boot_guest import dumped, guest, killed_before_the_record, runs_only_on, states  # noqa: F401 -- a fixture
from tests.rig.outcomes import failed
from tests.rig.ticking import frozen

# ruff: noqa: F811 -- fixtures


@pytest.mark.nightly
def test_let_run_without_a_source_that_is_lost(rig: Rig, guest: str) -> None:
    """Later than a minute after create-dump, or where this host was rebooted: nothing without the source's word."""
    dumped(rig)
    id_ = rig.status("hostb", "c1")["id"]
    words = ("resume", "c1", "-s", "root@10.0.3.250", "--timeout", "1", "--json")
    error = failed(rig.migrator("hostb", *words), 66, "source-needed")
    assert "migrator resume c1 -P /pool   (on hosta)" in str(error["cure"])
    assert "migrator restore-dump c1 --force" in str(error["cure"])
    failed(rig.migrator("hostb", "restore-dump", "c1", "--force", "--json"), 67, "force-refused")
    failed(rig.migrator("hostb", "restore-dump", "c1", "--force", id_, "--json"), 27, "out-of-order")  # it answers
    assert frozen(rig) and states(rig) == ("dumped", "owned")
    rig.sh("hosta", "ip link set eth0 down")
    try:
        rig.migrator("hostb", "restore-dump", "c1", "--force", id_).expect(0)
    finally:
        rig.sh("hosta", "ip link set eth0 up")
    rig.migrator("hosta", "resume", "c1").expect(0)
    runs_only_on(rig, "hostb", guest)
    assert states(rig) == ("finished", "finished")


def test_rebooted_before_it_was_recorded_that_it_runs(rig: Rig, guest: str) -> None:
    """What has run stays, and stays fenced: whether the source was forced to run it again only that knows."""
    id_ = killed_before_the_record(rig)
    reboot(rig, "hostb")
    rig.sh("hostb", f"cd /pool/.migrator/c1+/{id_}.spool && test -s let-run && echo another >let-run")  # boot
    assert states(rig) == ("dumped", "restoring")
    refuses = rig.migrator("hostb", "resume", "c1", "-s", "root@10.0.3.250", "--timeout", "1", "--json")
    failed(refuses, 66, "source-needed")
    assert states(rig) == ("dumped", "restored")
    failed(rig.migrator("hostb", "restore-dump", "c1", "--json"), 27, "out-of-order")
    failed(rig.migrator("hostb", "finish", "c1", "--force", id_, "--json"), 27, "out-of-order")
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "STOPPED"
    rig.migrator("hosta", "resume", "c1").expect(0)  # which ends its own copy; then nothing else can run it
    runs_only_on(rig, "hostb", guest, starts=2)
    assert states(rig) == ("finished", "finished")
