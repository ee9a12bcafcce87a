# SPDX-License-Identifier: GPL-2.0-or-later
"""What failed for a passing reason is tried again, with what has arrived."""

from __future__ import annotations

import pytest

from harness.rig import DESTINATION, Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import instead_of
from tests.rig.outcomes import STILL_FROZEN, failed

# The hosts of the rig have no controllers that its cgroups could have: a cgroup of which it is said has none either.
SAYS_THAT_THERE_ARE = """#!/bin/sh
REAL "$@" || exit
for word; do [ ! -e "$word/cgroup-controllers" ] || printf '\\t.\\n' >>"$word/cgroup-controllers"; done
"""
FAILS = """#!/bin/sh
case "$*" in *restore*) exit 1 ;; esac
exec REAL "$@"
"""


@pytest.mark.nightly
def test_restored_at_the_second_try(rig: Rig, clean_hosts: CleanHosts) -> None:
    """CRIU is given another image of the container's cgroups than the one that has arrived."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120")
    begun = rig.probe("hosta", "c1")["start"]
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    with instead_of(rig, "hosta", "criu", SAYS_THAT_THERE_ARE):
        rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION).expect(0)
    with instead_of(rig, "hostb", "criu", FAILS):
        failed(rig.migrator("hostb", "restore-dump", "c1", "--json"), STILL_FROZEN, "restore-failed")
    rig.sh("hostb", "cd /run/migrator/*/ && ! cmp cgroup.img cgroup.img.arrived")
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.migrator("hosta", "finish", "c1").expect(0)
    found = rig.probe("hostb", "c1")
    assert found["running"] and found["intact"] and found["start"] == begun, found


def test_imported_once_there_is_room(rig: Rig, clean_hosts: CleanHosts) -> None:
    """It has left some to the others there."""
    rig.guest("hosta", "c1", "tick")
    rig.sh("hosta", "head -c 96M /dev/urandom >/pool/c1/rootfs/data")
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    # Room of what has been deleted before is given back later.
    rig.sh("hostb", "btrfs subvolume sync /pool >/dev/null; sync -f /pool")
    rig.sh("hostb", "fallocate -l $(($(stat -f -c '%a * %S' /pool) - (40 << 20))) /pool/filled")
    error = rig.migrator("hostb", "import-data", "c1", "--json").error
    assert error["code"] == "no-space", error
    assert rig.status("hostb", "c1")["next"] == "migrator import-data c1"
    rig.sh("hostb", "rm /pool/filled; sync -f /pool")
    rig.migrator("hostb", "import-data", "c1").expect(0)
    assert rig.sh("hostb", "stat -c %s /pool/.migrator/c1/*.1/data").strip() == str(96 << 20)
    rig.migrator("hosta", "rollback", "c1").expect(0)
