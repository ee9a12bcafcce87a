# SPDX-License-Identifier: GPL-2.0-or-later
"""--no-memory between two real hosts: what CRIU cannot dump is stopped here and started there, once, or here again."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from harness.rig import Rig, wait_for
from tests.rig.boot_guest import refuses_to_start
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import held
from tests.rig.moves import LIMITS, TO_B, events, migrate, other
from tests.rig.outcomes import RUNS_AGAIN, STILL_FROZEN, failed
from tests.rig.without_memory import SENT_STOPPED, WITHOUT, guest, runs_only_on  # noqa: F401 -- a fixture

LOG = "/pool/c1/rootfs/log"
RESTORE = ("migrator", "restore-dump", "c1")
# When a program is held: lxc-start, but not to tell its version; btrfs, once the container is stopped.
STARTED = '[ "$1" = -d ]'


def block(rig: Rig, host: str) -> None:
    """Give the container what CRIU cannot dump: a process with a host name of its own."""
    rig.exec(host, "lxc-attach", "-n", "c1", "--", "sh", "-c",
             "setsid unshare -u sleep 600 </dev/null >/dev/null 2>&1 &")
    # Only the last of these programs, which become one another, has all of that line.
    wait_for(lambda: "sleep 600" in rig.sh(host, "ps -eo args=").splitlines(), "the task runs")


def brought_all(rig: Rig, source: str) -> None:
    """The destination's log goes on exactly where the copy left behind ends: not a line of it was lost."""
    before = rig.read(source, LOG)
    after = rig.read(other(source), LOG)
    assert before and after.startswith(before) and after[len(before):].startswith("1\n"), "some of it was lost"


@pytest.mark.nightly  # by hand it goes there below
def test_there_and_back(rig: Rig, guest: Callable[[str, int], None]) -> None:
    for starts, source in ((2, "hosta"), (3, "hostb")):
        block(rig, source)
        destination = f"root@{other(source)}"
        blocked = failed(migrate(rig, "c1", source), 30, "blocked")
        assert "--no-memory" in str(blocked["cure"]) and "processes" in str(blocked["cure"])
        looked = rig.migrator(source, "check", "c1", "-d", destination, "--json").expect(30).json
        assert looked["without_memory"]["command"] == f"migrator migrate c1 -d {destination} --no-memory"
        free = rig.migrator(source, "check", "c1", "-d", destination, "--no-memory", "--json").json
        assert free["verdict"] != "blocked" and free["memory"] is False
        assert "nested-namespace" not in {finding["code"] for finding in free["findings"]}
        done = migrate(rig, "c1", source, "--no-memory").expect(0)
        guest(other(source), starts)
        brought_all(rig, source)
        refuses_to_start(rig, source)
        assert 0 < done.json["stop_seconds"] < done.json["stopped_seconds"] < done.json["seconds"]
        assert "frozen_seconds" not in done.json and done.json["memory"] == 0
        (planned,) = events(done, "plan")
        assert planned["memory_bytes"] is None
        assert events(done, "stop") and not events(done, "freeze")
        for host in (source, other(source)):
            status = rig.status(host, "c1")
            assert status["state"] == "finished" and status["memory"] is False
    # It can be started anew from within, though it was started behind a fence.
    rig.sh("hosta", "nsenter -t $(lxc-info -n c1 -pH) -a /bin/busybox reboot -f", check=False)  # it may die of that
    wait_for(lambda: rig.probe("hosta", "c1", quick=True).get("starts") == 4, "it has rebooted")


def test_what_has_been_sent_serves_without_memory_too(rig: Rig, guest: Callable[[str, int], None]) -> None:
    block(rig, "hosta")
    failed(migrate(rig, "c1", "hosta", "--ignore", "nested-namespace"), RUNS_AGAIN, "dump-failed")
    rounds = rig.status("hosta", "c1")["bytes"]["full"]
    done = rig.migrator("hosta", "resume", "c1", "--no-memory", "--json").expect(0).json
    assert done["rounds"][0]["bytes"] == rounds
    guest("hostb", 2)
    brought_all(rig, "hosta")


def test_stages_by_hand(rig: Rig, guest: Callable[[str, int], None]) -> None:
    for stage in ("rollback", "restore-dump"):
        block(rig, "hosta")
        rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--no-memory").expect(0)
        rig.migrator("hostb", "import-data", "c1").expect(0)
        shown = rig.migrator("hosta", "create-dump", "c1", *TO_B, "--dry-run", "--json").expect(0).json["dry_run"]
        assert shown[0]["argv"][:3] == ["lxc-stop", "-n", "c1"]
        dumped = rig.migrator("hosta", "create-dump", "c1", *TO_B, "--json").expect(0).json
        assert dumped["memory"] == 0 and not dumped["killed"]
        assert rig.status("hosta", "c1")["note"].startswith("It is stopped here")
        if stage == "rollback":
            assert rig.migrator("hosta", "rollback", "c1", "--json").expect(0).json["thawed"]
            guest("hosta", 2)
    for host in ("hosta", "hostb"):
        refuses_to_start(rig, host)
    rig.sh("hostb", "rm -rf /run/migrator")  # a reboot takes nothing that is needed
    assert rig.status("hostb", "c1")["note"] == ""
    with held(rig, "hostb", "lxc-start", STARTED) as hold, rig.start("hostb", *RESTORE) as restoring:
        hold.wait("it is being started")
        restoring.signal(9)
        restoring.wait()
        assert rig.status("hostb", "c1")["state"] == "restoring"
    rig.migrator("hostb", "restore-dump", "c1", "--json").expect(0)
    rig.migrator("hosta", "finish", "c1").expect(0)
    guest("hostb", 3)
    brought_all(rig, "hosta")


@pytest.mark.nightly
def test_the_start_fails_there_and_then_here_too(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.put("hosta", "/usr/local/bin/only-here", "#!/bin/sh\n[ ! -e /run/not-even-here ]\n")
    rig.exec("hosta", "chmod", "755", "/usr/local/bin/only-here")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120", config="lxc.hook.pre-start = /usr/local/bin/only-here")
    failed(migrate(rig, "c1", "hosta", "--no-memory"), 30, "blocked")
    error = failed(migrate(rig, "c1", "hosta", "--no-memory", "--ignore", "hook-missing"), RUNS_AGAIN, "start-failed")
    assert error["code"] == "source-started-again"
    runs_only_on(rig, "hosta", 2)
    assert rig.sh("hostb", "ls /pool").strip() == ""
    assert rig.leftovers() == []
    rig.exec("hosta", "touch", "/run/not-even-here")
    error = failed(migrate(rig, "c1", "hosta", "--no-memory", "--ignore", "hook-missing"), STILL_FROZEN, "start-failed")
    assert error["code"] == "source-still-stopped" and "migrator rollback c1" in str(error["cure"])
    rig.exec("hosta", "rm", "/run/not-even-here")
    rig.migrator("hosta", "rollback", "c1").expect(0)
    runs_only_on(rig, "hosta", 3)
    assert rig.leftovers() == []


def test_another_container_that_a_hook_has_started_is_not_taken_for_it(rig: Rig, clean_hosts: CleanHosts) -> None:
    """It runs on where the start fails, and what has failed comes to its end all the same."""
    clean_hosts.allow("snapshot")
    rig.guest("hostb", "c2", "tick")
    rig.sh("hostb", "lxc-stop -k -n c2; lxc-wait -n c2 -s STOPPED -t 200")
    for host in ("hosta", "hostb"):
        rig.put(host, "/usr/local/bin/beside", "#!/bin/sh\n[ ! -e /pool/c2 ] || { lxc-start -n c2; exit 1; }\n")
        rig.exec(host, "chmod", "755", "/usr/local/bin/beside")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120", config="lxc.hook.pre-start = /usr/local/bin/beside")
    error = failed(migrate(rig, "c1", "hosta", "--no-memory"), RUNS_AGAIN, "start-failed")
    assert error["code"] == "source-started-again"
    assert rig.sh("hostb", "lxc-info -n c2 -sH").strip() == "RUNNING"
    runs_only_on(rig, "hosta", 2)


@contextlib.contextmanager
def later(rig: Rig, host: str) -> Iterator[None]:
    """The host has been up for years, as far as /proc says: any word is over."""
    rig.put(host, "/run/later", "99999999.00 0.00\n")
    rig.exec(host, "mount", "--bind", "/run/later", "/proc/uptime")
    try:
        yield
    finally:
        rig.exec(host, "umount", "/proc/uptime")


@pytest.mark.parametrize("hook", ["pre-start", pytest.param("pre-mount", marks=pytest.mark.nightly)])
def test_kept_busy_by_a_hook_until_the_word_is_over(rig: Rig, clean_hosts: CleanHosts, hook: str) -> None:
    """Its migrator was killed, and nobody ends lxc-start: it does not start the container any more.

    One of pre-mount waits in the container's own namespaces, when the hooks before are done.
    """
    clean_hosts.allow("snapshot")
    for host in ("hosta", "hostb"):
        rig.put(host, "/usr/local/bin/waits", "#!/bin/sh\n[ ! -p /run/go ] || { >/run/waits; read -r go </run/go; }\n")
        rig.exec(host, "chmod", "755", "/usr/local/bin/waits")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120", config=f"lxc.hook.{hook} = /usr/local/bin/waits")
    rig.migrator("hosta", "prepare-data", "c1", *TO_B, "--no-memory").expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    rig.exec("hostb", "mkfifo", "/run/go")
    try:
        with rig.start("hostb", *RESTORE) as restoring:
            wait_for(lambda: rig.sh("hostb", "ls /run/waits", check=False) != "", "the hook waits")
            restoring.signal(9)
            restoring.wait()
        before = rig.read("hostb", LOG)
        with later(rig, "hostb"):
            rig.sh("hostb", "echo go >/run/go")
            wait_for(lambda: state(rig, "hostb") in ("STOPPED", "RUNNING"), "lxc-start has come to an end")
            assert state(rig, "hostb") == "STOPPED"
        assert rig.read("hostb", LOG) == before
        assert rig.status("hostb", "c1")["state"] == "restoring"
    finally:
        rig.sh("hostb", "rm -f /run/go /run/waits")
    rig.migrator("hosta", "resume", "c1").expect(0)
    runs_only_on(rig, "hostb", 2)


def test_it_reboots_long_after_the_word(rig: Rig, clean_hosts: CleanHosts) -> None:
    """LXC's monitor goes through all hooks of its start again."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120")  # in a user namespace no /proc is mounted beside `later`
    migrate(rig, "c1", "hosta", "--no-memory").expect(0)
    runs_only_on(rig, "hostb", 2)
    with later(rig, "hostb"):
        rig.sh("hostb", "nsenter -t $(lxc-info -n c1 -pH) -a /bin/busybox reboot -f", check=False)  # it may die of that
        wait_for(lambda: rig.probe("hostb", "c1", quick=True).get("starts") == 3, "it has rebooted")


def state(rig: Rig, host: str) -> str:
    return rig.sh(host, "lxc-info -n c1 -sH").strip()


def stopped(rig: Rig) -> bool:
    return state(rig, "hosta") == "STOPPED"


@pytest.mark.parametrize("heal", ["resume", pytest.param("rollback", marks=pytest.mark.nightly)])
def test_killed_between_stop_and_offer(rig: Rig, guest: Callable[[str, int], None], heal: str) -> None:
    with held(rig, "hosta", "btrfs", SENT_STOPPED) as hold, rig.start("hosta", *WITHOUT) as running:
        hold.wait("it is stopped")
        running.signal(9)
        running.wait()
    status = rig.status("hosta", "c1")
    assert (status["state"], status["owner"]) == ("dumping", "source")
    refuses_to_start(rig, "hosta")
    if heal == "resume":
        rig.migrator("hosta", "resume", "c1").expect(0)
        guest("hostb", 3)
        return
    rollback = ("migrator", "rollback", "c1", "--json")
    with held(rig, "hosta", "lxc-start", STARTED) as hold:
        with rig.start("hosta", *rollback) as healing:
            hold.wait("it is being started")
            healing.signal(9)
            healing.wait()
        with rig.start("hosta", *rollback) as healing:  # what that had begun is waited for, and not done once more
            time.sleep(2)
            assert healing.process.poll() is None, healing.stdout
            hold.release()
            done = healing.wait().expect(0).json
    assert done["thawed"] is True
    guest("hosta", 2)
    steps = [event["phase"] for event in rig.status("hosta", "c1")["events"] if event["step"] == "start"]
    assert steps == ["begin"], "it was started by the one that was killed"


def is_to_end(rig: Rig) -> bool:
    """Whether a migration that has not ended has begun to stop it."""
    under_way = rig.migrator("hosta", "status", "--events", "--json").expect(0).json["migrations"]
    return any(event["step"] == "stop" for each in under_way for event in each["events"])


def test_killed_while_it_ends(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Its init does not listen: what was asked to end is ended for certain before it is started again."""
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120", config="lxc.signal.halt = SIGWINCH")
    starts = 1
    for limit in LIMITS:
        starts += 1
        with rig.start("hosta", *WITHOUT, "--stop-timeout", limit) as running:
            wait_for(lambda: is_to_end(rig), "it is to end")
            running.signal(9)
            running.wait()
        in_time = not stopped(rig)
        rig.migrator("hosta", "rollback", "c1").expect(0)
        if in_time:
            break
    assert in_time
    runs_only_on(rig, "hosta", starts)
    assert rig.leftovers() == []


def test_interrupted(rig: Rig, guest: Callable[[str, int], None]) -> None:
    """One Ctrl-C: it is started again here, and nothing is left."""
    with held(rig, "hosta", "btrfs", SENT_STOPPED) as hold, rig.start("hosta", *WITHOUT) as running:
        hold.wait("it is stopped")
        running.signal(2)
        running.wait().expect(130)
    guest("hosta", 2)
    assert rig.sh("hostb", "ls /pool").strip() == ""
    assert rig.leftovers() == []
    assert rig.status("hosta", "c1")["state"] == "rolled-back"


def test_somebody_starts_it_meanwhile(rig: Rig, guest: Callable[[str, int], None]) -> None:
    """Past the fence, which takes intent: it is not handed over, and not started a second time."""
    with held(rig, "hosta", "btrfs", SENT_STOPPED) as hold, rig.start("hosta", *WITHOUT) as running:
        hold.wait("it is stopped")
        rig.sh("hosta", "sed '/BEGIN migrator/,/END migrator/d' /pool/c1/config >/tmp/plain; "
                        "lxc-start -n c1 -f /tmp/plain; rm /tmp/plain")
        hold.release()
        failed(running.wait(), 28, "container-changed")
    assert rig.status("hosta", "c1")["owner"] == "source"
    rig.migrator("hosta", "rollback", "c1").expect(0)
    guest("hosta", 2)
    assert rig.leftovers() == []


@pytest.mark.nightly
def test_stopped_for_too_long(rig: Rig, guest: Callable[[str, int], None]) -> None:
    with held(rig, "hosta", "btrfs", SENT_STOPPED):
        outcome = migrate(rig, "c1", "hosta", "--no-memory", "--max-downtime", "2")
    error = failed(outcome, RUNS_AGAIN, "downtime-exceeded")
    assert error["code"] == "source-started-again"
    assert "migrator resume c1" in str(error["cure"])
    rig.migrator("hosta", "resume", "c1", "--max-downtime", "600").expect(0)
    guest("hostb", 3)
