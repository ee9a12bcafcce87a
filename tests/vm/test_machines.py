# SPDX-License-Identifier: GPL-2.0-or-later
"""The machines themselves: the rig's commands do there what they do in namespaces, and nothing is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from harness.rig import EXEC_LIMIT, LXC_HOSTS, PROGRAM, Rig, wait_for
from tests.rig.clean_hosts import CleanHosts


def call(rig: Rig, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `vagrant/rig` with bytes on its standard input."""
    environment = os.environ | {"MIGRATOR_RIG": rig.instance}
    return subprocess.run([PROGRAM, *arguments], input=given, capture_output=True, timeout=EXEC_LIMIT, check=False,
                          env=environment)


# --- exec and copy ---


@pytest.mark.parametrize("status", [0, 1, 125, 255])
def test_exec_answers_with_the_commands_status(rig: Rig, status: int) -> None:
    assert call(rig, "exec", "hosta", "--", "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize(
    ("command", "status"), [("no-such-command", 127), ("/etc/hosts", 126), ("/no/such/command", 127)]
)
def test_exec_of_what_cannot_run(rig: Rig, command: str, status: int) -> None:
    done = call(rig, "exec", "hosta", "--", command)
    assert done.returncode == status
    assert command in done.stderr.decode()


def test_exec_of_a_command_that_a_signal_ends(rig: Rig) -> None:
    assert call(rig, "exec", "hosta", "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9


def test_exec_passes_bytes_through(rig: Rig) -> None:
    data = os.urandom(3_000_001)
    assert call(rig, "exec", "hostb", "--", "cat", given=data).stdout == data


def test_exec_of_a_command_that_does_not_read_its_input(rig: Rig) -> None:
    data = os.urandom(3_000_001)
    assert call(rig, "exec", "hosta", "--", "sh", "-c", "exit 7", given=data).returncode == 7
    done = call(rig, "exec", "hosta", "--", "head", "-c", "3", given=data)
    assert (done.returncode, done.stdout) == (0, data[:3])


def test_exec_keeps_output_and_errors_apart(rig: Rig) -> None:
    done = call(rig, "exec", "hosta", "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_exec_hands_arguments_over_as_they_are(rig: Rig) -> None:
    words = ["--", "a b", "$HOME", "*", "", "ä", "-x"]
    assert call(rig, "exec", "hosta", "--", "printf", "%s\\n", *words).stdout.decode().splitlines() == words


def test_exec_does_not_wait_for_who_keeps_its_output_open(rig: Rig) -> None:
    """A container's monitor does, and writes to it later: that must not end it."""
    file = "/tmp/written-later"
    later = f"(until [ -e {file}.go ]; do sleep 0.1; done; echo later; echo done >{file}) & echo started"
    assert rig.sh("hosta", later) == "started\n"
    rig.sh("hosta", f"touch {file}.go")
    wait_for(lambda: rig.exec("hosta", "cat", file, check=False).stdout == "done\n", "it has written")
    rig.sh("hosta", f"rm {file} {file}.go")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_exec_passes_signals_on(rig: Rig, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 5' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    with rig.start("hosta", "sh", "-c", script) as running:
        wait_for(lambda: running.stdout == "ready\n", "the script runs")
        running.signal(number)
        assert running.wait().status == 5
        assert running.stdout == "ready\ncaught\n"


def test_exec_takes_its_command_along(rig: Rig) -> None:
    search = ("pgrep", "-f", "^sleep 12345")
    with rig.start("hosta", "sleep", "12345") as running:
        wait_for(lambda: rig.exec("hosta", *search, check=False).status == 0, "it runs")
        running.signal(signal.SIGKILL)
        wait_for(lambda: rig.exec("hosta", *search, check=False).status == 1, "it is gone")


def test_copy(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(100_000))
    file.chmod(0o750)
    assert call(rig, "copy", str(file), "hostb:/root").returncode == 0
    assert call(rig, "exec", "hostb", "--", "cat", "/root/file").stdout == file.read_bytes()
    assert rig.sh("hostb", "stat -c %a /root/file; rm /root/file") == "750\n"
    assert call(rig, "copy", str(file), "hostb:/no/such/folder/file").returncode == 6


# --- hosts ---


def test_status(rig: Rig) -> None:
    told = json.loads(call(rig, "status", "--json").stdout)
    assert (told["instance"], told["up"], told["hosts"]["hosta"]["running"]) == (rig.instance, True, True)
    assert told["nat_a"] == "none"


@pytest.mark.parametrize("host", LXC_HOSTS)
def test_machines_are_debian_13_as_it_is(rig: Rig, host: str) -> None:
    assert rig.sh(host, "hostname; cat /proc/1/comm; . /etc/os-release; echo $VERSION_ID") == f"{host}\nsystemd\n13\n"
    assert rig.sh(host, "systemctl is-system-running", check=False) == "running\n"
    assert rig.sh(host, "cat /sys/module/apparmor/parameters/enabled") == "Y\n"
    assert rig.sh(host, "findmnt -n -o FSTYPE /pool; findmnt -n -o FSTYPE /sys/fs/cgroup") == "btrfs\ncgroup2\n"
    assert "-cloud-amd64" in rig.sh(host, "uname -r")
    assert rig.sh(host, "dpkg-query -W -f '${db:Status-Status}' migrator") == "installed"
    assert rig.sh(host, "systemctl is-enabled migrator-resume") == "enabled\n"
    # The card for `rig exec` is none of the host's.
    assert set(rig.sh(host, "ls /sys/class/net").split()) == {"lo", "eth0", "lxcbr0"}


SECRETS = """set -e
cat /etc/machine-id /sys/class/net/eth0/address /etc/ssh/ssh_host_ed25519_key.pub /root/.ssh/id_ed25519.pub
head -c 16 /dev/urandom | base64
cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id
findmnt -n -o UUID /pool
"""


def test_machines_are_not_each_other(rig: Rig) -> None:
    """Both come from one that had booted, and would draw the same secrets."""
    told = [rig.sh(host, SECRETS).splitlines() for host in LXC_HOSTS]
    assert len(told[0]) == len(told[1]) == 8
    assert not set(told[0]) & set(told[1])


def test_hosts_reach_each_other(rig: Rig) -> None:
    for host, other in (("hosta", "hostb"), ("hostb", "hosta")):
        assert rig.sh(host, f"ssh -o BatchMode=yes {other} hostname") == f"{other}\n"
    for host, other in (("hosta", "client"), ("client", "hostb"), ("rendezvous", "hosta")):
        rig.reaches(host, other)


def test_guests_and_what_probe_tells(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick", ip="10.0.3.77")
    rig.guest("hostb", "r1", "redis", size=4)
    told = rig.probe("hosta", "c1")
    assert (told["running"], told["intact"]) == (True, True)
    assert rig.probe("hostb", "r1")["intact"]
    rig.reaches("client", "10.0.3.77")
    confined = "cat /proc/$(lxc-info -n c1 -p -H)/attr/current"
    assert "(enforce)" in rig.sh("hosta", confined)


def test_a_reset_machine_boots_as_what_it_was(rig: Rig) -> None:
    before = rig.sh("hostb", "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; ip -br link show eth0")
    boot = rig.read("hostb", "/proc/sys/kernel/random/boot_id")
    rig.sh("hostb", "echo kept >/root/kept; sync; touch /run/lost")
    rig.reset("hostb")
    assert rig.read("hostb", "/proc/sys/kernel/random/boot_id") != boot
    assert rig.sh("hostb", "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; ip -br link show eth0") == before
    assert rig.sh("hostb", "cat /root/kept; rm /root/kept; ls /run/lost 2>&1 | wc -l; findmnt -n -o TARGET /pool") == (
        "kept\n1\n/pool\n"
    )
    assert rig.sh("hosta", "ssh -o BatchMode=yes hostb hostname") == "hostb\n"
    assert json.loads(call(rig, "status", "--json").stdout)["up"]
