# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of vagrant/rig, without a rig."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from harness.rig import VAGRANT


def rig(*arguments: str, instance: str = "nobody") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [VAGRANT / "rig", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | {"MIGRATOR_RIG": instance},
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "usage"),
        (("fly",), 2, "invalid choice"),
        (("up", "--mbit", "fast"), 2, "invalid int"),
        (("up", "--hosts", "mine"), 2, "invalid choice"),
        (("up", "--mbit", "0"), 3, "out of range"),
        (("up", "--nat-a", "cone"), 3, "unknown NAT type"),
        (("up", "--vm", "--hosts", "readme"), 3, "exclude each other"),
        (("up", "--cpu-b", "Haswell"), 3, "for virtual machines"),
        (("up", "--kernel-b", "trixie-backports"), 3, "for virtual machines"),
        (("guest", "hosta", "c1", "toaster"), 2, "invalid choice"),
        (("guest", "hosta", "../x", "tick"), 3, "no name for a container"),
        (("copy", "/etc/hostname", "hosta"), 3, "not HOST:PATH"),
        (("copy", "/nonexistent", "hosta:/x"), 3, "no file"),
        (("copy", "/etc/hostname", "hosta:/x"), 4, "cure: vagrant/rig up"),
        (("exec", "hosta"), 125, "usage"),
        (("exec", "hosta", "--"), 125, "usage"),
        (("exec", "hosta", "--", "true"), 125, "cure: vagrant/rig up"),
        (("exec", "../hosta", "--", "true"), 125, "cure: vagrant/rig up"),
        (("reset", "hosta"), 3, "no virtual machine"),
        (("status",), 4, ""),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], status: int, said: str) -> None:
    done = rig(*arguments)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["", "up", "exec", "copy", "guest", "probe", "status", "reset", "down"])
def test_help(command: str) -> None:
    done = rig(*([command] if command else []), "--help")
    assert done.returncode == 0
    assert "usage: rig" in done.stdout


@pytest.mark.parametrize("instance", ["../x", "a b", "x" * 33, "ü"])
def test_instance_names(instance: str) -> None:
    done = rig("status", instance=instance)
    assert done.returncode == 1
    assert "MIGRATOR_RIG" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_of_nothing() -> None:
    told = json.loads(rig("status", "--json").stdout)
    assert told["up"] is False
    assert not any(host["running"] for host in told["hosts"].values())


def test_down_of_nothing_is_no_error() -> None:
    assert rig("down").returncode == 0


def test_provision_tells_what_a_host_needs() -> None:
    done = subprocess.run(["sh", VAGRANT / "provision.sh", "list"], capture_output=True, text=True, check=True)
    listed = done.stdout.split()
    assert listed == sorted(set(listed))
    assert {"criu", "lxc", "btrfs-progs", "openssh-server", "python3-lxc", "wireguard-go"} <= set(listed)
