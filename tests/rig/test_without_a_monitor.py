# SPDX-License-Identifier: GPL-2.0-or-later
"""LXC's monitor of a container that stands still is killed, as when memory is short: LXC calls it STOPPED then.

It is not: its tasks and all its memory are in their cgroup. So what is thawed, ended or started is told by that.
"""

from __future__ import annotations

import pytest

from harness.rig import Rig, wait_for
from tests.rig.boot_guest import killed_before_the_record
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import held
from tests.rig.moves import TO_B

CGROUP = "/sys/fs/cgroup/lxc.payload.c1"
INIT = f"head -n1 {CGROUP}/cgroup.procs"


@pytest.fixture
def guest(rig: Rig, clean_hosts: CleanHosts) -> str:
    """A tick guest on hosta whose tasks outlive its monitor, imported on hostb; returns its start."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120", config=["lxc.monitor.signal.pdeath = SIGWINCH"])
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    return str(rig.probe("hosta", "c1")["start"])


def kill_monitor(rig: Rig, host: str = "hosta") -> None:
    """And see that LXC knows nothing of the container any more, which lives."""
    rig.sh(host, "kill -9 $(pgrep -f '^\\[lxc monitor\\] .* c1$')")
    wait_for(lambda: rig.sh(host, "lxc-info -n c1 -sH").strip() == "STOPPED", "LXC takes it for stopped")
    assert rig.sh(host, INIT).strip(), "it lives"


def test_a_rollback_thaws_it(rig: Rig, guest: str) -> None:
    """It is the same start of the same processes, and no second one beside them."""
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    kill_monitor(rig)
    init = rig.sh("hosta", INIT)
    assert "with all its memory" in rig.status("hosta", "c1")["note"]
    told = rig.migrator("hosta", "rollback", "c1", "--json").expect(0).json
    assert told["thawed"] and told["destination_told"]
    assert rig.sh("hosta", INIT) == init
    assert rig.sh("hosta", f"cat {CGROUP}/cgroup.freeze").strip() == "0"
    assert not rig.sh("hosta", "ls -d /sys/fs/cgroup/lxc.payload.c1-* 2>/dev/null; true").strip(), "one copy"
    rig.reaches("client", "10.0.3.120")
    assert rig.status("hosta", "c1")["state"] == "rolled-back"


def test_after_a_kill_while_it_is_dumped_it_is_thawed(rig: Rig, guest: str) -> None:
    command = ("migrator", "create-dump", "c1", *TO_B)
    with held(rig, "hosta", "criu", '[ "$1" = dump ]') as hold, rig.start("hosta", *command) as dumping:
        hold.wait("it is dumped")
        kill_monitor(rig)
        init = rig.sh("hosta", INIT)
        dumping.signal(15)
        hold.release()
        assert dumping.wait().status != 0
    assert rig.sh("hosta", INIT) == init
    assert rig.sh("hosta", f"cat {CGROUP}/cgroup.freeze").strip() == "0"
    rig.reaches("client", "10.0.3.120")
    rig.migrator("hosta", "rollback", "c1").expect(0)


def test_no_watchdog_thaws_it_beside_another_start_of_it(rig: Rig, guest: str) -> None:
    """Two would write to one disk. Once that one has ended it is given back, and nobody has to type anything."""
    command = ("migrator", "create-dump", "c1", *TO_B)
    with held(rig, "hosta", "criu", '[ "$1" = dump ]') as hold, rig.start("hosta", *command) as dumping:
        hold.wait("it is dumped")
        kill_monitor(rig)
        init = rig.sh("hosta", INIT)
        rig.sh("hosta", "lxc-start -n c1 && lxc-wait -n c1 -s RUNNING")
        watchdog = rig.sh("hosta", "pgrep -f migrator.copies.watchdo[g]").strip()
        dumping.signal(9)
        dumping.wait()
        hold.release()
        wait_for(lambda: not rig.sh("hosta", "pgrep -x criu", check=False), "CRIU has let go of it")
        sleeps = f"awk '/^voluntary/ {{ print $2 }}' /proc/{watchdog}/status"  # one after each look
        before = int(rig.sh("hosta", sleeps))
        wait_for(lambda: int(rig.sh("hosta", sleeps)) > before + 20, "it has looked, and goes on")
        assert rig.sh("hosta", f"cat {CGROUP}/cgroup.freeze").strip() == "1" and rig.sh("hosta", INIT) == init
        assert rig.sh("hosta", "lxc-info -n c1 -sH").strip() == "RUNNING", "nor is that one touched"
        rig.sh("hosta", "lxc-stop -k -n c1")
        wait_for(lambda: rig.sh("hosta", f"cat {CGROUP}/cgroup.freeze").strip() == "0", "the watchdog thaws it")
    assert rig.sh("hosta", INIT) == init
    rig.reaches("client", "10.0.3.120")
    rig.migrator("hosta", "rollback", "c1").expect(0)


def test_finish_ends_it(rig: Rig, guest: str) -> None:
    """Nothing of it is left when the migration has ended."""
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    kill_monitor(rig)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.migrator("hosta", "finish", "c1").expect(0)
    assert not rig.sh("hosta", f"{INIT} 2>/dev/null; true").strip(), "it has ended"
    found = rig.probe("hostb", "c1")
    assert found["running"] and found["intact"] and found["start"] == guest
    rig.reaches("client", "10.0.3.120")


def test_what_was_restored_is_known_by_its_root(rig: Rig, guest: str) -> None:
    """And this host's own processes are not of it. LXC's monitor is its parent, and listens for it alone."""
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    script = ("import sys\nfrom pathlib import Path\nfrom migrator.record.migration_paths import Layout\n"
              "from stages.steps import left_running, settling\n"
              "here = Layout(Path('/pool'), 'c1', sys.argv[1])\n"
              "print(left_running.all_in_own(here, [int(pid) for pid in sys.argv[2:]]), settling.lives_on(here))\n")
    init = rig.sh("hostb", INIT).strip()
    id_ = rig.status("hostb", "c1")["id"]
    told = rig.exec("hostb", "/opt/migrator/venv/bin/python", "-c", script, id_, init, "1").stdout
    assert told == f"[{init}] True\n"
    script = ("import sys\nfrom pathlib import Path\nfrom migrator.copies import second_start\n"
              "from migrator.host import monitor_socket\n"
              "parent = second_start._parent(int(sys.argv[1]))\n"
              "print(*(not monitor_socket.may_be_its(parent, name, Path('/pool')) for name in ('c1', 'c2')))\n")
    for host in ("hosta", "hostb"):  # LXC has started the one, and CRIU has made the other one
        first = rig.sh(host, INIT).strip()
        assert rig.exec(host, "/opt/migrator/venv/bin/python", "-c", script, first).stdout == "False True\n"
    rig.migrator("hosta", "finish", "c1").expect(0)


def test_so_is_one_that_has_called_chroot_in_there(rig: Rig, guest: str) -> None:
    """As the first process of what moves without its memory may do; a subvolume has a device number of its own."""
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.sh("hostb", "mkdir -p /pool/c1/rootfs/inner /pool/outer")
    script = ("import subprocess, sys\nfrom pathlib import Path\nfrom migrator.copies import second_start\n"
              "from migrator.host import roots\nfrom migrator.record.migration_paths import Layout\n"
              "from stages.steps import left_running\n"
              "here = Layout(Path('/pool'), 'c1', sys.argv[1])\n"
              "for folder in '/pool/c1/rootfs/inner', '/pool/outer':\n"
              "    code = f'import os, time; os.chroot({folder!r}); print(flush=True); time.sleep(600)'\n"
              "    new = subprocess.Popen(['unshare', '--fork', '--kill-child', '--pid', '--mount', sys.executable,\n"
              "                            '-c', code], stdout=subprocess.PIPE)\n"
              "    new.stdout.readline()\n"
              "    pid = int(Path(f'/proc/{new.pid}/task/{new.pid}/children').read_text())\n"
              "    print(roots.is_in(pid, here.rootfs), left_running.all_in_own(here, [pid]) == [pid],\n"
              "          second_start.is_start(pid), left_running.live_below(here) == [pid])\n"
              "    new.kill()\n"
              "    new.wait()\n")
    id_ = rig.status("hostb", "c1")["id"]
    told = rig.exec("hostb", "/opt/migrator/venv/bin/python", "-c", script, id_).stdout
    assert told == "True True True True\nFalse False True False\n"
    rig.migrator("hosta", "finish", "c1").expect(0)


@pytest.mark.parametrize("since", ["it was frozen", "its monitor was killed", "there is no mark"])
def test_what_was_let_run_is_not_ended_for_it(rig: Rig, guest: str, since: str) -> None:
    """Who has restored it was killed before that was recorded; the next command records it.

    So where an older version has restored it, which made no mark: LXC has it, and it lives in what was received.
    """
    killed_before_the_record(rig)
    init = rig.sh("hostb", INIT)
    if since == "it was frozen":
        rig.sh("hostb", "lxc-freeze -n c1")
    elif since == "there is no mark":
        rig.sh("hostb", "rm /pool/.migrator/c1+/*.spool/let-run")
    else:
        kill_monitor(rig, "hostb")
    rig.migrator("hostb", "resume", "c1").expect(0)
    assert rig.status("hostb", "c1")["state"] == "finished" and rig.sh("hostb", INIT) == init
    assert not rig.sh("hosta", f"{INIT} 2>/dev/null; true").strip(), "one copy"
    if since == "it was frozen":
        assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "FROZEN", "that was meant"
        rig.sh("hostb", "lxc-unfreeze -n c1")
        assert rig.probe("hostb", "c1")["start"] == guest
    rig.reaches("client", "10.0.3.120")
