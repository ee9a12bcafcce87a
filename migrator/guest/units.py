# SPDX-License-Identifier: GPL-2.0-or-later
"""Restart units of a container's systemd, with a drop-in that denies them what CRIU cannot dump (`drop_in`)."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from migrator.base.process_id import Process
from migrator.base.run import run
from migrator.errors.containers import ContainerNotRunning
from migrator.errors.memory import GuestNotReady
from migrator.errors.this_host import CommandFailed, CommandTimeout
from migrator.guest import acts, drop_in, localtime
from migrator.guest.acts import Act
from migrator.host import lxc
from migrator.host.proc import link

LOGIND = "systemd-logind.service"
LIMIT = 120.0  # seconds that one systemctl may take


def restart(container: lxc.Container, units: Sequence[str], *, for_good: bool = False) -> None:
    """Install the drop-in, have systemd read it, and restart these units.

    `for_good` also installs it on the container's disk. Raises GuestNotReady.
    """
    places = [drop_in.UNTIL_BOOT] if units else []
    init = Process.of(container.init_pid)
    _act(container, *(("drop-in", place) for place in [*places, *([drop_in.FOR_GOOD] if for_good else [])]))
    _systemctl(container, init, "daemon-reload")
    if units:
        _systemctl(container, init, "restart", "--", *units)


def undo(container: lxc.Container) -> None:
    """Remove the drop-ins, and put back /etc/localtime if a dump that was killed has left a copy in its place.

    Raises GuestNotReady.
    """
    init = Process.of(container.init_pid)
    _act(container, ("no-drop-in", drop_in.UNTIL_BOOT), ("no-drop-in", drop_in.FOR_GOOD), ("link", localtime.PATH))
    _systemctl(container, init, "daemon-reload")


def _act(container: lxc.Container, *steps: tuple[str, str]) -> None:
    init = container.init_pid
    namespace = link(f"/proc/{init}/ns/mnt")
    try:
        for act, trouble in acts.carry_out(init, [Act(kind, init, namespace, path) for kind, path in steps]):
            if trouble:
                raise GuestNotReady(name=container.name, target=act.target, reason=trouble)
    except (CommandFailed, CommandTimeout) as error:
        raise GuestNotReady(name=container.name, target=steps[0][1], reason=error) from error


def _systemctl(container: lxc.Container, init: Process | None, *arguments: str) -> None:
    """Run systemctl as root of the container, confined as the container is.

    lxc-attach enters whatever process the monitor names, and believes anybody who answers in the monitor's place. When
    a monitor has ended, another user may take its place. So right before, we make sure that root's monitor answers and
    that it is still the same start of the container.
    """
    try:
        if init is None or Process.of(container.init_pid) != init:
            raise GuestNotReady(name=container.name, target=f"systemctl {arguments[0]}",
                                reason="it has been restarted meanwhile")
        run(["lxc-attach", "-P", container.lxcpath, "-n", container.name, "--clear-env", "--",
             "systemctl", *arguments], limit=LIMIT, stdout=subprocess.DEVNULL)
    except (CommandFailed, CommandTimeout, ContainerNotRunning) as error:
        raise GuestNotReady(name=container.name, target=f"systemctl {arguments[0]}", reason=error) from error
