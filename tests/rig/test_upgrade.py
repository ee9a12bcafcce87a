# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrator was replaced by this version while a migration was under way that an older one had begun.

Versions before 2026-11-28 took a frozen container off its bridges, without a table of nftables; they kept what had
arrived among the snapshots, and images in /dev/shm.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.rig import LXC_HOSTS, Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.moves import TO_B
from tests.rig.outcomes import STILL_FROZEN, failed

ADDRESS = "10.0.3.137"


@pytest.fixture(autouse=True)
def _memory(rig: Rig) -> Iterator[None]:
    yield
    for host in LXC_HOSTS:
        rig.sh(host, "rm -rf /dev/shm/migrator")


def received_formerly(rig: Rig) -> None:
    """On hostb things lie where older versions had them."""
    rig.sh("hostb", "cd /pool/.migrator && mkdir -p c1 && mv c1+/*.spool c1/ && rm -rf c1+")
    rig.sh("hostb", "id=$(basename /pool/.migrator/c1/*.spool .spool);"
                    " mkdir -m 711 /dev/shm/migrator; mkdir /dev/shm/migrator/$id; echo page >/dev/shm/migrator/$id/x")


def frozen_formerly(rig: Rig) -> None:
    """On hosta the container is frozen as they did it."""
    rig.sh("hosta", "for table in $(nft list tables netdev | grep -o 'migrator-.*'); do nft delete table netdev $table;"
                    " done; ip link set dev _c1 nomaster")
    assert rig.exec("client", "ping", "-c", "1", "-W", "1", ADDRESS, check=False).status == 1


def recorded_formerly(rig: Rig) -> None:
    """Neither journal has what later versions have added to their records."""
    script = ("import sqlite3; db = sqlite3.connect('/var/lib/migrator/journal.db'); db.execute("
              "'UPDATE migrations SET detail = json_remove(detail, ' + ', '.join("
              "f\"'$.{key}'\" for key in ('ticket', 'still_monotonic', 'caller', 'taken', 'dad')) + ')'); db.commit()")
    for host in LXC_HOSTS:
        rig.exec(host, "python3", "-c", script)


def dumped(rig: Rig) -> str:
    rig.guest("hosta", "c1", "tick", ip=ADDRESS, config=["lxc.net.0.veth.pair = _c1"])
    begun = str(rig.probe("hosta", "c1")["start"])
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    received_formerly(rig)
    frozen_formerly(rig)
    recorded_formerly(rig)
    return begun


def given_back(rig: Rig, begun: str) -> None:
    rig.migrator("hosta", "rollback", "c1").expect(0)
    rig.reaches("client", ADDRESS)
    found = rig.probe("hosta", "c1")
    assert found["running"] and found["intact"] and found["start"] == begun, found
    assert rig.leftovers() == []
    for host in LXC_HOSTS:
        assert rig.sh(host, "ls /dev/shm/migrator 2>/dev/null", check=False) == ""
    assert rig.sh("hostb", "ls /pool").strip() == ""


def test_a_container_that_it_froze_is_given_back(rig: Rig, clean_hosts: CleanHosts) -> None:
    given_back(rig, dumped(rig))


@pytest.mark.nightly  # the one above has such a dump, given back by its source
def test_what_it_received_is_not_restored(rig: Rig, clean_hosts: CleanHosts) -> None:
    begun = dumped(rig)
    error = failed(rig.migrator("hostb", "restore-dump", "c1", "--json"), STILL_FROZEN, "restore-failed")
    assert "an older version of migrator" in str(error["message"])
    given_back(rig, begun)


@pytest.mark.nightly
def test_what_it_received_of_the_disk_is_sent_again(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip=ADDRESS)
    begun = rig.probe("hosta", "c1")["start"]
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    received_formerly(rig)
    error = rig.migrator("hostb", "import-data", "c1", "--json").error
    assert error["code"] == "receive-failed" and "an older version of migrator" in error["message"]
    rig.sh("hostb", "cd /pool/.migrator/c1; id=$(basename *.spool .spool); mkdir $id.old; echo x >$id.old/config")
    old = f"hostb: old: /pool/.migrator/c1/{rig.status('hostb', 'c1')['id']}.old"
    for host, *command in (("hosta", "prepare-data", "c1", *TO_B), ("hostb", "import-data", "c1"),
                           ("hosta", "create-dump", "c1", *TO_B), ("hostb", "restore-dump", "c1"),
                           ("hosta", "finish", "c1")):
        rig.migrator(host, *command).expect(0)
    found = rig.probe("hostb", "c1")
    assert found["intact"] and found["start"] == begun
    assert [line for line in rig.leftovers() if ": snapshot: " not in line] == [old], "perhaps the only one"
    rig.migrator("hostb", "cleanup", "c1").expect(0)
    assert [line for line in rig.leftovers() if ": snapshot: " not in line] == []
    assert rig.sh("hostb", "ls /dev/shm/migrator").strip() == ""


def test_cleanup_knows_its_places(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Of migrations that have ended, or that the journal does not know; a table for interfaces that are gone, too."""
    rig.sh("hosta", """
        mkdir -p -m 700 /pool/.migrator/c1/0badc0de.spool /pool/.migrator/c1/0badc0de.images
        mkdir -m 711 /dev/shm/migrator; mkdir /dev/shm/migrator/0badc0de
        ip link add name _gone type veth peer name _gone2
        nft 'table netdev migrator-0badc0de { chain ingress {
            type filter hook ingress devices = { "_gone" } priority -500; policy drop; }; }'""")
    refused = rig.migrator("hosta", "cleanup").expect(0)
    assert "_gone neither receives nor sends anything" in refused.stderr, refused
    assert "migrator-0badc0de" in rig.sh("hosta", "nft list tables")
    rig.sh("hosta", "ip link delete dev _gone")
    rig.migrator("hosta", "cleanup").expect(0)
    assert rig.leftovers() == []
    assert rig.sh("hosta", "ls /dev/shm/migrator").strip() == ""
