# SPDX-License-Identifier: GPL-2.0-or-later
"""What fails: each failure has its own error and exit status, the source runs on, and both hosts are clean."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.rig import Rig, wait_for
from tests.rig.absence import start_sshd
from tests.rig.clean_hosts import CleanHosts
from tests.rig.full_pool import empty, fill
from tests.rig.held import DUMP, RESTORE, held, held_stream
from tests.rig.moves import TO_B
from tests.rig.outcomes import RUNS_AGAIN, STILL_FROZEN, UNKNOWN, failed
from tests.rig.ticking import frozen, guest, imported, roll_back  # noqa: F401 -- a fixture


def dumped(rig: Rig) -> None:
    imported(rig)
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)


# --- the dump -------------------------------------------------------------------------------------------------


def test_dump_fails(rig: Rig, guest: Callable[[], None]) -> None:
    """A nested UTS namespace, which CRIU refuses: the preflight says so first, and then CRIU itself."""
    imported(rig)
    rig.exec("hosta", "lxc-attach", "-n", "c1", "--", "sh", "-c",
             "setsid unshare -u sleep 600 </dev/null >/dev/null 2>&1 &")
    wait_for(lambda: "sleep 600" in rig.sh("hosta", "ps ax"), "the task runs")
    blocked = failed(rig.migrator("hosta", "create-dump", "c1", *TO_B, "--json"), 30, "blocked")
    assert "nested-namespace" in str(blocked["message"])
    guest()
    outcome = rig.migrator("hosta", "create-dump", "c1", *TO_B, "--ignore", "nested-namespace", "--json")
    error = failed(outcome, RUNS_AGAIN, "dump-failed")
    assert "uts" in str(error["message"]), error
    assert "/var/log/migrator/c1-dump.log" in str(error["cure"])
    assert "uts" in rig.read("hosta", "/var/log/migrator/c1-dump.log")
    guest()
    # Without that task it works, without sending the disk again.
    rig.sh("hosta", "pkill -x sleep")
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    roll_back(rig, guest)


def test_frozen_too_long(rig: Rig, guest: Callable[[], None]) -> None:
    imported(rig)
    outcome = rig.migrator("hosta", "create-dump", "c1", *TO_B, "--max-downtime", "0.01", "--json")
    assert outcome.expect(RUNS_AGAIN).error["cause"]["code"] in ("downtime-exceeded", "command-timeout")
    guest()
    # The attempt is over, the migration is not.
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    roll_back(rig, guest)


# --- the way there --------------------------------------------------------------------------------------------


@pytest.mark.nightly  # test_resume.py has cuts
def test_transfer_of_the_disk_breaks(rig: Rig, guest: Callable[[], None]) -> None:
    rig.exec("hosta", "dd", "if=/dev/urandom", "of=/pool/c1/rootfs/blob", "bs=1M", "count=64", "status=none")
    command = ("migrator", "prepare-data", "c1", *TO_B, "--json")
    with held_stream(rig, "hosta", 10 << 20), rig.start("hosta", *command) as sending:
        arrived = "cat /pool/.migrator/c1+/*.spool/disk-1.index"  # what it vouches for is on disk
        wait_for(lambda: rig.sh("hostb", arrived, check=False).count("\n") >= 2, "some of it has arrived")
        rig.kill_serve()
        failed(sending.wait(), 48, "connection-lost")
    guest()
    resumed = rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json").expect(0).json
    assert resumed["resumed_bytes"] > 0, "it began anew"
    assert resumed["bytes"] > 64 << 20
    rig.migrator("hostb", "import-data", "c1").expect(0)
    roll_back(rig, guest)


@pytest.mark.nightly  # test_resume.py has cuts
def test_transfer_of_the_images_breaks(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "memory", size=64, ip="10.0.3.120")
    imported(rig)
    # A slow line, so that there is time to cut it: the shaper is the kernel's own.
    rig.sh("hosta", "tc qdisc add dev eth0 root tbf rate 20mbit burst 128k latency 50ms")
    try:
        with rig.start("hosta", "migrator", "create-dump", "c1", *TO_B, "--json") as sending:
            pages = "ls -d /run/migrator/*/pages-*.img"
            wait_for(lambda: rig.sh("hostb", pages, check=False), "images arrive")
            rig.kill_serve()
            failed(sending.wait(), RUNS_AGAIN, "connection-lost")
    finally:
        rig.sh("hosta", "tc qdisc delete dev eth0 root")
    found = rig.probe("hosta", "c1")
    assert found["intact"], found
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    rig.migrator("hosta", "rollback", "c1").expect(0)
    assert rig.probe("hosta", "c1")["intact"]


def test_destination_disk_full_while_data_arrive(rig: Rig, guest: Callable[[], None]) -> None:
    rig.exec("hosta", "dd", "if=/dev/urandom", "of=/pool/c1/rootfs/blob", "bs=1M", "count=180", "status=none")
    fill(rig, 150)
    try:
        # The preflight sees it, and so does the destination itself when it is told to go on.
        failed(rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json"), 30, "blocked")
        outcome = rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json", "--ignore", "disk-full")
        failed(outcome, 50, "no-space")
        guest()
    finally:
        empty(rig)
    imported(rig)
    roll_back(rig, guest)


@pytest.mark.nightly  # in one go in the fault matrix
def test_destination_disk_full_at_import(rig: Rig, guest: Callable[[], None]) -> None:
    rig.exec("hosta", "dd", "if=/dev/urandom", "of=/pool/c1/rootfs/blob", "bs=1M", "count=120", "status=none")
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    fill(rig, 60)
    failed(rig.migrator("hostb", "import-data", "c1", "--json"), 50, "no-space")
    guest()
    empty(rig)
    imported(rig)
    roll_back(rig, guest)


def test_destination_has_no_room_for_images(rig: Rig, guest: Callable[[], None]) -> None:
    imported(rig)
    # It has next to no memory left, so images go to disk, where there is no room either.
    rig.sh("hostb", "sed '/^MemAvailable/s/:.*/: 100 kB/' /proc/meminfo >/tmp/meminfo")
    rig.sh("hostb", "mount --bind /tmp/meminfo /proc/meminfo")
    fill(rig, 20)
    try:
        outcome = rig.migrator("hosta", "create-dump", "c1", *TO_B, "--json")
        if outcome.status == 30:  # the preflight has seen it
            outcome = rig.migrator("hosta", "create-dump", "c1", *TO_B, "--json", "--ignore", "disk-full",
                                   "--ignore", "memory-short")
        failed(outcome, RUNS_AGAIN, "no-space")
        guest()
    finally:
        empty(rig)
        rig.sh("hostb", "umount /proc/meminfo")
    roll_back(rig, guest)


@pytest.fixture(autouse=True)
def room(rig: Rig) -> Iterator[None]:
    """A test that fails while the disk is full must not fail the next ones."""
    yield
    empty(rig)


def test_spooled_segment_flipped(rig: Rig, guest: Callable[[], None]) -> None:
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    _flip(rig, "/pool/.migrator/c1+/*.spool/disk-1", 300_000)
    failed(rig.migrator("hostb", "import-data", "c1", "--json"), 51, "segment-damaged")
    guest()
    assert "prepare-data" in rig.status("hostb", "c1")["next"]
    imported(rig)
    roll_back(rig, guest)


def _flip(rig: Rig, pattern: str, offset: int) -> None:
    rig.exec("hostb", "python3", "-c", f"""import glob
path, = glob.glob({pattern!r})
with open(path, "r+b") as file:
    file.seek({offset}); byte = file.read(1)[0]; file.seek({offset}); file.write(bytes([byte ^ 1]))
""")


# --- the restore ----------------------------------------------------------------------------------------------


def test_image_damaged(rig: Rig, guest: Callable[[], None]) -> None:
    dumped(rig)
    _flip(rig, "/run/migrator/*/pages-1.img", 5000)
    error = failed(rig.migrator("hostb", "restore-dump", "c1", "--json"), STILL_FROZEN, "segment-damaged")
    assert "migrator rollback c1 -P /pool   (on hosta)" in str(error["cure"])
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "STOPPED"
    roll_back(rig, guest)


def test_restore_fails(rig: Rig, guest: Callable[[], None]) -> None:
    """An image that CRIU cannot use, though its digest is right: nothing of the attempt is left running."""
    dumped(rig)
    rig.exec("hostb", "/opt/migrator/venv/bin/python", "-c", """
import glob, pathlib
from migrator.transfer import segments
path = pathlib.Path(glob.glob("/run/migrator/*/core-1.img")[0])
data = bytearray(path.read_bytes())
data[40:60] = bytes(20)
path.write_bytes(data)
segment = segments.Segment(len(data), segments.digest_of(data))
index = segments.line(segment) + segments.last_line(segments.whole([segment]))
path.with_name(path.name + segments.INDEX_SUFFIX).write_bytes(index)
""")
    error = failed(rig.migrator("hostb", "restore-dump", "c1", "--json"), STILL_FROZEN, "restore-failed")
    assert "criu/" in str(error["message"])
    assert "restore.log" in str(error["cure"])
    wait_for(lambda: "lxc-checkpoint" not in rig.sh("hostb", "ps ax"), "what was killed has been reaped")
    roll_back(rig, guest)


def test_image_missing(rig: Rig, guest: Callable[[], None]) -> None:
    dumped(rig)
    rig.sh("hostb", "rm /run/migrator/*/core-1.img*")
    outcome = rig.migrator("hostb", "restore-dump", "c1", "--json").expect(STILL_FROZEN)
    assert "core-1.img" in outcome.error["message"], outcome
    roll_back(rig, guest)


def test_images_lost_in_a_reboot_of_the_destination(rig: Rig, guest: Callable[[], None]) -> None:
    dumped(rig)
    rig.sh("hostb", "umount -l /run/migrator/*; rm -rf /run/migrator")
    failed(rig.migrator("hostb", "restore-dump", "c1", "--json"), STILL_FROZEN, "restore-failed")
    roll_back(rig, guest)


@pytest.mark.nightly  # in one go in test_migrate.py
@pytest.mark.parametrize("hangs", [False, True])
def test_restore_killed(rig: Rig, guest: Callable[[], None], hangs: bool) -> None:
    """kill -9 of restore-dump while CRIU works, or hangs for ever; the next restore-dump carries on."""
    dumped(rig)
    with held(rig, "hostb", "criu", RESTORE) as criu, rig.start("hostb", "migrator", "restore-dump", "c1") as restoring:
        criu.wait("CRIU has begun")
        criu.spare()
        restoring.signal(9)
        restoring.wait()
        assert rig.status("hostb", "c1")["state"] == "restoring"
        assert rig.status("hostb", "c1")["next"] == "migrator restore-dump c1"
        if not hangs:
            criu.release()
        rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.migrator("hosta", "finish", "c1").expect(0)
    found = rig.probe("hostb", "c1")
    assert found["running"] and found["intact"], found
    rig.migrator("hosta", "cleanup", "c1").expect(0)
    rig.migrator("hostb", "cleanup", "c1").expect(0)


# --- killed and interrupted -----------------------------------------------------------------------------------


@pytest.mark.nightly  # in one go in test_migrate.py and the fault matrix
def test_create_dump_killed(rig: Rig, guest: Callable[[], None]) -> None:
    """kill -9 leaves the container frozen; status says so, and create-dump or rollback heals it."""
    command = ["migrator", "create-dump", "c1", *TO_B]
    for heal in ("create-dump", "rollback"):
        imported(rig)
        with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *command) as dumping:
            criu.wait("CRIU has begun")
            assert frozen(rig)
            dumping.signal(9)
            dumping.wait()
        here = rig.status("hosta", "c1")
        assert here["state"] == "dumping"
        assert here["owner"] == "source"
        if heal == "create-dump":
            rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
        roll_back(rig, guest)


@pytest.mark.parametrize("number", [2, pytest.param(15, marks=pytest.mark.nightly)])
def test_create_dump_interrupted(rig: Rig, guest: Callable[[], None], number: int) -> None:
    imported(rig)
    command = ["migrator", "create-dump", "c1", *TO_B, "--json"]
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *command) as dumping:
        criu.wait("CRIU has begun")
        assert frozen(rig)
        dumping.signal(number)
        wait_for(lambda: "Interrupted" in dumping.stderr, "it has heard it")
        criu.release()
        dumping.wait().expect(128 + number)
    guest()
    roll_back(rig, guest)


def test_unreachable_after_the_hand_over(rig: Rig, guest: Callable[[], None]) -> None:
    """A source that cannot know keeps its copy frozen and says so."""
    dumped(rig)
    rig.sh("hostb", "pkill -x sshd; while pgrep -x sshd >/dev/null; do sleep 0.05; done")
    try:
        outcome = rig.migrator("hosta", "rollback", "c1", "--timeout", "3", "--json")
        failed(outcome, UNKNOWN, "host-unreachable")
        assert frozen(rig)
    finally:
        start_sshd(rig)
    roll_back(rig, guest)


# --- SSH ------------------------------------------------------------------------------------------------------


def test_host_unreachable(rig: Rig, guest: Callable[[], None]) -> None:
    outcome = rig.migrator("hosta", "prepare-data", "c1", "-d", "root@10.0.3.99", "--timeout", "4", "--json")
    failed(outcome, 42, "host-unreachable")
    failed(rig.migrator("hosta", "prepare-data", "c1", "-d", "root@hostb:1", "--json"), 42, "host-unreachable")
    failed(rig.migrator("hosta", "prepare-data", "c1", "-d", "root@nowhere.invalid", "--json"), 42, "host-unreachable")
    guest()


def test_host_key_unknown_and_changed(rig: Rig, guest: Callable[[], None]) -> None:
    known = rig.read("hosta", "/root/.ssh/known_hosts")
    rig.sh("hosta", ": >/root/.ssh/known_hosts")
    error = failed(rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json"), 43, "host-key-unknown")
    fingerprint = rig.sh("hostb", "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    assert fingerprint in str(error["message"])
    rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--accept-new-host-key").expect(0)
    assert "found" in rig.sh("hosta", "ssh-keygen -F hostb")  # the line may be hashed
    rig.exec("hosta", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/tmp/k")
    other = rig.sh("hosta", "cut -d' ' -f1,2 /tmp/k.pub; rm /tmp/k*")
    rig.put("hosta", "/root/.ssh/known_hosts", f"hostb {other}")
    error = failed(rig.migrator("hosta", "create-dump", "c1", *TO_B, "--json"), 44, "host-key-changed")
    assert "ssh-keygen -R hostb" in str(error["cure"])
    failed(rig.migrator("hosta", "create-dump", "c1", *TO_B, "--accept-new-host-key", "--json"), 44, "host-key-changed")
    rig.put("hosta", "/root/.ssh/known_hosts", known)
    roll_back(rig, guest)


def test_login_refused(rig: Rig, guest: Callable[[], None]) -> None:
    rig.sh("hostb", "mv /root/.ssh/authorized_keys /root/.ssh/not-now")
    try:
        error = failed(rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json"), 45, "ssh-refused")
        assert "ssh-copy-id" in str(error["cure"])
    finally:
        rig.sh("hostb", "mv /root/.ssh/not-now /root/.ssh/authorized_keys")
    guest()


def test_migrator_missing_on_the_destination(rig: Rig, guest: Callable[[], None]) -> None:
    rig.sh("hostb", "mv /usr/local/bin/migrator /usr/local/bin/not-now")
    try:
        failed(rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json"), 46, "remote-missing")
    finally:
        rig.sh("hostb", "mv /usr/local/bin/not-now /usr/local/bin/migrator")
    guest()


# --- names, states, rights ------------------------------------------------------------------------------------


def test_invalid_name(rig: Rig, clean_hosts: CleanHosts) -> None:
    """By the program itself; all names and commands are in tests/stages/test_names_refused.py."""
    failed(rig.migrator("hosta", "prepare-data", "--name=../x", *TO_B, "--json"), 20, "invalid-name")
    assert rig.leftovers() == []


def test_container_absent_or_stopped(rig: Rig, guest: Callable[[], None]) -> None:
    failed(rig.migrator("hosta", "prepare-data", "c2", *TO_B, "--json"), 21, "container-not-found")
    imported(rig)
    rig.exec("hosta", "lxc-stop", "-k", "-n", "c1")
    error = failed(rig.migrator("hosta", "create-dump", "c1", *TO_B, "--json"), 22, "container-not-running")
    assert "lxc-start -P /pool c1" in str(error["cure"])
    rig.migrator("hosta", "rollback", "c1").expect(0)
    failed(rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json"), 22, "container-not-running")


def test_already_migrating_elsewhere(rig: Rig, guest: Callable[[], None]) -> None:
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    id_ = rig.status("hosta", "c1")["id"]
    outcome = rig.migrator("hosta", "prepare-data", "c1", "-d", "root@10.0.3.3", "--json")
    error = failed(outcome, 25, "already-migrating")
    assert id_ in str(error["message"])
    roll_back(rig, guest)


def test_busy(rig: Rig, guest: Callable[[], None]) -> None:
    imported(rig)
    command = ["migrator", "create-dump", "c1", *TO_B]
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *command) as dumping:
        criu.wait("CRIU has begun")
        failed(rig.migrator("hosta", "rollback", "c1", "--json"), 16, "busy")
        criu.release()
        dumping.wait().expect(0)
    roll_back(rig, guest)


def test_a_container_of_that_name_is_there_already(rig: Rig, guest: Callable[[], None]) -> None:
    rig.guest("hostb", "c1", "tick")
    there = rig.probe("hostb", "c1")["start"]
    failed(rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json"), 30, "blocked")
    outcome = rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--ignore", "name-taken", "--json")
    failed(outcome, 23, "container-exists")
    guest()
    assert rig.probe("hostb", "c1")["start"] == there
    rig.migrator("hosta", "status", "c1").expect(26)  # a migration that was refused at once has never been


def test_not_root(rig: Rig, guest: Callable[[], None]) -> None:
    for stage in ("check", "prepare-data", "create-dump", "finish", "rollback", "status", "import-data",
                  "restore-dump"):
        destination = TO_B if stage in ("prepare-data", "create-dump") else ()
        argv = ["setpriv", "--reuid=65534", "--clear-groups", "migrator", stage, "c1", *destination, "--json"]
        failed(rig.exec("hosta", *argv, check=False), 10, "not-root")
    guest()


def test_package_missing(rig: Rig, guest: Callable[[], None]) -> None:
    rig.sh("hosta", "mv /usr/lib/python3/dist-packages/lxc /usr/lib/python3/dist-packages/lxc-away")
    try:
        error = failed(rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json"), 12, "package-missing")
        assert "python3-lxc" in str(error["cure"])
    finally:
        rig.sh("hosta", "mv /usr/lib/python3/dist-packages/lxc-away /usr/lib/python3/dist-packages/lxc")
    rig.sh("hostb", "mv /usr/bin/btrfs /usr/bin/btrfs-away")
    try:
        outcome = rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--json", "--ignore", "program-missing")
        assert outcome.status in (0, 30), outcome
        if outcome.status == 0:
            failed(rig.migrator("hostb", "import-data", "c1", "--json"), 11, "program-missing")
    finally:
        rig.sh("hostb", "mv /usr/bin/btrfs-away /usr/bin/btrfs")
    guest()
    if rig.migrator("hosta", "status", "c1").status == 0:
        roll_back(rig, guest)
