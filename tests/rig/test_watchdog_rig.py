# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever becomes of the program that has frozen a container: it is given back, and nobody has to type anything."""

from __future__ import annotations

import pytest

from harness.rig import DESTINATION, Rig, Running, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import DUMP, held
from tests.rig.moves import ALL_AT_ONCE


@pytest.fixture
def guest(rig: Rig, clean_hosts: CleanHosts) -> str:
    """A tick guest on hosta; returns its start."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120")
    return str(rig.probe("hosta", "c1")["start"])


def signal(rig: Rig, number: str) -> None:
    """To the `migrator migrate` on hosta."""
    rig.sh("hosta", f"pkill -{number} -x migrator")


def runs_on(rig: Rig, start: str) -> None:
    """It counts on where it was, and has its network."""
    count = rig.probe("hosta", "c1", quick=True)["count"]
    wait_for(lambda: rig.probe("hosta", "c1", quick=True)["count"] > count, "it counts on")
    found = rig.probe("hosta", "c1")
    assert found["intact"] and found["start"] == start, found
    rig.exec("client", "ping", "-c", "1", "-w", "60", "10.0.3.120")


def watched(rig: Rig) -> bool:
    """Whether a watchdog is there; none is, once all is over."""
    return bool(rig.sh("hosta", "pgrep -f migrator.copies.watchdo[g]", check=False))


def thawed(rig: Rig) -> bool:
    return rig.sh("hosta", "cat /sys/fs/cgroup/lxc.payload.c1*/cgroup.freeze").strip() == "0"


def hold_frozen(rig: Rig, running: Running) -> None:
    assert running.process.poll() is None, running.stderr
    assert not thawed(rig) and watched(rig)


def test_stopped_while_it_is_frozen(rig: Rig, guest: str) -> None:
    """Ctrl-Z, or a debugger: past --max-downtime the container runs. Who goes on after that gives the attempt up."""
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *ALL_AT_ONCE, "--max-downtime", "5") as running:
        criu.wait("CRIU has begun")
        hold_frozen(rig, running)
        signal(rig, "STOP")
        criu.release()
        wait_for(lambda: thawed(rig), "the watchdog thaws it")
        runs_on(rig, guest)
        signal(rig, "CONT")
        outcome = running.wait().expect(3)
    assert outcome.error["cause"]["code"] == "downtime-exceeded"
    runs_on(rig, guest)
    assert not watched(rig)
    rig.exec("hosta", *ALL_AT_ONCE)
    assert rig.probe("hostb", "c1")["start"] == guest


def test_killed_while_it_is_frozen(rig: Rig, guest: str) -> None:
    """It runs as soon as CRIU has let go of it, and not before."""
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *ALL_AT_ONCE) as running:
        criu.wait("CRIU has begun")
        criu.spare()
        hold_frozen(rig, running)
        running.signal(9)
        running.wait()
        assert watched(rig) and not thawed(rig)
        criu.release()
        wait_for(lambda: thawed(rig), "the watchdog thaws it")
    runs_on(rig, guest)
    wait_for(lambda: not watched(rig), "the watchdog has ended")
    assert rig.status("hosta", "c1")["state"] == "dumping"
    rig.migrator("hosta", "resume", "c1").expect(0)
    assert rig.probe("hostb", "c1")["start"] == guest


KILLED_AS_ONE = """set -e
top=/sys/fs/cgroup/session.scope
mkdir $top
echo 0 >$top/cgroup.procs
exec migrator migrate c1 -d DESTINATION --json
"""


def test_all_of_its_cgroup_is_killed(rig: Rig, guest: str) -> None:
    """As systemd does to a session or a unit, and the kernel to one without memory: the watchdog is not among them.

    Nor is CRIU, which is let end its dump: killed in the middle it would leave the tasks broken.
    """
    script = KILLED_AS_ONE.replace("DESTINATION", DESTINATION)
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", "sh", "-c", script) as running:
        criu.wait("CRIU has begun")
        criu.spare()
        hold_frozen(rig, running)
        pids = rig.sh("hosta", "pgrep -f migrator.copies.watchdo[g]; ls /opt/held/criu.waiting").split()
        assert len(pids) == 2
        # As far as this host's root may: in a container without CAP_SYS_RESOURCE it may not.
        may = rig.sh("hosta", "echo -1000 2>/dev/null >/proc/self/oom_score_adj; cat /proc/self/oom_score_adj")
        for pid in pids:
            assert rig.sh("hosta", f"cat /proc/{pid}/oom_score_adj") == may
        rig.sh("hosta", "echo 1 >/sys/fs/cgroup/session.scope/cgroup.kill")
        running.wait()
        assert watched(rig) and not thawed(rig)
        rig.sh("hosta", f"kill -0 {' '.join(pids)}")
        criu.release()
        wait_for(lambda: thawed(rig), "the watchdog thaws it")
    runs_on(rig, guest)
    wait_for(lambda: not watched(rig), "the watchdog has ended")
    rig.sh("hosta", "ls /run/migrator/*/inventory.img")  # which CRIU writes when it has dumped all
    wait_for(lambda: rig.sh("hosta", "rmdir /sys/fs/cgroup/session.scope && echo gone", check=False), "all are gone")
    rig.migrator("hosta", "rollback", "c1").expect(0)
    runs_on(rig, guest)


def test_a_terminal_that_has_gone(rig: Rig, guest: str) -> None:
    """Each line that cannot be written any more, EIO as from a closed terminal or ENOSPC, is no reason for anything."""
    rig.exec("hosta", "sh", "-c", f"{' '.join(ALL_AT_ONCE)} >/dev/full 2>&1")
    assert rig.probe("hostb", "c1")["start"] == guest
    with held(rig, "hostb", "criu", DUMP) as criu:
        back = f"exec {' '.join(ALL_AT_ONCE).replace('hostb', 'hosta')} -v 2>/dev/full"
        with rig.start("hostb", "sh", "-c", back) as running:
            criu.wait("CRIU has begun")
            running.signal(2)
            criu.release()
            running.wait().expect(130)
    found = rig.probe("hostb", "c1")
    assert found["running"] and found["intact"] and found["start"] == guest, found
