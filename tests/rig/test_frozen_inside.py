# SPDX-License-Identifier: GPL-2.0-or-later
"""A cgroup in a container, or above it, that somebody has frozen: CRIU waits for it without an end."""

from __future__ import annotations

import pytest

from harness.rig import DESTINATION, POOL, Rig, wait_for
from tests.rig.checked import NAME, check, daemon, found, guest
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import DUMP, held
from tests.rig.moves import ALL_AT_ONCE

__all__ = ["guest"]

CGROUP = "/sys/fs/cgroup/lxc.payload.c1"


def test_it_is_found_and_refused(guest: Rig) -> None:
    """First by the preflight, then, where that came too early or was told to ignore it, before CRIU is started."""
    payload = f"/sys/fs/cgroup/lxc.payload.{NAME}"
    migrate = ("migrate", "-P", POOL, NAME, "-d", DESTINATION, "--json")
    with daemon(guest, ""):
        guest.sh("hosta", f"mkdir {payload}/x; pgrep -x worker >{payload}/x/cgroup.procs; "
                          f"echo 1 >{payload}/x/cgroup.freeze")
        try:
            assert found(check(guest))["cgroup-frozen"] == "error"
            assert "cgroup-frozen" in str(guest.migrator("hosta", *migrate).expect(30).error["message"])
            error = guest.migrator("hosta", *migrate, "--ignore", "cgroup-frozen").expect(3).error
            assert error["cause"]["code"] == "container-changed" and f"{payload}/x" in str(error["message"])
            assert guest.sh("hosta", f"cat {payload}/cgroup.freeze {payload}/x/cgroup.freeze").split() == ["0", "1"]
            guest.exec("client", "ping", "-c", "1", "-w", "60", "10.0.3.100")
            guest.migrator("hosta", "rollback", "-P", POOL, NAME).expect(0)
        finally:
            guest.sh("hosta", f"echo 0 >{payload}/x/cgroup.freeze")
        assert "cgroup-frozen" not in found(check(guest))
    guest.sh("hosta", f"rmdir {payload}/x")


def test_nothing_that_is_done_inside_keeps_it_frozen(guest: Rig) -> None:
    """A process in namespaces of its own, in a cgroup with a path too long to be opened, as a user inside can make."""
    payload = f"/sys/fs/cgroup/lxc.payload.{NAME}"
    hide = f"""import os, sys
os.chdir({payload!r})
for _ in range(20):
    os.mkdir("x" * 250)
    os.chdir("x" * 250)
with open("cgroup.procs", "w") as file:
    file.write(sys.argv[1])
"""
    seen = ("cgroup-frozen", "attached-task", "outside-file", "nested-namespace")
    too_late = [word for code in seen for word in ("--ignore", code)]  # as if made after the preflight has looked
    with guest.start("hosta", "lxc-attach", "-P", POOL, "-n", NAME, "--", "unshare", "-Urpfm", "sleep", "12345"):
        wait_for(lambda: guest.sh("hosta", "pgrep -fx 'sleep 12345'", check=False), "it sleeps")
        pid = guest.sh("hosta", "pgrep -fx 'sleep 12345'").strip()
        try:
            guest.exec("hosta", "python3", "-c", hide, pid)
            error = guest.migrator("hosta", "migrate", "-P", POOL, NAME, "-d", DESTINATION, "--json",
                                   *too_late).expect(3).error
            assert error["cause"]["code"] == "container-changed" and "too long for CRIU" in str(error["message"])
            assert guest.sh("hosta", f"cat {payload}/cgroup.freeze").strip() == "0"
            guest.exec("client", "ping", "-c", "1", "-w", "60", "10.0.3.100")
            guest.migrator("hosta", "rollback", "-P", POOL, NAME).expect(0)
        finally:
            guest.sh("hosta", f"kill -9 {pid}; while find {payload}/x* -depth -type d -delete 2>&1 | grep -q busy; do "
                              "sleep 0.1; done")


@pytest.mark.parametrize("cure", ["thawed", "given up"])
def test_a_dump_that_waits_for_it_can_be_ended(rig: Rig, clean_hosts: CleanHosts, cure: str) -> None:
    """This host's root has frozen it since the last look: by the commands of docs/states.md."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120")
    rig.sh("hosta", f"mkdir {CGROUP}/x; lxc-info -n c1 -pH >{CGROUP}/x/cgroup.procs")
    start = str(rig.probe("hosta", "c1")["start"])
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *ALL_AT_ONCE) as running:
        criu.wait("CRIU has begun")
        rig.sh("hosta", f"echo 1 >{CGROUP}/x/cgroup.freeze")
        criu.release()
        # Then it has thawed the container's own cgroup, and lets go of nothing.
        wait_for(lambda: rig.sh("hosta", f"grep -rlx 1 --include=cgroup.freeze {CGROUP}", check=False)
                 == f"{CGROUP}/x/cgroup.freeze\n", "CRIU has hold of the tasks")
        if cure == "thawed":
            rig.sh("hosta", f"echo 0 >{CGROUP}/x/cgroup.freeze")
            running.wait().expect(0)
            assert rig.probe("hostb", "c1")["start"] == start
            return
        rig.sh("hosta", f"echo 1 >{CGROUP}/cgroup.kill")
        # CRIU may also see them end, give up by itself, and the container is started again: then nothing is left to do.
        wait_for(lambda: "populated 0" in rig.sh("hosta", f"cat {CGROUP}/cgroup.events", check=False)
                 or not rig.sh("hosta", "pgrep -x criu", check=False), "its processes have ended, or CRIU has given up")
        rig.sh("hosta", "pkill -9 -x criu", check=False)
        error = running.wait().expect(3).error
    assert error["code"] == "source-started-again"
    assert rig.probe("hosta", "c1")["start"] != start
    rig.migrator("hosta", "rollback", "c1").expect(0)
