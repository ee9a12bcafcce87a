# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with systemd moves: its services keep running, and what people do with a container still works afterwards."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.rig import DESTINATION, POOL, Rig, wait_for
from tests.rig import systemd_guests
from tests.rig.clean_hosts import CleanHosts
from tests.rig.moves import migrate, other
from tests.rig.outcomes import failed
from tests.rig.service_clients import clients_of
from tests.rig.systemd_guests import ADDRESS, attach, booted

NAME = "c1"
# A service whose main process, always the same one, keeps sending its status to systemd.
TELLS = """
use IO::Socket::UNIX;
my $systemd = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Peer => $ENV{NOTIFY_SOCKET}) or die;
$systemd->send("READY=1");
while (1) { $systemd->send("STATUS=" . ++$count); select(undef, undef, undef, 0.1) }
"""


def service(rig: Rig, host: str, *properties: str) -> None:
    """Start that service, with further properties as for systemd-run."""
    words = [word for each in ("Type=notify", *properties) for word in ("-p", each)]
    attach(rig, host, NAME, "systemd-run", "-q", "--unit=tells", *words, "perl", "-e", TELLS)


def show(rig: Rig, host: str, unit: str, name: str) -> str:
    return attach(rig, host, NAME, "systemctl", "show", "--value", "-p", name, unit).strip()


def move(rig: Rig, source: str) -> str:
    """Move the guest to the other host; returns that host's name."""
    migrate(rig, NAME, source).expect(0)
    return other(source)


@contextlib.contextmanager
def asking(rig: Rig) -> Iterator[None]:
    """Run clients of all its services, each on one connection for the whole block; no answer may be lost or wrong."""
    with clients_of(rig, ADDRESS, "postgresql", "redis", "http", "ssh") as seen:
        yield
    assert seen["postgresql"]["rows"] == seen["postgresql"]["answers"]
    assert seen["ssh"]["shell"][1].startswith("/dev/pts/") and seen["ssh"]["shell"][2] == "1"


def nothing_has_changed(before: dict[str, Any], now: dict[str, Any]) -> None:
    """No unit has been restarted or has failed since, and it is still the same boot."""
    restarted = [name for name, started in before["units"].items() if now["units"].get(name) != started
                 and not name.startswith("run-credentials-")]  # these are unmounted if they are empty
    assert restarted == []
    for key in ("system", "failed", "boot", "start"):
        assert now[key] == before[key], key
    assert now["intact"]


# What keeps a stock guest from moving unless something is done about it, as its processes' mounts and descriptors show
# it: see migrator/criu and migrator/guest. Without one of these its move would prove less.
HAS = {
    "a terminal that waits for a login": r" /\d+ /dev/console .* - devpts ",
    "a service with a terminal of its own": r" /\d+ /dev/tty1 .* - devpts ",
    "a link that is watched": r"^/etc/localtime -> ",
    "a folder of a tmpfs that is mounted nowhere": r" /\S+ /tmp .* - tmpfs ",
    "mounts that follow": r" /systemd/propagate/\S+ /run/systemd/incoming .* master:",
    "a file of its cgroup": r" /\S+/memory\.pressure /sys/fs/cgroup/\S+/memory\.pressure ",
    "who is told of pressure": r"^/proc/1/fd/\d+ -> \S+/memory\.pressure$",
    "its own program held open": r"^/proc/1/fd/\d+ -> \S+/systemd-executor$",
    "a systemd of a user's": r"^/proc/\d+/exe -> \S+/systemd$",
}
SHOW = """
cat /proc/[0-9]*/mountinfo
for each in /etc/localtime /proc/1/fd/* $(ls -d /proc/[0-9]*/exe | grep -v ^/proc/1/); do
  echo "$each -> $(readlink $each)"
done 2>/dev/null
"""


def has_what_is_to_be_cured(rig: Rig, host: str) -> None:
    shown = attach(rig, host, NAME, "sh", "-c", SHOW, check=False)
    assert [what for what, pattern in HAS.items() if not re.search(pattern, shown, re.MULTILINE)] == []
    assert len(set(re.findall(r" /systemd/propagate/(\S+)", shown))) > 1


def works_as_before(rig: Rig, host: str) -> None:
    """What people do with a running container."""
    assert attach(rig, host, NAME, "systemd-run", "-q", "--wait", "--pipe", "echo", "works").strip() == "works"
    attach(rig, host, NAME, "rm", "-f", "/run/fired")
    attach(rig, host, NAME, "systemd-run", "-q", "--on-active=1", "--timer-property=AccuracySec=100ms",
           "touch", "/run/fired")
    wait_for(lambda: attach(rig, host, NAME, "ls", "/run").find("fired") >= 0, "a timer fires")
    assert attach(rig, host, NAME, "journalctl", "--list-boots", "-o", "json").count("boot_id") == 1
    attach(rig, host, NAME, "journalctl", "--verify")
    assert rig.sh("client", f"ssh -o StrictHostKeyChecking=no root@{ADDRESS} loginctl --no-legend").strip()
    told = int(show(rig, host, "tells.service", "StatusText"))
    wait_for(lambda: int(show(rig, host, "tells.service", "StatusText")) > told, "systemd hears a service")
    assert "nder memory pressure" not in attach(rig, host, NAME, "journalctl", "--no-pager")


@pytest.mark.parametrize("kind", ["systemd", pytest.param("systemd12", marks=pytest.mark.nightly)])
def test_a_systemd_guest_moves_three_times(rig: Rig, clean_hosts: CleanHosts, kind: str) -> None:
    """While clients use it."""
    clean_hosts.allow("snapshot")
    systemd_guests.make(rig, "hosta", NAME, kind)
    service(rig, "hosta")
    with asking(rig):  # one of them is logged in, so that a user's systemd runs, too
        before = rig.probe("hosta", NAME)
        if kind == "systemd":  # Debian 12's lacks some of it
            has_what_is_to_be_cured(rig, "hosta")
        host = "hosta"
        # As where a guest has run for weeks: the kernel knows no names any more of files that its systemd watches.
        Path("/proc/sys/vm/drop_caches").write_text("2")
        for _ in range(3):
            host = move(rig, host)
            nothing_has_changed(before, rig.probe(host, NAME))
        works_as_before(rig, host)
    systemd_guests.log_in_at_console(rig, host, NAME)


def given(rig: Rig, host: str, unit: str) -> list[str]:
    """A unit's credentials as it sees them: owner, mode and content of each; and that they cannot be changed."""
    script = ("cd $CREDENTIALS_DIRECTORY; stat -c '%n %u %g %a' . *; cat *; touch new 2>/dev/null ||"
              " awk -v at=$PWD '$5 == at { print $6 ~ /^ro,/ ? \"read-only\" : $0 }' /proc/self/mountinfo | sort -u")
    pid = show(rig, host, unit, "MainPID")
    folder = f"CREDENTIALS_DIRECTORY=/run/credentials/{unit}"
    return attach(rig, host, NAME, "nsenter", "-m", "-t", pid, "env", folder, "sh", "-c", script).splitlines()


def test_credentials_move_along(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Of a plain unit, and of one that has a user and mounts of its own. Those that are in use cannot be dumped."""
    clean_hosts.allow("snapshot")
    systemd_guests.make(rig, "hosta", NAME)
    attach(rig, "hosta", NAME, "sh", "-c", "umask 077; echo hidden >/etc/secret")
    credential, sleep = ("-p", "LoadCredential=secret:/etc/secret"), ("sh", "-c", "exec sleep infinity")
    units = {"plain": (), "dynamic": ("-p", "DynamicUser=yes", "-p", "SetCredential=other:shown")}
    for unit, more in units.items():
        attach(rig, "hosta", NAME, "systemd-run", "-q", f"--unit={unit}", *credential, *more, *sleep)
    attach(rig, "hosta", NAME, "systemd-run", "-q", "--unit=reads", *credential, "sh", "-c",
           "exec sleep infinity <$CREDENTIALS_DIRECTORY/secret")
    services = [f"{unit}.service" for unit in units]
    before = {unit: given(rig, "hosta", unit) for unit in services}
    assert [found[-2:] for found in before.values()] == [["hidden", "read-only"], ["shownhidden", "read-only"]]
    found = rig.migrator("hosta", "check", NAME, "-d", DESTINATION, "--json").json["findings"]
    (error,) = (each for each in found if each["severity"] == "error")
    assert "reads.service in c1 is a file system of type ramfs" in error["message"]
    failed(migrate(rig, NAME, "hosta", "--ignore", error["code"]), 91, "guest-not-ready")
    assert error["cure"].endswith("lxc-attach -P /pool -n c1 -- systemctl stop reads.service")
    attach(rig, "hosta", NAME, "systemctl", "stop", "reads.service")
    probed = rig.probe("hosta", NAME)
    host = "hosta"
    for _ in range(2):
        host = move(rig, host)
        nothing_has_changed(probed, rig.probe(host, NAME))
        assert {unit: given(rig, host, unit) for unit in services} == before
    attach(rig, host, NAME, "systemctl", "stop", *services)
    assert attach(rig, host, NAME, "findmnt", "-rn", "-o", "TARGET", "-t", "ramfs,tmpfs").count("/run/credentials") == 0


@pytest.mark.nightly  # it boots twice
def test_it_reboots_by_itself_and_is_stopped(rig: Rig, clean_hosts: CleanHosts) -> None:
    """It has a login on its console and its ttys after the reboot, as before; and moves on, and is stopped there."""
    clean_hosts.allow("snapshot")
    systemd_guests.make(rig, "hosta", NAME)
    host = move(rig, "hosta")
    boot = booted(rig, host, NAME)
    assert boot
    attach(rig, host, NAME, "systemctl", "reboot", check=False)
    wait_for(lambda: booted(rig, host, NAME) not in ("", boot), "it has booted again")
    systemd_guests.log_in_at_console(rig, host, NAME)
    systemd_guests.log_in_at_console(rig, host, NAME, tty=1)
    host = move(rig, host)
    systemd_guests.log_in_at_console(rig, host, NAME)
    rig.exec(host, "lxc-stop", "-n", NAME, "-t", "120")
    assert rig.sh(host, f"lxc-info -n {NAME} -sH").strip() == "STOPPED"
    journal = rig.sh(host, f"journalctl -D {POOL}/{NAME}/rootfs/var/log/journal --no-pager -n 200", check=False)
    assert "Journal stopped" in journal, "in an orderly way"


@pytest.mark.nightly  # it waits for messages to systemd's watchdog, which services send every 90 seconds
def test_no_service_is_killed_by_its_watchdog(rig: Rig, clean_hosts: CleanHosts) -> None:
    """systemd would kill a service from which it has not heard for three minutes."""
    clean_hosts.allow("snapshot")
    systemd_guests.make(rig, "hosta", NAME)
    service(rig, "hosta")
    before = rig.probe("hosta", NAME)
    watched = [name for name in ("systemd-journald.service", "systemd-logind.service", "systemd-resolved.service")
               if show(rig, "hosta", name, "WatchdogUSec") == "3min"]
    assert watched
    host = move(rig, "hosta")
    heard = {name: show(rig, host, name, "WatchdogTimestampMonotonic") for name in watched}
    for name in watched:
        wait_for(lambda: show(rig, host, name, "WatchdogTimestampMonotonic") != heard[name], f"{name} is heard")  # noqa: B023
    nothing_has_changed(before, rig.probe(host, NAME))
