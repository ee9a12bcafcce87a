# SPDX-License-Identifier: GPL-2.0-or-later
"""What has arrived outlives an attempt that was given up: the next one between the same hosts sends only the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.rig import Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import instead_of
from tests.rig.moves import migrate, runs_only_on
from tests.rig.outcomes import RUNS_AGAIN

MIB = 1 << 20
FAILS = "#!/bin/sh\nexit 1\n"


def blob(rig: Rig, name: str, mebibytes: int, file: str = "blob") -> None:
    rig.exec("hosta", "dd", "if=/dev/urandom", f"of=/pool/{name}/rootfs/{file}", "bs=1M", f"count={mebibytes}",
             "status=none")


def bases(rig: Rig, host: str, name: str = "c1") -> list[str]:
    """The snapshots that lie there; each must be named by `status` as one that is kept."""
    there = rig.sh(host, f"ls -d /pool/.migrator/{name}/* 2>/dev/null", check=False).split()
    known = rig.migrator(host, "status", "--json").expect(0).json["kept"]
    assert there == sorted(each["path"] for each in known if each["name"] == name), known
    return [Path(path).name for path in there]


def fails_after_the_freeze(rig: Rig) -> list[dict[str, object]]:
    """The rounds that it sent before."""
    with instead_of(rig, "hostb", "lxc-checkpoint", FAILS):
        migrate(rig, "c1", "hosta").expect(RUNS_AGAIN)
    runs_only_on(rig, "hosta")
    found: list[dict[str, object]] = rig.newest_detail("hosta")["rounds"]
    return found


def test_the_next_attempt_sends_only_what_has_changed(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    blob(rig, "c1", 48)
    (first, *_) = fails_after_the_freeze(rig)
    assert first["full"] and int(str(first["bytes"])) > 48 * MIB
    kept = bases(rig, "hosta")
    assert len(kept) == 1 and bases(rig, "hostb") == kept, "the same one on both, and nothing else"
    for _ in range(2):
        blob(rig, "c1", 1, "more")
        (again, *_) = fails_after_the_freeze(rig)
        assert not again["full"] and int(str(again["bytes"])) < 4 * MIB, again
        last, kept = kept, bases(rig, "hosta")
        assert len(kept) == 1 and bases(rig, "hostb") == kept != last, "the newer one has taken its place"
    rig.migrator("hosta", "cleanup").expect(0)
    rig.migrator("hostb", "cleanup").expect(0)
    assert bases(rig, "hosta") == bases(rig, "hostb") == kept, "without a name they stay"
    done = migrate(rig, "c1", "hosta").expect(0).json
    assert not done["rounds"][0]["full"] and done["rounds"][0]["bytes"] < 4 * MIB
    runs_only_on(rig, "hostb")
    for host in ("hosta", "hostb"):
        (path,) = rig.sh(host, "ls -d /pool/.migrator/c1/*").split()
        assert done["migration"] in path, "what failed attempts have kept is gone"
    clean_hosts.allow("snapshot")


@pytest.mark.nightly  # test_power_cut.py has what is kept
def test_a_rollback_between_the_stages_keeps_what_was_imported(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    blob(rig, "c1", 16)
    rig.migrator("hosta", "prepare-data", "c1", "-d", "root@hostb").expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "prepare-data", "c1", "-d", "root@hostb").expect(0)  # which is not imported
    rig.migrator("hostb", "rollback", "c1").expect(0)
    (kept,) = bases(rig, "hostb")
    done = rig.migrator("hosta", "rollback", "c1", "--json").expect(0).json
    assert done["kept"] == [f"/pool/.migrator/c1/{kept}"] and bases(rig, "hosta") == [kept]
    assert rig.leftovers() == []
    sent = rig.migrator("hosta", "prepare-data", "c1", "-d", "root@hostb", "--json").expect(0).json
    assert not sent["full"] and sent["bytes"] < MIB
    rig.migrator("hosta", "rollback", "c1").expect(0)  # nothing of this one has been imported
    assert bases(rig, "hosta") == bases(rig, "hostb") == [kept]


@pytest.mark.nightly
def test_cleanup_frees_it_on_either_host_also_without_the_container(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    blob(rig, "c1", 16)
    fails_after_the_freeze(rig)
    (kept,) = bases(rig, "hosta")
    path = f"/pool/.migrator/c1/{kept}"
    shown = rig.migrator("hostb", "cleanup", "c1", "--dry-run", "--json").expect(0).json
    assert shown["removed"] == [path] and shown["sizes"][path] > 16 * MIB
    assert path in rig.migrator("hostb", "status").expect(0).stdout
    rig.migrator("hostb", "cleanup", "c1").expect(0)
    assert bases(rig, "hostb") == []
    (first, *_) = fails_after_the_freeze(rig)  # hostb has told that it has none
    assert first["full"]
    assert len(bases(rig, "hosta")) == len(bases(rig, "hostb")) == 1
    rig.sh("hosta", "lxc-stop -k -n c1 && btrfs -q subvolume delete /pool/c1/rootfs && rm -r /pool/c1")
    for host in ("hosta", "hostb"):
        assert rig.migrator(host, "cleanup", "c1", "--json").expect(0).json["removed"]
        assert bases(rig, host) == []
        rig.migrator(host, "cleanup", "c1").expect(0)


@pytest.mark.nightly  # tests/migrator/copies/test_bases.py has it without hosts
def test_it_goes_before_there_is_no_space(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    blob(rig, "c1", 128)
    fails_after_the_freeze(rig)
    rig.guest("hosta", "c2", "tick")
    blob(rig, "c2", 64)
    free = int(rig.sh("hostb", "btrfs filesystem sync /pool; stat -f -c '%a %S' /pool | awk '{print $1 * $2}'"))
    try:
        # c2's disk, spooled and imported, and what must stay free: some more than is left, less than with c1's base.
        rig.exec("hostb", "fallocate", "-l", str(free - 190 * MIB), "/pool/ballast")
        rig.migrator("hosta", "prepare-data", "c2", "-d", "root@hostb").expect(0)
    finally:
        rig.sh("hostb", "rm -f /pool/ballast; btrfs filesystem sync /pool")  # the next test finds the room
    assert bases(rig, "hostb") == []
    rig.migrator("hosta", "rollback", "c2").expect(0)


@pytest.mark.nightly
def test_another_container_of_its_name_begins_anew(rig: Rig, clean_hosts: CleanHosts) -> None:
    """The one that moved was destroyed since: what is left of it on both hosts is of no use, and stays."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    migrate(rig, "c1", "hosta", "--undefine-source").expect(0)
    assert bases_there(rig, "hosta") == [], "what was its own has gone with it"
    rig.sh("hostb", "lxc-stop -k -n c1 && btrfs -q subvolume delete /pool/c1/rootfs && rm -r /pool/c1")
    rig.guest("hostb", "c1", "tick")
    assert migrate(rig, "c1", "hostb").expect(0).json["rounds"][0]["full"]
    assert not migrate(rig, "c1", "hosta").expect(0).json["rounds"][0]["full"], "its own way back"
    rig.sh("hostb", "lxc-stop -k -n c1 && btrfs -q subvolume delete /pool/c1/rootfs && rm -r /pool/c1")
    (old, _), (its,) = bases_there(rig, "hostb"), bases_there(rig, "hosta")
    rig.sh("hosta", "btrfs -q subvolume delete /pool/c1/rootfs && rm -r /pool/c1")
    rig.guest("hosta", "c1", "tick")
    done = migrate(rig, "c1", "hosta", "--undefine-source").expect(0).json
    assert done["rounds"][0]["full"]
    assert bases_there(rig, "hosta") == [its]
    assert bases_there(rig, "hostb")[:2] == [old, its] and len(bases_there(rig, "hostb")) == 3


def bases_there(rig: Rig, host: str) -> list[str]:
    """The snapshots that lie there, oldest first."""
    return rig.sh(host, "ls -tr /pool/.migrator/c1 2>/dev/null", check=False).split()
