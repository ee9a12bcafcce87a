# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection is lost, hosts restart, disks fill up: migrate goes on by itself or with `resume`, where it was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import pytest

from harness.rig import Rig, Running, wait_for
from stages.steps import reconnect
from tests.rig.absence import start_sshd
from tests.rig.clean_hosts import CleanHosts
from tests.rig.full_pool import empty, fill
from tests.rig.held import DUMP, RESTORE, held, held_stream
from tests.rig.moves import ALL_AT_ONCE, HOSTS, LIMITS, arrived, events, guest_there, runs_only_on
from tests.rig.outcomes import RUNS_AGAIN, UNKNOWN, failed
from tests.rig.ticking import frozen

MIB = 1 << 20
SEGMENT = 4 * MIB
guest = pytest.fixture(guest_there)


@pytest.fixture(autouse=True)
def link(rig: Rig) -> Iterator[None]:
    """What a test that failed has cut or filled shall not fail the next one."""
    yield
    rig.sh("hosta", "ip link set eth0 up")
    start_sshd(rig)
    empty(rig)


def said(running: Running, kind: str) -> list[dict[str, object]]:
    """What a command has said so far, of one kind."""
    lines = [json.loads(line) for line in running.stderr.splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if line["type"] == kind]


def waits(running: Running) -> bool:
    """Whether it has said that it waits for a connection; the test fails where it has ended instead."""
    assert running.process.poll() is None, running.stdout + running.stderr
    return bool(said(running, "waiting"))


def drop_connections(rig: Rig) -> None:
    """Break every SSH connection between the hosts, as a firewall that restarts does: both sides are told."""
    rig.sh("hosta", "ss -tK dport = 22 >/dev/null")


def stop_sshd(rig: Rig) -> None:
    """The one that takes connections first: a new one shall not come between."""
    rig.sh("hostb", "pkill -x sshd; while pgrep -x sshd >/dev/null; do sleep 0.01; done;"
                    "pkill -x 'sshd-(session|auth)'; true")


def serve_ends(rig: Rig) -> None:
    """Until nothing on the destination answers a source any more, or has the container locked for it."""
    wait_for(lambda: "migrator serve" not in rig.sh("hostb", "ps ax"), "the destination has noticed")


def on_the_wire(rig: Rig) -> int:
    """Bytes that hosta has sent."""
    return int(rig.read("hosta", "/sys/class/net/eth0/statistics/tx_bytes"))


def vouched(rig: Rig) -> int:
    """Bytes that have arrived and are on disk: what the destination goes on from, whatever happens to it."""
    return SEGMENT * int(rig.sh("hostb", "cat /pool/.migrator/c1+/*.spool/disk-1.index 2>/dev/null | wc -l"))


def blob(rig: Rig, size: int) -> None:
    """A file in the guest that cannot be compressed."""
    rig.sh("hosta", f"head -c {size} /dev/urandom >/pool/c1/rootfs/blob; sync /pool/c1/rootfs/blob")


def same_blob(rig: Rig) -> bool:
    sums = [rig.sh(host, "sha256sum </pool/c1/rootfs/blob") for host in HOSTS]
    return sums[0] == sums[1]


# --- while the container runs ---------------------------------------------------------------------------------


@pytest.mark.nightly  # test_link_down has one
def test_five_cuts(rig: Rig, guest: Callable[[str], None]) -> None:
    """It goes on by itself after each, and what is sent twice is at most one segment each time."""
    blob(rig, 64 * MIB)
    before = on_the_wire(rig)
    with (held_stream(rig, "hosta", 10 * MIB) as stream,
          rig.start("hosta", *ALL_AT_ONCE, "--max-rounds", "1") as running):
        for cut in range(1, 6):
            wait_for(lambda: vouched(rig) >= (10 * cut - 4) * MIB, "more has arrived")  # noqa: B023
            lost = len(said(running, "reconnected"))
            drop_connections(rig)
            wait_for(lambda: len(said(running, "reconnected")) > lost, "it is connected again")  # noqa: B023
            stream.let(10 * (cut + 1) * MIB)
        stream.release()
        wait_for(lambda: said(running, "round"), "all of it is there")
        sent = on_the_wire(rig) - before
        outcome = running.wait().expect(0)
    lost = len(events(outcome, "reconnected"))
    assert lost >= 5
    (round_,) = events(outcome, "round")
    size = int(str(round_["bytes"]))
    assert 64 * MIB < size < 68 * MIB
    assert sent < 1.1 * (size + lost * SEGMENT), f"{sent / size:.3f} of it went over the network"
    guest("hostb")
    assert same_blob(rig)


@pytest.mark.nightly  # the matrix has it too
def test_link_down(rig: Rig, guest: Callable[[str], None]) -> None:
    """No packet tells anybody: both hosts notice by the silence, soon, and it goes on when the link is back."""
    blob(rig, 16 * MIB)
    command = (*ALL_AT_ONCE, "--max-rounds", "2", "--timeout", "5")
    with held_stream(rig, "hosta", 10 * MIB) as stream, rig.start("hosta", *command) as running:
        wait_for(lambda: vouched(rig) >= 8 * MIB, "some of it has arrived")
        rig.sh("hosta", "ip link set eth0 down")
        wait_for(lambda: waits(running), "the source has noticed")  # TCP alone would try for a quarter of an hour
        serve_ends(rig)
        assert rig.probe("hosta", "c1", quick=True)["running"]
        rig.sh("hosta", "ip link set eth0 up")
        stream.release()
        outcome = running.wait().expect(0)
    assert int(str(events(outcome, "round")[0]["resumed_bytes"])) >= 8 * MIB
    guest("hostb")
    assert same_blob(rig)


def test_interrupted_while_it_waits(rig: Rig, guest: Callable[[str], None]) -> None:
    """And the destination, which cannot be told, is cleaned up there."""
    blob(rig, 16 * MIB)
    with held_stream(rig, "hosta", 10 * MIB), rig.start("hosta", *ALL_AT_ONCE) as running:
        wait_for(lambda: arrived(rig) >= 8 * MIB, "some of it has arrived")
        stop_sshd(rig)
        wait_for(lambda: waits(running), "it waits")
        running.signal(2)
        running.wait().expect(130)
    serve_ends(rig)
    assert rig.status("hosta", "c1")["state"] == "rolled-back"
    rig.migrator("hostb", "rollback", "c1").expect(0)
    guest("hosta")
    assert rig.leftovers() == []


def restart(rig: Rig, host: str) -> None:
    """What a restart does to migrator: its processes and sshd's are gone, and what was in memory. The guest stays."""
    rig.sh(host, "pkill -9 -x sshd; pkill -9 -x sshd-session; pkill -9 -x migrator; pkill -9 -x btrfs;"
                 "umount -l /run/migrator/*; rm -rf /run/migrator; true", check=False)


@pytest.mark.parametrize("host", [pytest.param("hosta", marks=pytest.mark.nightly), "hostb"])
def test_host_restarted(rig: Rig, guest: Callable[[str], None], host: str) -> None:
    """The spool outlives it. `resume` goes on from there, and both hosts say so."""
    blob(rig, 16 * MIB)
    command = (*ALL_AT_ONCE, "--max-rounds", "2", "--reconnect", "0")
    with held_stream(rig, "hosta", 10 * MIB), rig.start("hosta", *command) as running:
        wait_for(lambda: vouched(rig) >= 8 * MIB, "some of it has arrived")
        behind = "stat -c %s /pool/.migrator/c1/*.1/blob 2>/dev/null || echo 0"
        wait_for(lambda: int(rig.sh("hostb", behind)) > 0, "it is imported while it arrives")
        restart(rig, host)
        outcome = running.wait()
        if host == "hostb":
            failed(outcome, 48, "connection-lost")
    rig.sh(host, "/usr/sbin/sshd")
    serve_ends(rig)
    assert rig.probe("hosta", "c1")["intact"]
    assert rig.status("hosta", "c1")["next"] == "migrator resume c1"
    assert rig.status("hostb", "c1")["next"] == "migrator resume c1 -P /pool   (on hosta)"
    nowhere = rig.migrator("hostb", "resume", "c1", "-s", "root@10.0.3.250", "--timeout", "1", "--json")
    error = failed(nowhere, 66, "source-needed")
    assert "migrator resume c1 -P /pool   (on hosta)" in str(error["cure"])
    resumed = rig.migrator("hosta", "resume", "c1", "--json").expect(0)
    assert int(str(events(resumed, "round")[0]["resumed_bytes"])) >= 8 * MIB, "it began anew"
    guest("hostb")
    assert same_blob(rig)


@pytest.mark.nightly  # test_failures.py has it, and test_transfer_rig.py that it goes on from there
def test_destination_disk_fills_up(rig: Rig, guest: Callable[[str], None]) -> None:
    blob(rig, 200 * MIB)
    with held_stream(rig, "hosta", 10 * MIB) as stream, rig.start("hosta", *ALL_AT_ONCE) as running:
        wait_for(lambda: vouched(rig) >= 8 * MIB, "data arrive")
        fill(rig, 60)
        stream.release()
        failed(running.wait(), 50, "no-space")
    assert rig.probe("hosta", "c1")["intact"]
    there, kept = arrived(rig), vouched(rig)
    assert rig.migrator("hosta", "resume", "c1", "--json").status in (30, 50), "without room it does not begin"
    assert (arrived(rig), vouched(rig)) == (there, kept)
    empty(rig)
    resumed = rig.migrator("hosta", "resume", "c1", "--json").expect(0)
    assert int(str(events(resumed, "round")[0]["resumed_bytes"])) >= kept >= 8 * MIB
    guest("hostb")
    assert same_blob(rig)


def test_a_stream_that_differs_is_sent_anew(rig: Rig, guest: Callable[[str], None]) -> None:
    """What the destination has is not what is being sent, from the third segment on."""
    blob(rig, 32 * MIB)
    with held_stream(rig, "hosta", 22 * MIB), rig.start("hosta", *ALL_AT_ONCE) as running:
        wait_for(lambda: vouched(rig) >= 16 * MIB, "some of it has arrived")
        running.signal(9)
        running.wait()
    serve_ends(rig)
    rig.exec("hostb", "/opt/migrator/venv/bin/python", "-c", """
import glob, pathlib
from migrator.transfer import segments
path = pathlib.Path(glob.glob("/pool/.migrator/c1+/*.spool/disk-1")[0])
index = path.with_name(path.name + segments.INDEX_SUFFIX)
held = segments.parse(index.read_bytes()).segments
data = bytearray(path.read_bytes())
at = sum(segment.length for segment in held[:2])
data[at] ^= 1  # such as another stream has it: its own digest is right
held[2] = segments.Segment(held[2].length, segments.digest_of(data[at : at + held[2].length]))
path.write_bytes(data)
index.write_bytes(b"".join(segments.line(segment) for segment in held))
""")
    resumed = rig.migrator("hosta", "resume", "c1", "--json").expect(0)
    assert events(resumed, "round")[0]["resumed_bytes"] == 8 * MIB
    (told,) = events(resumed, "sent-anew")
    assert told["kept_bytes"] == 8 * MIB and int(str(told["dropped_segments"])) >= 2
    guest("hostb")
    assert same_blob(rig)


def test_the_same_snapshot_is_always_the_same_stream(rig: Rig, clean_hosts: CleanHosts) -> None:
    """What going on rests on; where it is not so, the digests tell (the test above)."""
    rig.sh("hosta", """cd /pool && btrfs -q subvolume create s && cd s
        for i in $(seq 300); do mkdir -p d$((i % 7)); head -c $((i * 997)) /dev/urandom >d$((i % 7))/f$i; done
        head -c 3000000 /dev/urandom >big; ln big hard; ln -s big soft; mkfifo fifo; setfattr -n user.a -v b big || true
        cd .. && btrfs -q subvolume snapshot -r s s1
        cd s && for i in $(seq 50); do
            dd if=/dev/urandom of=big bs=4096 count=1 seek=$((i * 13)) conv=notrunc status=none; done
        mv d1/f1 d2/g; rm d3/f3; cd .. && btrfs -q subvolume snapshot -r s s2""")
    send = "btrfs -q send {} /pool/s2 | sha256sum"
    first = [rig.sh("hosta", send.format(parent)) for parent in ("", "-p /pool/s1")]
    # What may change where the file system keeps things.
    rig.sh("hosta", "btrfs -q filesystem defragment -r /pool/s; btrfs balance start --full-balance -q /pool;"
                    "echo 3 >/proc/sys/vm/drop_caches")
    assert [rig.sh("hosta", send.format(parent)) for parent in ("", "-p /pool/s1")] == first
    rig.sh("hosta", "btrfs -q subvolume delete /pool/s /pool/s1 /pool/s2")


# --- after the hand-over --------------------------------------------------------------------------------------


def test_lost_while_it_is_restored(rig: Rig, guest: Callable[[str], None]) -> None:
    """With the destination back in time, the restore is not broken but waited for; then the rest is done."""
    with held(rig, "hostb", "criu", RESTORE) as hold, rig.start("hosta", *ALL_AT_ONCE) as running:
        hold.wait("the restore has begun")
        stop_sshd(rig)
        wait_for(lambda: waits(running), "it has noticed")
        start_sshd(rig)
        wait_for(lambda: said(running, "reconnected"), "it is connected again")
        hold.release()
        running.wait().expect(0)
    steps = [event["step"] for event in rig.status("hostb", "c1")["events"] if event["phase"] == "begin"]
    assert steps.count("restore") == 1, steps
    guest("hostb")


def test_unreachable_until_the_time_is_up(rig: Rig, guest: Callable[[str], None]) -> None:
    """Then it stays frozen, as nobody knows whether it runs there; with the destination back it is finished."""
    for limit in LIMITS:
        command = (*ALL_AT_ONCE, "--max-downtime", limit)
        with held(rig, "hostb", "criu", RESTORE) as hold, rig.start("hosta", *command) as running:
            wait_for(lambda: hold.waits() or running.process.poll() is not None,
                     "the restore has begun, or the time is up already")
            stop_sshd(rig)
            hold.release()
            outcome = running.wait()
        if outcome.status == UNKNOWN:
            break
        start_sshd(rig)
    failed(outcome, UNKNOWN, "host-unreachable")
    assert frozen(rig)
    start_sshd(rig)
    rig.migrator("hosta", "resume", "c1", "--json").expect(0)
    guest("hostb")


def test_images_lost_while_the_connection_is(rig: Rig, guest: Callable[[str], None]) -> None:
    """The destination restarts after it has taken over: it can never run it, so the source takes it back."""
    with held(rig, "hostb", "criu", RESTORE) as hold, rig.start("hosta", *ALL_AT_ONCE) as running:
        hold.wait("the restore has begun")
        restart(rig, "hostb")  # migrator first: it shall not see the restore fail, and say so
        rig.sh("hostb", "pkill -9 -x 'lxc-checkpoint|criu'")
        start_sshd(rig)
        error = failed(running.wait(), RUNS_AGAIN, "restore-failed")
    assert "images are gone" in str(error), error
    guest("hosta")


# --- while it is frozen here ----------------------------------------------------------------------------------


@pytest.fixture
def memory_guest(rig: Rig, clean_hosts: CleanHosts) -> Iterator[str]:
    """A guest with enough memory for something to happen while it is sent over a slow line; its start."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "memory", size=64)
    yield rig.probe("hosta", "c1")["start"]
    rig.sh("hosta", FAST, check=False)


SLOW = "tc qdisc add dev eth0 root tbf rate 20mbit burst 128k latency 50ms"  # for half a minute
FAST = "tc qdisc delete dev eth0 root"


@contextlib.contextmanager
def pages_arrive(rig: Rig) -> Iterator[Running]:
    """A migration whose disk is there, and some of whose pages are; the others come slowly until the line is FAST."""
    with held(rig, "hosta", "criu", DUMP) as hold, rig.start("hosta", *ALL_AT_ONCE) as running:
        hold.wait("CRIU has begun")
        rig.sh("hosta", SLOW)
        hold.release()
        wait_for(lambda: images_there(rig) > 8 * MIB, "pages arrive")
        yield running


def images_there(rig: Rig) -> int:
    return int(rig.sh("hostb", "cat /run/migrator/*/pages-*.img 2>/dev/null | wc -c"))


@pytest.mark.nightly
def test_images_go_on_over_a_new_connection(rig: Rig, memory_guest: str) -> None:
    """A connection that can be had again at once: the same freeze, and no page is sent twice but those on their way."""
    with pages_arrive(rig) as running:
        drop_connections(rig)
        rig.sh("hosta", FAST)
        outcome = running.wait().expect(0)
    runs_only_on(rig, "hostb", memory_guest)
    seconds = [float(str(event["seconds"])) for event in events(outcome, "reconnected")]
    if max(seconds) < reconnect.BRIDGE:  # else this machine was too slow, and it was thawed meanwhile and frozen anew
        assert len(events(outcome, "freeze")) == 1
        steps = [event for event in rig.status("hosta", "c1")["events"] if event["step"] in ("pages", "images")]
        assert sum(event.get("resumed", 0) for event in steps) >= 4 * MIB


@pytest.mark.nightly  # as the fault matrix, but for a second freeze
def test_it_is_thawed_when_the_destination_is_away_for_longer(rig: Rig, memory_guest: str) -> None:
    with pages_arrive(rig) as running:
        stop_sshd(rig)
        wait_for(lambda: not frozen(rig), "it runs again, while nobody is there")
        assert rig.probe("hosta", "c1", quick=True)["running"]
        rig.sh("hosta", FAST)
        start_sshd(rig)
        outcome = running.wait().expect(0)
    assert len(events(outcome, "freeze")) == 2
    runs_only_on(rig, "hostb", memory_guest)
