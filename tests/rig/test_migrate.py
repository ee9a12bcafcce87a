# SPDX-License-Identifier: GPL-2.0-or-later
"""migrate and resume between two real hosts: what arrives, what a failure in each phase leaves, what heals it."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import time
from collections.abc import Callable

import pytest

from harness.rig import DESTINATION, Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import DUMP, RESTORE, held, held_stream, instead_of, slow_criu
from tests.rig.moves import ALL_AT_ONCE, HOSTS, LIMITS, arrived, events, guest, migrate, other, runs_only_on  # noqa: F401 -- a fixture
from tests.rig.outcomes import RUNS_AGAIN, failed
from tests.rig.ticking import frozen

# --- it works -------------------------------------------------------------------------------------------------


@pytest.mark.nightly  # test_stock_containers.py has it with stock ones
@pytest.mark.parametrize(("kind", "options"), [
    ("tick", {}), ("memory", {"size": 64, "dirty": 4}), ("userns", {"ip": "10.0.3.120"})])
def test_there_and_back(rig: Rig, clean_hosts: CleanHosts, kind: str, options: dict[str, str | float]) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", kind, **options)
    start = rig.probe("hosta", "c1")["start"]
    full = []
    for source in ("hosta", "hostb", "hosta"):
        done = migrate(rig, "c1", source).expect(0)
        runs_only_on(rig, other(source), start)
        assert rig.status(source, "c1")["state"] == rig.status(other(source), "c1")["state"] == "finished"
        assert rig.sh(other(source), "ls -A /pool/.migrator/c1+ 2>/dev/null || true") == "", "nothing is put aside"
        assert 0 < done.json["frozen_seconds"] < done.json["seconds"]
        full.append(done.json["rounds"][0]["full"])
        (planned,) = events(done, "plan")
        assert planned["memory_bytes"] and planned["bytes_per_second"] and planned["predicted_frozen_seconds"]
        assert [event["round"] for event in events(done, "round")] == list(range(1, len(done.json["rounds"]) + 1))
    assert full == [True, False, False], "the way back starts from what is there already"


def asked_on(rig: Rig, host: str) -> None:
    """Wait until the client has had a hundred answers more from the redis guest on a host."""
    before = rig.probe(host, "c1", quick=True)["count"]
    wait_for(lambda: rig.probe(host, "c1", quick=True)["count"] > before + 100, "the client is answered")


def test_the_client_keeps_its_connection(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "redis", ip="10.0.3.100")
    with rig.start("client", "python3", "/opt/rig/guests/redis_client.py", "10.0.3.100") as client:
        wait_for(lambda: "connected" in client.stderr, "the client is connected")
        asked_on(rig, "hosta")
        done = migrate(rig, "c1", "hosta").expect(0).json
        asked_on(rig, "hostb")
        client.signal(15)
        seen = json.loads(client.wait().stdout)
    assert seen["lost"] == seen["wrong"] == 0 and seen["problem"] is None, seen
    assert done["predicted_frozen_seconds"] > 0
    runs_only_on(rig, "hostb")


def ids(words: set[str]) -> set[str]:
    """Of the migrations whose snapshots are named."""
    return {found[1] for word in words if (found := re.fullmatch(r"/pool/.migrator/c1/([0-9a-f]{8})\.\d+", word))}


def test_dry_run_changes_nothing(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    shown = migrate(rig, "c1", "hosta", "--dry-run").expect(0).json
    assert shown["plan"]["memory_bytes"] > 0
    told = [(command["stage"], command["host"], *command["argv"][:2]) for command in shown["dry_run"]]
    order = [("prepare-data", "hosta", "btrfs", "send"), ("import-data", "hostb", "btrfs", "receive"),
             ("create-dump", "hosta", "criu", "dump"), ("create-dump", "hosta", "btrfs", "send"),
             ("restore-dump", "hostb", "btrfs", "receive"), ("restore-dump", "hostb", "lxc-checkpoint", "-r"),
             ("finish", "hosta", "tee", "/sys/fs/cgroup/lxc.payload.c1/cgroup.kill")]
    assert sorted(order, key=told.index) == order
    words = {word for command in shown["dry_run"] for word in command["argv"]}
    snapshots = [f"/pool/.migrator/c1/{id_}.{number}" for id_ in ids(words) for number in (1, 2)]
    assert len(snapshots) == 2 and words >= {*snapshots}, "one migration's, with a snapshot for each round"
    shown = migrate(rig, "c1", "hosta", "--dry-run", "--no-memory").expect(0).json
    assert {"lxc-stop", "lxc-start"} < {command["argv"][0] for command in shown["dry_run"]}
    rig.migrator("hosta", "status", "c1").expect(26)
    assert rig.leftovers() == []
    runs_only_on(rig, "hosta")


def test_undefine_source(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    assert migrate(rig, "c1", "hosta", "--undefine-source").expect(0).json["removed"]
    assert rig.sh("hosta", "ls /pool").strip() == ""
    assert rig.probe("hostb", "c1")["intact"]


def test_rounds_end_at_the_limit(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    rig.exec("hosta", "dd", "if=/dev/urandom", "of=/pool/c1/rootfs/blob", "bs=1M", "count=16", "status=none")
    done = migrate(rig, "c1", "hosta", "--max-rounds", "1", "--bwlimit", "8M").expect(0)  # which takes its time
    assert len(done.json["rounds"]) == 1
    assert events(done, "rounds")[0]["rule"] == "limit"
    assert rig.sh("hostb", "sha256sum </pool/c1/rootfs/blob") == rig.sh("hosta", "sha256sum </pool/c1/rootfs/blob")


SPAWN = """
import os, time
if os.fork():
    os.execv("/usr/bin/python3", ["python3", "/memory.py", "16", "1"])
os.mkfifo("/fifo")
os.posix_spawn("/bin/sleep", ["sleep", "600"], {}, file_actions=[
    (os.POSIX_SPAWN_OPEN, 9, "/fifo", os.O_RDONLY, 0), (os.POSIX_SPAWN_CLOSE, 9)])
time.sleep(600)
"""


def test_a_task_that_waits_in_vfork(rig: Rig, clean_hosts: CleanHosts) -> None:
    """It cannot be interrupted until its child has executed its program, here once somebody has opened the FIFO."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "memory", size=16)
    rig.put("hosta", "/pool/c1/rootfs/spawn.py", SPAWN)
    rig.sh("hosta", "cd /pool/c1 && lxc-stop -k -n c1 && rm rootfs/starts rootfs/log rootfs/count && "
                    "sed -i 's|^lxc.init.cmd.*|lxc.init.cmd = /usr/bin/python3 /spawn.py|' config && lxc-start -n c1")
    # Not for its disk, from which nothing is read once the FIFO is there.
    look = "[ -p /pool/c1/rootfs/fifo ] && ps -eo stat=,args="
    wait_for(lambda: re.search(r"^D +\S+ /spawn", rig.sh("hosta", look, check=False), re.M), "it waits in vfork")
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *ALL_AT_ONCE) as running:
        freeze = "cat /sys/fs/cgroup/lxc.payload.c1/cgroup.freeze"
        wait_for(lambda: rig.sh("hosta", freeze).strip() == "1", "it is being frozen")
        time.sleep(0.5)  # on a slow machine this is too short to show anything, and fails nothing
        assert not criu.waits(), "CRIU would wait for it in vain"
        rig.sh("hosta", ": >/pool/c1/rootfs/fifo")
        criu.wait("it is dumped, now that it can be")
        criu.release()
        running.wait().expect(0)
    runs_only_on(rig, "hostb")
    assert "sleep 600" in rig.sh("hostb", "ps ax")


@pytest.mark.nightly  # the fault matrix has five at once, test_busy the same one twice
def test_four_at_once_and_the_same_one_twice(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Two each way: none disturbs another, and a container is moved by one at a time."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "memory", size=64)
    rig.guest("hostb", "c2", "tick", ip="10.0.3.120")
    rig.guest("hosta", "c3", "talk", ip="10.0.3.100")
    rig.guest("hostb", "c4", "userns", ip="10.0.3.121")
    sources = {"c1": "hosta", "c2": "hostb", "c3": "hosta", "c4": "hostb"}
    starts = {name: rig.probe(host, name)["start"] for name, host in sources.items()}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(len(sources)))
        holds = [stack.enter_context(held(rig, host, "criu", DUMP)) for host in HOSTS]
        moves = {name: pool.submit(migrate, rig, name, host) for name, host in sources.items()}
        for criu in holds:
            criu.wait("CRIU has begun", 2)
        refused = failed(migrate(rig, "c1", "hosta"), 25, "already-migrating")
    done = {name: move.result().expect(0).json for name, move in moves.items()}
    assert str(done["c1"]["migration"]) in str(refused["message"])
    migrations = [rig.status(other(host), name) for name, host in sources.items()]
    assert max(each["created"] for each in migrations) < min(each["restored_at"] for each in migrations), "all at once"
    for name, host in sources.items():
        found = rig.probe(other(host), name)
        assert found["intact"] and found["start"] == starts[name], found
        assert rig.sh(host, f"lxc-info -n {name} -sH").strip() == "STOPPED"


# --- it fails -------------------------------------------------------------------------------------------------


@pytest.mark.nightly  # by hand in test_failures.py
def test_frozen_for_too_long_while_it_is_dumped(rig: Rig, guest: Callable[[str], None]) -> None:
    with slow_criu(rig, "hosta", "dump", 2):
        error = failed(migrate(rig, "c1", "hosta", "--max-downtime", "1"), RUNS_AGAIN, "downtime-exceeded")
    assert "migrator resume c1" in str(error["cure"])
    assert rig.probe("hosta", "c1")["intact"]
    rig.migrator("hosta", "resume", "c1", "--max-downtime", "600", "--json").expect(0)
    guest("hostb")


def test_frozen_for_too_long_while_it_is_restored(rig: Rig, guest: Callable[[str], None]) -> None:
    for limit in LIMITS:
        with held(rig, "hostb", "criu", RESTORE) as criu:
            outcome = migrate(rig, "c1", "hosta", "--max-downtime", limit).expect(RUNS_AGAIN)
            if criu.waits():
                break
    error = failed(outcome, RUNS_AGAIN, "command-timeout")
    assert f"migrator migrate c1 -d {DESTINATION}" in str(error["cure"])
    guest("hosta")
    assert rig.sh("hostb", "ls /pool; ls -d /sys/fs/cgroup/lxc.*.c1", check=False).strip() == ""
    assert rig.status("hosta", "c1")["state"] == "rolled-back"


@pytest.mark.nightly  # by hand in test_failures.py
def test_dump_fails(rig: Rig, guest: Callable[[str], None]) -> None:
    rig.exec("hosta", "lxc-attach", "-n", "c1", "--", "sh", "-c",
             "setsid unshare -u sleep 600 </dev/null >/dev/null 2>&1 &")
    wait_for(lambda: "sleep 600" in rig.sh("hosta", "ps ax"), "the task runs")
    failed(migrate(rig, "c1", "hosta"), 30, "blocked")
    rig.migrator("hosta", "status", "c1").expect(26)
    failed(migrate(rig, "c1", "hosta", "--ignore", "nested-namespace"), RUNS_AGAIN, "dump-failed")
    rig.sh("hosta", "pkill -x sleep")
    rig.migrator("hosta", "resume", "c1").expect(0)
    guest("hostb")


@pytest.mark.nightly  # by hand in test_failures.py
def test_restore_fails(rig: Rig, guest: Callable[[str], None]) -> None:
    rig.exec("hostb", "mv", "/usr/bin/lxc-checkpoint", "/usr/bin/lxc-checkpoint.away")
    try:
        outcome = migrate(rig, "c1", "hosta", "--ignore", "program-missing")
    finally:
        rig.exec("hostb", "mv", "/usr/bin/lxc-checkpoint.away", "/usr/bin/lxc-checkpoint")
    failed(outcome, RUNS_AGAIN, "program-missing")
    guest("hosta")
    assert rig.sh("hostb", "ls /pool").strip() == ""
    migrate(rig, "c1", "hosta").expect(0)
    guest("hostb")


# Kills CRIU when it has made the container's tasks, in the moment before it lets them run.
KILLS_CRIU = """#!/bin/sh
case "$*" in *restore*) ;; *) exec REAL "$@" ;; esac
REAL "$@" &
until grep -qs memory.py /proc/[0-9]*/cmdline; do :; done
kill -9 $!
exit 1
"""


def test_criu_is_killed_while_it_restores(rig: Rig, clean_hosts: CleanHosts) -> None:
    """The tasks that it has made already wait for it for ever, unless somebody ends them."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "memory", size=64)
    start = rig.probe("hosta", "c1")["start"]
    with instead_of(rig, "hostb", "criu", KILLS_CRIU):
        migrate(rig, "c1", "hosta", "--max-downtime", "200").expect(RUNS_AGAIN)
    runs_only_on(rig, "hosta", start)
    left = rig.sh("hostb", "ps -eo args= | grep '[m]emory.py'; ls -d /pool/c1 /sys/fs/cgroup/lxc.*.c1", check=False)
    assert left == ""


# --- killed and interrupted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["source", pytest.param("serve", marks=pytest.mark.nightly)])
def test_killed_while_it_is_dumped(rig: Rig, guest: Callable[[str], None], victim: str) -> None:
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *ALL_AT_ONCE) as running:
        criu.wait("CRIU has begun")
        if victim == "source":
            running.signal(9)
            running.wait()
            assert rig.status("hosta", "c1")["state"] == "dumping"
            assert rig.status("hosta", "c1")["next"] == "migrator resume c1"
            criu.release()
            # The watchdog has it first.
            wait_for(lambda: rig.migrator("hosta", "resume", "c1").status == 0, "resume has done it")
        else:  # what CRIU writes goes over a new connection
            rig.kill_serve()
            criu.release()
            assert len(events(running.wait().expect(0), "freeze")) == 1
    guest("hostb")


@pytest.mark.parametrize("victim", [
    "source", *(pytest.param(each, marks=pytest.mark.nightly) for each in ("serve", "both"))])  # both: the fault matrix
def test_killed_while_it_is_restored(rig: Rig, guest: Callable[[str], None], victim: str) -> None:
    """After the hand-over. A source that lives rolls back or finishes by itself; else `resume` does what is right."""

    def healed() -> bool:  # the restore of a source that was killed still runs for a while, and has the lock
        return rig.migrator("hosta", "resume", "c1").status == 0

    with held(rig, "hostb", "criu", RESTORE) as criu, rig.start("hosta", *ALL_AT_ONCE) as running:
        criu.wait("CRIU has begun")
        if victim != "serve":
            running.signal(9)
        if victim != "source":
            rig.kill_serve()
        if victim != "serve":
            assert frozen(rig)
            assert rig.status("hosta", "c1")["next"] == "migrator resume c1"
        criu.release()
        outcome = running.wait()
    if victim == "serve":  # the restore may have succeeded without it, by the time the source asks
        if outcome.status:
            failed(outcome, RUNS_AGAIN, "connection-lost")
        guest("hosta" if outcome.status else "hostb")
        return
    wait_for(healed, "resume has done it")
    guest("hostb")


@pytest.mark.parametrize(("phase", "number"), [
    ("dump", 2), *(pytest.param(*each, marks=pytest.mark.nightly)  # after every state: the fault matrix
                   for each in (("send", 2), ("dump", 15), ("restore", 2)))])
def test_interrupted(rig: Rig, guest: Callable[[str], None], phase: str, number: int) -> None:
    """One Ctrl-C: the container runs on here, and nothing is left, unless it runs there by then."""
    if phase == "send":
        rig.exec("hosta", "dd", "if=/dev/urandom", "of=/pool/c1/rootfs/blob", "bs=1M", "count=16", "status=none")
    host, when = {"send": ("hosta", "false"), "dump": ("hosta", DUMP), "restore": ("hostb", RESTORE)}[phase]
    stream = held_stream(rig, "hosta", 14 << 20)  # more than all the others have
    with held(rig, host, "criu", when) as criu, stream, rig.start("hosta", *ALL_AT_ONCE) as running:
        if phase == "send":
            wait_for(lambda: arrived(rig) >= 8 << 20, "some of it has arrived")
        else:
            criu.wait(f"{phase} has begun")
        running.signal(number)
        wait_for(lambda: "Interrupted" in running.stderr, "it has heard it")
        criu.release()
        outcome = running.wait()
    if phase == "restore":  # it cannot be called back once it is under way
        outcome.expect(0)
        guest("hostb")
        return
    assert "A second Ctrl-C ends this at once" in outcome.expect(128 + number).stderr
    guest("hosta")
    assert rig.sh("hostb", "ls /pool").strip() == ""
    assert rig.leftovers() == []
    assert rig.status("hosta", "c1")["state"] == "rolled-back"


def test_interrupted_twice_ends_at_once(rig: Rig, guest: Callable[[str], None]) -> None:
    """The first is answered when CRIU has let go; the second leaves the container as it is, to `resume`."""
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *ALL_AT_ONCE) as running:
        criu.wait("CRIU has begun")
        running.signal(2)
        wait_for(lambda: "Interrupted" in running.stderr, "it has heard the first")  # two at the same moment are one
        running.signal(2)
        assert running.wait().status != 0
        assert rig.status("hosta", "c1")["state"] == "dumping"
    rig.migrator("hosta", "resume", "c1").expect(0)
    guest("hostb")


def test_a_resume_after_the_end_does_nothing(rig: Rig, guest: Callable[[str], None]) -> None:
    migrate(rig, "c1", "hosta").expect(0)
    guest("hostb")
    again = rig.migrator("hosta", "resume", "c1", "--json").expect(0).json
    assert again["already"] is True


def test_requests_while_it_stands_still(rig: Rig, guest: Callable[[str], None], clean_hosts: CleanHosts) -> None:
    """As docs/protocol.md has it: its data, and one that ends it."""
    outcome = rig.migrator("hosta", *ALL_AT_ONCE[1:], "--debug").expect(0)
    said = [json.loads(line)["message"] for line in outcome.stderr.splitlines()]
    frozen = next(number for number, text in enumerate(said) if text.startswith("+ nft 'add table netdev migrator-"))
    asked = [text.rpartition(": ")[2] for text in said[frozen:] if text.startswith("asking ")]
    still = asked[: asked.index("own")]
    processes = int(rig.sh("hostb", "cat /sys/fs/cgroup/lxc.payload.c1/cgroup.procs | wc -l"))
    assert set(still) == {"transfer"} and 2 <= len(still) <= 2 + processes, asked
    assert "restore" not in asked, "what `own` has done is not asked for again"
    guest("hostb")
