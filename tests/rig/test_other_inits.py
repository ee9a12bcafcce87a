# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian guests whose init is not systemd move as they are, under clients that keep their connections."""

from __future__ import annotations

from typing import Any

import pytest

from harness.rig import DESTINATION, POOL, Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.moves import migrate, other
from tests.rig.service_clients import clients_of
from tests.rig.systemd_guests import ADDRESS, attach, log_in_at_console

NAME = "c1"
# What runs from boot to shutdown, by name. Shells that people have logged in to come and go.
LASTING = {"init", "openrc-init", "runsvdir", "tini", "nginx", "node", "sh", "sshd", "getty", "agetty",
           "supervise-daemo"}
TERMINALS = 5  # the console and tty1 to tty4: common.conf
REBOOT = {"sysvinit": ("reboot",), "openrc": ("openrc-shutdown", "-r", "now")}
BOOTED = [pytest.param("sysvinit", marks=pytest.mark.nightly), pytest.param("openrc", marks=pytest.mark.nightly)]


def programs(rig: Rig, host: str) -> list[str]:
    return list(rig.probe(host, NAME).get("processes", {}).values())


def is_booted(rig: Rig, host: str) -> bool:
    """All that is started at boot is there, and what starts it has ended."""
    found = programs(rig, host)
    terminals = found.count("getty") + found.count("agetty")
    return terminals == TERMINALS and "sshd" in found and not {"rc", "startpar", "openrc"} & set(found)


def lasting(found: dict[str, Any]) -> dict[str, str]:
    return {pid: program for pid, program in found["processes"].items() if program in LASTING}


def there_and_back(rig: Rig, *services: str, times: int = 1) -> None:
    """Under clients of its services: nothing is lost, and no process is another one than before."""
    with clients_of(rig, ADDRESS, *services):
        before = rig.probe("hosta", NAME)
        assert before["intact"] and lasting(before)
        for host in ("hosta", "hostb") * times:
            migrate(rig, NAME, host).expect(0)
            now = rig.probe(other(host), NAME)
            assert now["intact"] and now["start"] == before["start"]
            assert lasting(before).items() <= lasting(now).items()


def test_an_application_with_tini(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", NAME, "tini", unprivileged=True)
    there_and_back(rig, "http")


@pytest.mark.parametrize("kind", BOOTED)
def test_a_whole_system(rig: Rig, clean_hosts: CleanHosts, kind: str) -> None:
    """With somebody logged in by SSH; then it reboots by itself, somebody logs in at its console, and it is stopped."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", NAME, kind, unprivileged=True)
    wait_for(lambda: is_booted(rig, "hosta"), "it has booted")
    there_and_back(rig, "http", "ssh", times=2)
    start = rig.probe("hosta", NAME)["start"]
    attach(rig, "hosta", NAME, *REBOOT[kind], check=False)
    wait_for(lambda: rig.probe("hosta", NAME).get("start", start) != start and is_booted(rig, "hosta"),
             "it has booted again")
    log_in_at_console(rig, "hosta", NAME)
    rig.exec("hosta", "lxc-stop", "-n", NAME, "-t", "120")
    assert rig.sh("hosta", f"lxc-info -n {NAME} -sH").strip() == "STOPPED"


def service(rig: Rig, host: str) -> tuple[str, int]:
    """Device and inode of the folder of runit's service, and how often that was started."""
    numbers = attach(rig, host, NAME, "stat", "-Lc", "%d %i", "/etc/service/rig-counter").strip()
    return numbers, rig.probe(host, NAME, quick=True)["starts"]


@pytest.mark.nightly  # what it shows is runit's, not ours
def test_runit_starts_its_services_again(rig: Rig, clean_hosts: CleanHosts) -> None:
    """As check says: because the numbers of their folders have changed. Without a move it does that as well."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", NAME, "runit", unprivileged=True)
    found = rig.migrator("hosta", "check", NAME, "-d", DESTINATION, "--json").json
    assert {each["code"] for each in found["findings"] if each["severity"] != "info"} == {"runit-guest"}
    numbers, starts = service(rig, "hosta")
    assert starts == 1
    attach(rig, "hosta", NAME, "sh", "-c", "cd /etc/service; cp -a rig-counter /etc/copy; rm -r rig-counter/supervise;"
           " mv rig-counter /etc/old; mv /etc/copy rig-counter")
    wait_for(lambda: service(rig, "hosta")[1] == 2, "a copy of its folder is another service")
    copied = service(rig, "hosta")[0]
    assert copied != numbers
    migrate(rig, NAME, "hosta").expect(0)
    wait_for(lambda: service(rig, "hostb")[1] == 3, "it was started again after the move")
    assert service(rig, "hostb")[0] != copied
    assert lasting(rig.probe("hostb", NAME)).items() >= {"1": "runsvdir"}.items()


@pytest.mark.nightly  # it is like the one with tini, once it is refused io_uring
def test_node(rig: Rig, clean_hosts: CleanHosts) -> None:
    """It opens an io_uring, which check finds, and does without where it is refused."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", NAME, "node", unprivileged=True)
    found = rig.migrator("hosta", "check", NAME, "-d", DESTINATION, "--json").json
    assert found["verdict"] == "blocked"
    assert {each["code"] for each in found["findings"] if each["severity"] == "error"} == {"io-uring"}
    assert found["prepare"] == f"migrator prepare-guest {NAME} --yes --for-good"
    assert found["restart"] == f"lxc-stop -n {NAME} && lxc-start -n {NAME}"
    words = rig.migrator("hosta", "check", NAME, "-d", DESTINATION).stdout.splitlines()[-1]
    assert words.endswith(f"Make it movable with: {found['prepare']} -- and restart it: {found['restart']}")
    done = rig.exec("hosta", *found["prepare"].split(), "--json", check=False).expect(1)
    assert done.json["seccomp"] == ""
    # It counts from 1 after the restart.
    rig.sh("hosta", found["restart"].replace("&&", f"&& rm {POOL}/{NAME}/rootfs/var/lib/rig-counter/* &&"))
    wait_for(lambda: rig.probe("hosta", NAME)["intact"] and "node" in programs(rig, "hosta"), "it runs again")
    there_and_back(rig, "requests", times=2)
