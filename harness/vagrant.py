# SPDX-License-Identifier: GPL-2.0-or-later
"""vagrant/Vagrantfile booted, with a libvirt and a box of its own: see riglib/private_libvirt.py and vagrant_box.py."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.rig import VAGRANT

FOLDER = VAGRANT.parent / "build/vagrant"
MEMORY = 1024  # MiB for each machine
# Seconds. Emulated machines are ten times slower, and two of them share what there is: these end what hangs.
BOOT, COMMAND = 1500, 600

sys.path.append(str(VAGRANT))
private_libvirt: Any = importlib.import_module("riglib.private_libvirt")
vagrant_box: Any = importlib.import_module("riglib.vagrant_box")


class Machines:
    """Machines of the Vagrantfile, for as long as `booted` keeps their libvirt running."""

    def __init__(self, libvirt: Any) -> None:
        self.libvirt = libvirt
        self._environment = {
            "HOME": str(FOLDER), "VAGRANT_HOME": str(FOLDER / "home"), "VAGRANT_DOTFILE_PATH": str(FOLDER / "machines"),
            "VAGRANT_CWD": str(VAGRANT), "VAGRANT_DEFAULT_PROVIDER": "libvirt", "VAGRANT_CHECKPOINT_DISABLE": "1",
            "RIG_BOX": "made-here", "RIG_MEMORY": str(MEMORY),
        }

    def vagrant(self, *words: str, timeout: float = COMMAND) -> str:
        """Run a command of Vagrant's and return what it prints; raises CommandFailed."""
        told: str = self.libvirt.run(["vagrant", *words, "--no-color"], timeout=timeout, environment=self._environment)
        return told

    def up(self, *names: str) -> str:
        """Boot and provision these machines, and prepare for logging in to them."""
        self.vagrant("box", "add", "--name", "made-here", str(vagrant_box.ensure()))
        told = self.vagrant("up", *names, timeout=BOOT)
        (FOLDER / "ssh_config").write_text(self.vagrant("ssh-config", *names))
        return told

    def root(self, name: str, command: str, *, timeout: float = COMMAND) -> str:
        """Type a line as root on a machine and return what it prints; raises CommandFailed."""
        words = ["ssh", "-F", str(FOLDER / "ssh_config"), name, "sudo", "sh", "-euc", _quoted(command)]
        told: str = self.libvirt.run(words, timeout=timeout)
        return told


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@contextlib.contextmanager
def booted(*names: str) -> Iterator[Machines]:
    """These machines, up and provisioned; nothing is left of them at the end."""
    with private_libvirt.started(FOLDER) as libvirt:
        machines = Machines(libvirt)
        machines.up(*names)
        yield machines


def living_in(namespace: Path | str) -> Sequence[str]:
    """The processes in a PID namespace, as /proc/PID/ns/pid names it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "ns/pid").readlink()) == str(namespace):
                found.append(f"{process.name} {(process / 'comm').read_text().strip()}")
    return found
