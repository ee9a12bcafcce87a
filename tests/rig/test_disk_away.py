# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination that has let the container run comes back without the disk with its LXC path, and then with it."""

from __future__ import annotations

from harness.rig import DESTINATION, Rig
from tests.rig.absence import reboot
from tests.rig.boot_guest import guest, killed_before_the_record, runs_only_on, states  # noqa: F401 -- a fixture
from tests.rig.outcomes import failed
from tests.rig.ticking import frozen

# ruff: noqa: F811 -- fixtures


def test_what_has_run_is_neither_given_up_nor_said_to_run(rig: Rig, guest: str) -> None:
    killed_before_the_record(rig)
    reboot(rig, "hostb")
    rig.sh("hostb", "mount -t tmpfs none /pool")  # another disk
    try:
        for host, words in (("hostb", ("resume", "c1")), ("hostb", ("rollback", "c1"))):
            failed(rig.migrator(host, *words, "--json"), 39, "disk-away")
        failed(rig.migrator("hosta", "rollback", "c1", "--json"), 5, "disk-away")
        assert frozen(rig) and states(rig) == ("dumped", "restoring")
    finally:
        rig.sh("hostb", "umount /pool")
    for host, words in (("hosta", ("resume", "c1")), ("hosta", ("rollback", "c1")), ("hostb", ("resume", "c1"))):
        failed(rig.migrator(host, *words, "--json"), 38, "stopped-there")  # the rig's hosts share one boot
    assert frozen(rig) and states(rig) == ("dumped", "restored")
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "STOPPED"
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.migrator("hosta", "resume", "c1").expect(0)
    runs_only_on(rig, "hostb", guest, starts=2)
    assert states(rig) == ("finished", "finished")


def test_what_has_stopped_goes_back_once_it_is_destroyed(rig: Rig, guest: str) -> None:
    """By the commands of the error: the memory is what its administrator chooses."""
    id_ = killed_before_the_record(rig)
    rig.sh("hostb", "lxc-stop -k -n c1")
    cure = str(failed(rig.migrator("hosta", "resume", "c1", "--json"), 38, "stopped-there")["cure"])
    assert frozen(rig)
    destroy, back = "lxc-destroy -P /pool -n c1", f"migrator rollback c1 -P /pool --force {id_}"
    assert destroy in cure and back in cure
    rig.sh("hostb", destroy)
    rig.exec("hosta", *back.split()).expect(0)
    runs_only_on(rig, "hosta", guest)
    assert states(rig) == ("rolled-back", "finished")


def test_data_come_to_no_other_disk(rig: Rig, guest: str) -> None:
    """Nor is a spool made there, by which it would be told later that the disk is not away."""
    rig.sh("hostb", "btrfs -q subvolume create /pool/other && mount --bind /pool/other /pool")  # `check` likes it
    try:
        failed(rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION, "--json"), 39, "disk-away")
        assert not rig.sh("hostb", "ls -A /pool").strip()
    finally:
        rig.sh("hostb", "umount /pool && btrfs -q subvolume delete /pool/other")
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "rollback", "c1").expect(0)
