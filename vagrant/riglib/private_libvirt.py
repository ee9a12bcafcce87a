# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirt of its own, for virtual machines that must leave nothing behind, and what runs beside it.

It lives in namespaces whose first process (libvirt.sh) ends with the process that has started it, even if that is
killed; and with it all machines, bridges and firewall rules.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from riglib import paths
from riglib.errors import RigError
from riglib.run import run

SOCKET = "run/libvirt/libvirt-sock"
NAMESPACES = ("--mount", "--net", "--pid")


class PrivateLibvirt:
    """A libvirt that runs; `pid` is that of its namespaces' first process."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder = folder
        self.pid = pid

    def run(self, command: Sequence[str], *, timeout: float = 60, check: bool = True,
            environment: Mapping[str, str] | None = None) -> str:
        """Run a program beside it, as `riglib.run.run` does; it ends with the namespaces at the latest."""
        enter = ["nsenter", f"--target={self.pid}", *NAMESPACES]
        return run([*enter, *command], timeout=timeout, check=check, environment=environment)


@contextlib.contextmanager
def started(folder: Path, *, timeout: float = 60) -> Iterator[PrivateLibvirt]:
    """Start a libvirt whose large files go to `folder`; at the end that is removed, and all that runs is ended.

    What a killed one has left in `folder` is removed first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # The namespaces' first process is the only child of unshare, whose end it does not outlive.
    tied = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
    log = (folder / "boot.log").open("wb")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        with log:
            outer = subprocess.Popen([*tied, "sh", f"{paths.VAGRANT}/riglib/libvirt.sh", str(folder)],
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        stack.callback(end, outer)
        yield PrivateLibvirt(folder, wait_until_up(outer, folder, timeout))


def wait_until_up(outer: "subprocess.Popen[bytes]", folder: Path, timeout: float) -> int:
    """Wait until libvirtd answers; return the pid of the namespaces' first process."""
    deadline = time.monotonic() + timeout
    while outer.poll() is None and time.monotonic() < deadline:
        for pid in first_process(outer):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as there:
                there.connect(f"/proc/{pid}/root/{SOCKET}")
                return pid
        time.sleep(0.1)
    said = [f"{file.name}: {line}" for file in (folder / "boot.log", folder / "log/libvirtd") if file.exists()
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]]
    raise RigError(f"libvirtd does not start: {' | '.join(said)}")


def first_process(outer: "subprocess.Popen[bytes]") -> list[int]:
    """Return the pid of the namespaces' first process; none if there is none (yet, or any more)."""
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(pid) for pid in children.split()]


def end(outer: "subprocess.Popen[bytes]") -> None:
    """End all that runs in the namespaces: when their first process is gone, the kernel has ended the others."""
    while outer.poll() is None:
        for pid in first_process(outer) or [outer.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            outer.wait(1)
