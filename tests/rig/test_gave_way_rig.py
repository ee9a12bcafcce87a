# SPDX-License-Identifier: GPL-2.0-or-later
"""What has given way on the destination is renamed back, before the source could record that it goes on alone."""

from __future__ import annotations

import pytest

from harness.rig import Rig, wait_for
from tests.rig.boot_guest import dumped, guest, runs_only_on, states  # noqa: F401 -- a fixture
from tests.rig.fault_steps import PAUSES, hooked
from tests.rig.outcomes import UNKNOWN, failed
from tests.rig.ticking import frozen

# ruff: noqa: F811 -- fixtures


def renamed_there(rig: Rig, name: str, new_name: str) -> None:
    rig.sh("hostb", f"lxc-copy -R -P /pool -n {name} -N {new_name}")


@pytest.mark.nightly  # tests/stages/test_gave_way.py has it without hosts
def test_what_is_renamed_back_is_not_given_back(rig: Rig, guest: str) -> None:
    dumped(rig)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.sh("hostb", "lxc-stop -k -P /pool c1")
    renamed_there(rig, "c1", "c9")
    failed(rig.migrator("hosta", "rollback", "c1", "--json"), 31, "gone-there")
    forced = ("rollback", "c1", "--force", str(rig.status("hosta", "c1")["id"]))
    rig.sh("hostb", "lxc-start -P /pool -n c9")
    failed(rig.migrator("hosta", *forced, "--json"), UNKNOWN, "copy-not-ended")
    rig.sh("hostb", "lxc-stop -k -P /pool c9")
    with hooked(rig):
        rig.put("hosta", f"{PAUSES}/c1", "before source roll-back done 1")
        with rig.start("hosta", "migrator", *forced) as rolling_back:
            wait_for(lambda: "reached" in rig.sh("hosta", f"ls {PAUSES}"), "it is told, and about to record that")
            rolling_back.signal(9)
            rolling_back.wait()
    assert frozen(rig) and states(rig) == ("dumped", "finished")

    rig.sh("hostb", "lxc-start -P /pool -n c9")
    cure = str(failed(rig.migrator("hosta", *forced, "--json"), 19, "back-there")["cure"])
    assert "lxc-stop -k -P /pool c9" in cure
    rig.sh("hostb", "lxc-stop -k -P /pool c9")
    renamed_there(rig, "c9", "c1")
    for words in (("rollback", "c1"), forced, ("resume", "c1"), ("finish", "c1")):
        failed(rig.migrator("hosta", *words, "--json"), 19, "back-there")
    rig.sh("hostb", "lxc-start -P /pool -n c1")
    cure = str(failed(rig.migrator("hosta", "rollback", "c1", "--json"), 19, "back-there")["cure"])
    assert frozen(rig) and states(rig) == ("dumped", "finished")
    rename = "lxc-copy -R -P /pool -n c1 -N NEWNAME"
    assert "lxc-stop -k -P /pool c1" in cure and rename in cure and "migrator rollback c1" in cure

    rig.sh("hostb", "lxc-stop -k -P /pool c1")
    renamed_there(rig, "c1", "c9")
    rig.migrator("hosta", "rollback", "c1").expect(0)
    runs_only_on(rig, "hosta", guest)
    assert states(rig) == ("rolled-back", "finished")
    rig.sh("hostb", "lxc-destroy -P /pool -n c9")
