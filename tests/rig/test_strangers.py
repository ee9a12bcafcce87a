# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody makes a container of the same name on the destination while ours is on its way: his stays, and runs."""

from __future__ import annotations

import pytest

from harness.rig import Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import held
from tests.rig.moves import ALL_AT_ONCE, TO_B, arrived
from tests.rig.outcomes import RUNS_AGAIN


def makes_his(rig: Rig) -> str:
    """Somebody's container on hostb, under the name of the one that arrives; how to know it again."""
    rig.guest("hostb", "c1", "tick", ip="10.0.3.140")
    return str(rig.probe("hostb", "c1")["start"])


def both_are_well(rig: Rig, his: str, ours: str) -> None:
    for host, start in (("hostb", his), ("hosta", ours)):
        found = rig.probe(host, "c1")
        assert found["running"] and found["intact"] and found["start"] == start, (host, found)


@pytest.fixture
def ours(rig: Rig, clean_hosts: CleanHosts) -> str:
    rig.guest("hosta", "c1", "tick", ip="10.0.3.141")
    return str(rig.probe("hosta", "c1")["start"])


@pytest.mark.parametrize("host", ["hosta", "hostb"])
def test_while_it_arrives(rig: Rig, ours: str, host: str) -> None:
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    his = makes_his(rig)
    error = rig.migrator("hostb", "import-data", "c1", "--json").expect(23).error
    assert error["code"] == "container-exists"
    rig.migrator(host, "rollback", "c1").expect(0)
    rig.migrator("hosta", "rollback", "c1").expect(0)
    both_are_well(rig, his, ours)
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(30)
    both_are_well(rig, his, ours)


def test_while_it_arrives_and_ctrl_c(rig: Rig, ours: str) -> None:
    rig.exec("hosta", "dd", "if=/dev/urandom", "of=/pool/c1/rootfs/blob", "bs=1M", "count=48", "status=none")
    with rig.start("hosta", *ALL_AT_ONCE, "--bwlimit", "3M") as running:
        wait_for(lambda: arrived(rig) > 4 << 20, "some of it has arrived")
        his = makes_his(rig)
        running.signal(2)
        running.wait().expect(130)
    assert rig.status("hosta", "c1")["state"] == "rolled-back"
    both_are_well(rig, his, ours)
    assert rig.leftovers() == []


def test_the_destination_has_never_heard_of_it(rig: Rig, ours: str) -> None:
    """The first message was lost; the advised rollback must not be about his."""
    his = makes_his(rig)
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(30)
    begun = ("from migrator.record.journal import *; from migrator.record.states import *; from pathlib import Path;"
             "Journal(DEFAULT_PATH).create(id='0badc0de', role=Role.SOURCE, name='c1', lxcpath=Path('/pool'),"
             " peer='root@hostb', event=Event.SEND, destination_host='hostb', rounds=[], destination_lxcpath='/pool')")
    rig.sh("hosta", f"$(head -1 /usr/local/bin/migrator | cut -c3-) -c \"{begun}\"")
    rig.migrator("hosta", "rollback", "c1").expect(0)
    both_are_well(rig, his, ours)


@pytest.mark.parametrize("way", ["images gone", pytest.param("killed", marks=pytest.mark.nightly)])
def test_a_failed_restore_leaves_the_earlier_stay_as_it_was(rig: Rig, clean_hosts: CleanHosts, way: str) -> None:
    """A has the fenced copy of a container that is on B; on its way back to A it is not even put in place."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(0)
    look = "cd /pool/c1 && ls && btrfs subvolume show rootfs | grep '^[[:space:]]UUID:' && cat rootfs/log | head -1"
    before = rig.sh("hosta", look)
    rig.migrator("hostb", "prepare-data", "c1", "-d", "root@hosta").expect(0)
    rig.migrator("hosta", "import-data", "c1").expect(0)
    rig.migrator("hostb", "create-dump", "c1", "-d", "root@hosta").expect(0)
    if way == "killed":  # before it had put anything in place
        with held(rig, "hosta", "btrfs", '[ "$1" = receive ]') as receiving, \
                rig.start("hosta", "migrator", "restore-dump", "c1") as restoring:
            receiving.wait("it receives the last changes")
            restoring.signal(9)
        rig.sh("hosta", "pkill -9 -x btrfs; true")
    else:
        rig.sh("hosta", "umount -l /run/migrator/????????; rm -rf /run/migrator/????????")
        rig.migrator("hosta", "restore-dump", "c1").expect(4)
        assert rig.sh("hosta", look) == before
    rig.migrator("hostb", "rollback", "c1").expect(0)
    assert rig.probe("hostb", "c1")["intact"]
    assert rig.sh("hosta", look) == before


@pytest.mark.nightly  # tests/stages/test_another_disk.py has it without hosts
def test_another_disk_behind_the_fence_of_a_copy_stays(rig: Rig, clean_hosts: CleanHosts) -> None:
    """The copy's own was taken away: neither the end of the move back nor cleanup removes what nobody else has."""
    clean_hosts.allow("snapshot")
    kept = "/pool/.migrator/c1+/*.old"
    put = ("cd /pool/c1 && btrfs -q subvolume delete rootfs && btrfs -q subvolume create rootfs >/dev/null"
           " && echo years >rootfs/data")
    rig.guest("hosta", "c1", "tick")
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(0)
    rig.sh("hosta", put)
    rig.migrator("hostb", "migrate", "c1", "-d", "root@hosta").expect(0)
    assert rig.sh("hosta", f"echo {kept}").strip() in rig.migrator("hosta", "status", "c1").expect(0).stdout
    rig.sh("hostb", put)
    for host, folder in (("hosta", kept), ("hostb", "/pool/c1")):
        said = rig.migrator(host, "cleanup", "c1", "--json").expect(0)
        assert len(said.json["left"]) == 1, said.json
        assert rig.sh(host, f"cat {folder}/rootfs/data; grep -c 'BEGIN migrator fence' {folder}/config") == "years\n1\n"
        rig.sh(host, f"btrfs -q subvolume delete {folder}/rootfs")
        rig.migrator(host, "cleanup", "c1").expect(0)
    assert rig.probe("hosta", "c1")["intact"] and rig.leftovers() == []
    assert rig.sh("hostb", "ls /pool").strip() == ""


def test_what_was_written_to_a_copy_since_it_was_left_is_put_aside(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(0)
    rig.sh("hosta", "echo orders >/pool/c1/rootfs/orders")
    rig.migrator("hostb", "migrate", "c1", "-d", "root@hosta").expect(0)
    assert rig.sh("hosta", "cat /pool/.migrator/c1+/*.ran.1/orders") == "orders\n"
    rig.migrator("hosta", "cleanup", "c1").expect(0)
    rig.migrator("hostb", "cleanup", "c1").expect(0)
    assert rig.probe("hosta", "c1")["intact"] and rig.leftovers() == []


def test_in_the_place_of_what_has_arrived(rig: Rig, ours: str) -> None:
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    rig.sh("hostb", "rm -r /pool/c1")
    his = makes_his(rig)
    assert rig.migrator("hostb", "restore-dump", "c1", "--json").expect(23).error["code"] == "container-exists"
    rig.migrator("hosta", "rollback", "c1").expect(0)
    both_are_well(rig, his, ours)


# Answers as LXC's monitor of c1 would, to whoever asks: that it runs, and that its first process is $1.
# GET_STATE (3) and GET_INIT_PID (4), and struct lxc_cmd_rsp, are in liblxc's commands.h.
IMPERSONATES = """
import os, socket, struct, sys
os.setuid(65534)
server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
server.bind("\\0/pool/c1/command")
server.listen(9)
print(os.getpid(), flush=True)
while True:
    client, _ = server.accept()
    with client:
        said = client.recv(4096)
        if said:
            value = {3: 2, 4: int(sys.argv[1])}.get(struct.unpack_from("i", said)[0], 0)
            client.send(struct.pack("iiQ", 0, 0, value))
"""
VICTIM = "mkdir /sys/fs/cgroup/victim; echo $$ >/sys/fs/cgroup/victim/cgroup.procs; echo $$; exec sleep infinity"


def test_a_user_who_answers_for_lxc(rig: Rig, ours: str, clean_hosts: CleanHosts) -> None:
    """On the destination, where no monitor holds the socket yet; he names a process of somebody else's."""
    clean_hosts.allow("snapshot")
    with rig.start("hostb", "sh", "-c", VICTIM) as victim:
        wait_for(lambda: victim.stdout.strip(), "it runs")
        with rig.start("hostb", "python3", "-c", IMPERSONATES, victim.stdout.strip()) as stranger:
            wait_for(lambda: stranger.stdout.strip(), "he listens")
            assert "RUNNING" in rig.sh("hostb", "mkdir -p /pool/c1 && touch /pool/c1/config && lxc-info -n c1 -s; "
                                                "rm -r /pool/c1"), "LXC believes him"
            outcome = rig.migrator("hosta", "migrate", "c1", *TO_B).expect(RUNS_AGAIN)
            assert "c1 is running, not restoring" in outcome.stderr, outcome
            rig.exec("hostb", "kill", "-9", stranger.stdout.strip())
            stranger.wait()
        assert rig.exec("hostb", "kill", "-0", victim.stdout.strip(), check=False).status == 0, "it was left alone"
        rig.exec("hostb", "kill", "-9", victim.stdout.strip())
        victim.wait()
    rig.sh("hostb", "until rmdir /sys/fs/cgroup/victim; do sleep 0.1; done 2>/dev/null")
    found = rig.probe("hosta", "c1")
    assert found["running"] and found["intact"] and found["start"] == ours, found
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(0)
    found = rig.probe("hostb", "c1")
    assert found["running"] and found["intact"] and found["start"] == ours, found
