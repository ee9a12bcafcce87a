# SPDX-License-Identifier: GPL-2.0-or-later
"""The rig's hosts: each a process tree in namespaces of its own, on its own root, in its own cgroup."""

import os
import time
from pathlib import Path

from riglib import paths
from riglib.enter import ALL_NAMESPACES, check, libc
from riglib.errors import RigError
from riglib.run import inside
from riglib.state import write

LXC_HOSTS = ("hosta", "hostb")
PLAIN = ("client", "rendezvous", "nata", "natb")
HIDDEN = ("nata2", "natb2", "switch")
"""Not for users: the second routers of a double NAT, and the network between all hosts."""
HOSTS = LXC_HOSTS + PLAIN
POOL_SIZE = "8G"


def start(host: str, root: str, guest_root: str, *, disk: str = "", machine: bool = False) -> None:
    """Start one host's boot; `wait_booted` waits for its end.

    `disk`: the device for containers is left empty. `machine`: a virtual machine runs in it, which has its own.
    """
    cgroup = Path(paths.cgroup(host))
    cgroup.mkdir(parents=True, exist_ok=True)
    directory = Path(paths.LIB, host)
    directory.mkdir(parents=True, exist_ok=True)
    command = ["sh", f"{paths.VAGRANT}/riglib/boot.sh", host, root, str(directory)]
    if host in LXC_HOSTS and not machine:
        command += [POOL_SIZE, guest_root, disk]
    child = os.fork()
    if child == 0:
        become(cgroup, command, directory, host)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise RigError(f"cannot make the namespaces of {host}", hint=f"cat {directory}/boot.log")


def become(cgroup: Path, command: list[str], directory: Path, host: str) -> None:
    """In a child: enter cgroup and namespaces, start the host's init and record its pid. Never returns.

    Until it ends the child holds the rig's lock, which it inherited: nobody cleans up between our fork and our entry
    into the cgroup.
    """
    try:
        (cgroup / "cgroup.procs").write_text("0", encoding="ascii")
        log = os.open(directory / "boot.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.setsid()
        check(libc.unshare(ALL_NAMESPACES))
        init = os.fork()
        if init == 0:
            null = os.open("/dev/null", os.O_RDONLY)
            for source, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            os.execvpe(command[0], command, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"})  # noqa: S606
        write(Path(paths.RUN, f"{host}.pid"), f"{init} {paths.start_time(init)}\n")
        os._exit(0)
    except OSError as error:
        os.write(2, f"rig: {host}: {error}\n".encode())
    finally:
        os._exit(1)


def wait_booted(host: str, *, timeout: float = 100) -> None:
    """Wait until a host has its own root and its init."""
    deadline = time.monotonic() + timeout
    while True:
        process = Path("/proc", str(paths.host_pid(host)))
        if (process / "comm").read_text(encoding="utf-8") == "busybox\n" and (process / "root/run/rig-booted").exists():
            return
        if time.monotonic() > deadline:
            raise RigError(f"{host} does not boot", hint=f"cat {paths.LIB}/{host}/boot.log")
        time.sleep(0.005)


def introduce(addresses: dict[str, list[str]], aliases: dict[str, str]) -> None:
    """Let root on the LXC hosts log in to each other, with known host keys, and give every host all names."""
    called = {host: [host, aliases[host]] if host in aliases else [host] for host in HOSTS}
    names = "127.0.0.1 localhost\n::1 localhost\n"
    names += "".join(f"{address} {' '.join(called[host])}\n" for host in addresses for address in addresses[host])
    for host in HOSTS:
        inside(host, ["tee", "/etc/hosts"], text=names)
    host_keys = {host: inside(host, ["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]) for host in LXC_HOSTS}
    for host, other in zip(LXC_HOSTS, reversed(LXC_HOSTS), strict=True):
        inside(host, ["tee", "/root/.ssh/authorized_keys"], text=inside(other, ["cat", "/root/.ssh/id_ed25519.pub"]))
        known = ",".join([*called[other], *addresses.get(other, [])])
        inside(host, ["tee", "/root/.ssh/known_hosts"], text=f"{known} {host_keys[other]}")
