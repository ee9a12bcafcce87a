# SPDX-License-Identifier: GPL-2.0-or-later
"""Containers as people have them: made by Debian's packages, privileged and not, with a network and with terminals.

Each is as untouched as it was made. It moves there and back under a client, and afterwards all that an administrator
does to a container works.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.rig import LXC_HOSTS, Rig, wait_for
from tests.rig import stock
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import instead_of
from tests.rig.moves import migrate, other, runs_only_on
from tests.rig.outcomes import RUNS_AGAIN, failed

REPORT = "/run/stock-clients.json"
ADDRESS = "10.0.3.130"
# Each container and each kind of privilege once, and with `make test-all` all four.
PRIVILEGED, UNPRIVILEGED = pytest.param(False, id="privileged"), pytest.param(True, id="unprivileged")
PRIVILEGED_TOO = pytest.param(False, id="privileged", marks=pytest.mark.nightly)
UNPRIVILEGED_TOO = pytest.param(True, id="unprivileged", marks=pytest.mark.nightly)


@contextlib.contextmanager
def talking(rig: Rig, address: str = ADDRESS) -> Iterator[None]:
    """A client of talk.sh keeps one connection for the whole block, and all that it hears is right."""

    def answers() -> int:
        text = rig.sh("client", f"cat {REPORT} 2>/dev/null || echo '{{}}'")
        found = json.loads(text).get(address, {"problem": None, "answers": 0})
        assert found["problem"] is None, found
        return int(found["answers"])

    rig.exec("client", "rm", "-f", REPORT)
    rig.put("client", "/run/talk_clients.py", Path(__file__).with_name("talk_clients.py").read_text())
    with rig.start("client", "python3", "/run/talk_clients.py", REPORT, address):
        wait_for(answers, "it talks")
        yield
        before = answers()
        wait_for(lambda: answers() > before, "it still talks")


@contextlib.contextmanager
def asking_redis(rig: Rig, address: str) -> Iterator[None]:
    """A client of Redis keeps one connection for the whole block; nothing is lost or wrong."""
    with rig.start("client", "python3", "/opt/rig/guests/redis_client.py", address) as client:
        wait_for(lambda: "connected" in client.stderr, "it is connected")
        yield
        client.signal(15)
        seen = json.loads(client.wait().stdout)
    assert seen["lost"] == seen["wrong"] == 0 and seen["problem"] is None and seen["requests"] > 0, seen


def there_and_back(rig: Rig, name: str) -> None:
    """As `check` has promised; each time it is the same container in every respect."""
    looks: list[Callable[[Rig, str, str], set[str]]] = [
        stock.processes, stock.logins, stock.mounts, stock.ownership]
    before = [look(rig, "hosta", name) for look in looks]
    for source in ("hosta", "hostb"):
        there = other(source)
        checked = rig.migrator(source, "check", name, "-d", f"root@{there}", "--json")
        assert checked.status in (0, 1), checked
        migrate(rig, name, source).expect(0)
        assert [look(rig, there, name) for look in looks] == before
        assert rig.sh(there, f"lxc-attach -n {name} -- id -u").strip() == "0"
    outside = rig.sh("hosta", f"lxc-info -n {name} | sed -n 's/^Link: *//p'").strip()
    assert rig.sh("hosta", f"cat /sys/class/net/{outside}/address").startswith("fe:"), "the bridge keeps its address"


def reboots_and_stops(rig: Rig, name: str, logins: set[str], *, halts: bool) -> None:
    """From inside, and from outside."""
    def init() -> str:
        return rig.sh("hosta", f"lxc-info -n {name} -pH 2>/dev/null", check=False).strip()

    before = init()
    rig.exec("hosta", "kill", "-TERM", before)  # which busybox's init takes for a reboot
    wait_for(lambda: init() not in ("", before) and stock.logins(rig, "hosta", name) == logins, "it has booted again")
    rig.exec("hosta", "lxc-stop", "-n", name, *(["-t", "60"] if halts else ["-k"]))
    assert rig.sh("hosta", f"lxc-info -n {name} -sH").strip() == "STOPPED"
    wait_for(lambda: not any(stock.veths(rig, host) for host in LXC_HOSTS), "its veths are gone")


@pytest.mark.parametrize("unprivileged", [PRIVILEGED, UNPRIVILEGED_TOO])
def test_lxc_create_busybox(rig: Rig, clean_hosts: CleanHosts, unprivileged: bool) -> None:
    clean_hosts.allow("snapshot")
    with stock.network_with_leases(rig):
        stock.busybox(rig, "hosta", "c1", unprivileged=unprivileged)
        with talking(rig, stock.address(rig, "hosta", "c1")):
            there_and_back(rig, "c1")
        stock.type_at_console(rig, "hosta", "c1", "\n", "built-in shell")
        reboots_and_stops(rig, "c1", {"tty1", "console"}, halts=True)


@pytest.mark.parametrize("unprivileged", [PRIVILEGED_TOO, UNPRIVILEGED])
def test_debian_with_debians_configuration(rig: Rig, clean_hosts: CleanHosts, unprivileged: bool) -> None:
    clean_hosts.allow("snapshot")
    stock.debian(rig, "hosta", "c1", ADDRESS, unprivileged=unprivileged)
    with asking_redis(rig, ADDRESS):
        there_and_back(rig, "c1")
    stock.type_at_console(rig, "hosta", "c1", "\n", "login:")
    reboots_and_stops(rig, "c1", {"tty1", "tty4", "console"}, halts=False)


def test_cgroups_that_were_given_away(rig: Rig, clean_hosts: CleanHosts) -> None:
    """As a systemd in there makes them, also to its users: each still belongs to whom it belonged."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "talk", ip=ADDRESS, unprivileged=True)
    start = rig.probe("hosta", "c1")["start"]
    rig.sh("hosta", "mkdir -p /sys/fs/cgroup/lxc.payload.c1/own/user && cd /sys/fs/cgroup/lxc.payload.c1/own && "
                    "chown -R 100000:100000 . && chown 101000:101000 user user/cgroup.procs")
    owners = stock.ownership(rig, "hosta", "c1")
    with talking(rig):
        migrate(rig, "c1", "hosta").expect(0)
        runs_only_on(rig, "hostb", start)
        assert stock.ownership(rig, "hostb", "c1") == owners


# CRIU gives up before it has taken the veth, and (by what a source sends that is not to be trusted) after it.
FAILS = {
    "at once": ("hostb", '#!/bin/sh\ncase "$*" in *restore*) exit 1 ;; esac\nexec REAL "$@"\n', "lxc-checkpoint"),
    "when all is there": ("hosta", """#!/bin/sh
REAL "$@" || exit
for word; do [ ! -e "$word/cgroup-owners" ] || echo "0 7 644 cgroup.procs" >>"$word/cgroup-owners"; done
""", "would belong to 7"),
}


@pytest.mark.parametrize("when", [pytest.param("at once", marks=pytest.mark.nightly), "when all is there"])
def test_a_restore_that_fails_leaves_no_veth(rig: Rig, clean_hosts: CleanHosts, when: str) -> None:
    clean_hosts.allow("snapshot")
    host, script, said = FAILS[when]
    rig.guest("hosta", "c1", "talk", ip=ADDRESS, unprivileged=True)
    start = rig.probe("hosta", "c1")["start"]
    with instead_of(rig, host, "criu", script):
        error = failed(migrate(rig, "c1", "hosta"), RUNS_AGAIN, "restore-failed")
    assert said in str(error["message"])
    wait_for(lambda: not stock.veths(rig, "hostb"), "none is left")
    runs_only_on(rig, "hosta", start)
    migrate(rig, "c1", "hosta").expect(0)
    runs_only_on(rig, "hostb", start)
