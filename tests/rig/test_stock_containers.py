# SPDX-License-Identifier: GPL-2.0-or-later
"""Containers as people have them: unprivileged with a network, with what an administrator does to them afterwards."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.conftest import CleanHosts
from tests.rig.harness import LXC_HOSTS, Rig, wait_for
from tests.rig.held import instead_of
from tests.rig.test_failures import RUNS_AGAIN, failed
from tests.rig.test_migrate import migrate, other, runs_only_on

REPORT = "/tmp/stock-clients.json"
ADDRESS = "10.0.3.130"


@contextlib.contextmanager
def connected(rig: Rig, address: str = ADDRESS) -> Iterator[None]:
    """A client of a talk guest keeps one connection for the whole block, and all that it hears is right."""

    def heard() -> dict[str, object]:
        found: dict[str, object] = json.loads(rig.sh("client", f"cat {REPORT} 2>/dev/null || echo '{{}}'"))[address]
        assert found["problem"] is None, found
        return found

    rig.exec("client", "rm", "-f", REPORT)
    rig.put("client", "/root/talk_clients.py", Path(__file__).with_name("talk_clients.py").read_text())
    with rig.start("client", "python3", "/root/talk_clients.py", REPORT, address):
        wait_for(lambda: rig.sh("client", f"cat {REPORT} 2>/dev/null", check=False) and heard()["answers"], "it talks")
        yield
        before = heard()["answers"]
        wait_for(lambda: heard()["answers"] != before, "it still talks")


def ownership(rig: Rig, host: str, name: str) -> str:
    """Who owns what in a container's cgroup, and what he may do to it."""
    return rig.sh(host, f"cd /sys/fs/cgroup/lxc.payload.{name} && "
                        "find . -printf '%p %U %G %m\\n' | grep -v '^./.lxc' | sort")


def test_an_unprivileged_container_with_a_network(rig: Rig, clean_hosts: CleanHosts) -> None:
    """There, back, and there again; attaching to it, stopping and starting it work as ever."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "talk", ip=ADDRESS, unprivileged=True)
    start = rig.probe("hosta", "c1")["start"]
    rig.sh("hosta", "mkdir -p /sys/fs/cgroup/lxc.payload.c1/own/user && cd /sys/fs/cgroup/lxc.payload.c1/own && "
                    "chown -R 100000:100000 . && chown 101000:101000 user user/cgroup.procs")
    owners = ownership(rig, "hosta", "c1")
    with connected(rig):
        for source in ("hosta", "hostb", "hosta"):
            migrate(rig, "c1", source).expect(0)
            runs_only_on(rig, other(source), start)
            assert ownership(rig, other(source), "c1") == owners
            assert rig.sh(other(source), "lxc-attach -n c1 -- id -u").strip() == "0"
    outside = rig.sh("hostb", "lxc-info -n c1 | sed -n 's/^Link: *//p'").strip()
    assert rig.sh("hostb", f"cat /sys/class/net/{outside}/address").startswith("fe:"), "the bridge keeps its address"
    rig.sh("hostb", "lxc-stop -n c1 -t 20")
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "STOPPED"
    wait_for(lambda: not any(veths(rig, host) for host in LXC_HOSTS), "its veths are gone")
    rig.sh("hostb", "cd /pool/c1/rootfs && rm starts log count; lxc-start -n c1")
    wait_for(lambda: rig.probe("hostb", "c1", quick=True)["intact"], "it has started anew")


def veths(rig: Rig, host: str) -> list[str]:
    return [name for name in rig.sh(host, "ls /sys/class/net").split() if name.startswith(("veth", "mg"))]


# CRIU gives up before it has taken the veth, and (by what a source sends that is not to be trusted) after it.
FAILS = {
    "at once": ("hostb", '#!/bin/sh\ncase "$*" in *restore*) exit 1 ;; esac\nexec REAL "$@"\n', "lxc-checkpoint"),
    "when all is there": ("hosta", """#!/bin/sh
REAL "$@" || exit
for word; do [ ! -e "$word/cgroup-owners" ] || echo "0 7 644 cgroup.procs" >>"$word/cgroup-owners"; done
""", "cgroup.procs would belong to 7"),
}


@pytest.mark.parametrize("when", FAILS)
def test_a_restore_that_fails_leaves_no_veth(rig: Rig, clean_hosts: CleanHosts, when: str) -> None:
    clean_hosts.allow("snapshot")
    host, script, said = FAILS[when]
    rig.guest("hosta", "c1", "talk", ip=ADDRESS, unprivileged=True)
    start = rig.probe("hosta", "c1")["start"]
    with instead_of(rig, host, "criu", script):
        error = failed(migrate(rig, "c1", "hosta"), RUNS_AGAIN, "restore-failed")
    assert said in str(error["message"])
    wait_for(lambda: not veths(rig, "hostb"), "none is left")
    runs_only_on(rig, "hosta", start)
    migrate(rig, "c1", "hosta").expect(0)
    runs_only_on(rig, "hostb", start)
