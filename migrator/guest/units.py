# SPDX-License-Identifier: GPL-2.0-or-later
"""Units of a container's systemd: restarted with the drop-in that keeps them from what CRIU cannot dump."""

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
LIMIT = 120.0  # seconds that systemd may take to restart them


def restart(container: lxc.Container, units: Sequence[str], *, for_good: bool = False) -> None:
    """The drop-in comes first, as a unit that is restarted without would be as it was. Raises GuestNotReady."""
    places = [drop_in.UNTIL_BOOT] if units else []
    init = Process.of(container.init_pid)
    _act(container, *(("drop-in", place) for place in [*places, *([drop_in.FOR_GOOD] if for_good else [])]))
    _systemctl(container, init, "daemon-reload")
    if units:
        _systemctl(container, init, "restart", "--", *units)


def undo(container: lxc.Container) -> None:
    """What a dump that was killed has left is put back, too. Raises GuestNotReady."""
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
    """As root in the container, confined as it is.

    lxc-attach enters whatever the monitor names, and believes whoever answers for it: so it is asked for right after
    the monitor was seen to be root's, and to be that of the same start, as another user may take the place of one that
    has ended.
    """
    try:
        if init is None or Process.of(container.init_pid) != init:
            raise GuestNotReady(name=container.name, target=f"systemctl {arguments[0]}",
                                reason="it has been started anew meanwhile")
        run(["lxc-attach", "-P", container.lxcpath, "-n", container.name, "--clear-env", "--",
             "systemctl", *arguments], limit=LIMIT, stdout=subprocess.DEVNULL)
    except (CommandFailed, CommandTimeout, ContainerNotRunning) as error:
        raise GuestNotReady(name=container.name, target=f"systemctl {arguments[0]}", reason=error) from error
