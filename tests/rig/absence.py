# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that cannot be reached, is rebooted, or has lost its sshd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.rig import Rig, wait_for


def start_sshd(rig: Rig) -> None:
    def answers() -> bool:  # one that was killed may still be there when it is looked for
        rig.sh("hostb", "pgrep -x sshd >/dev/null || /usr/sbin/sshd", check=False)
        return rig.exec("hosta", "ssh", "hostb", "true", check=False).status == 0

    wait_for(answers, "sshd answers")


def reboot(rig: Rig, host: str) -> None:
    """What a reboot does: every process of containers and of migrator ends, memory is empty, what is on disk is kept.

    Then LXC starts the containers that want to be started at boot.
    """
    rig.sh(host, r"""
        for folder in /proc/[0-9]*; do
            name=$(cat "$folder/comm" 2>/dev/null) || continue
            case $name in criu* | lxc-* | migrator) kill -9 "${folder#/proc/}" ;; esac
        done
        for cgroup in /sys/fs/cgroup/lxc.payload.* /sys/fs/cgroup/lxc.monitor.*; do
            [ ! -e "$cgroup" ] || echo 1 >"$cgroup/cgroup.kill"
        done
        for try in $(seq 4000); do
            find /sys/fs/cgroup/lxc.* -depth -type d -exec rmdir {} + 2>/dev/null
            ls -d /sys/fs/cgroup/lxc.* >/dev/null 2>&1 || break
            sleep 0.05
        done
        umount -l /run/migrator/* 2>/dev/null
        rm -rf /run/migrator /run/lxc
        ip -o link show type veth | grep -v ' eth0@' | sed 's/^[0-9]*: //; s/@.*//' | while read -r link; do
            ip link delete "$link"
        done
        lxc-autostart; true""")
    assert "FROZEN" not in rig.sh(host, "lxc-ls -f")


@contextlib.contextmanager
def cut_off(rig: Rig) -> Iterator[None]:
    """hostb does not answer any more."""
    rig.sh("hostb", "ip link set eth0 down")
    try:
        yield
    finally:
        rig.sh("hostb", "ip link set eth0 up")
