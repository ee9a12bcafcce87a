# SPDX-License-Identifier: GPL-2.0-or-later
"""Systemd guests that can move: what their units are configured with, and what is done in them just before a freeze."""

from __future__ import annotations

from harness.rig import LXC_HOSTS, Rig

ADDRESS = "10.0.3.101"
# Mounted read-only into the guest from both hosts. A systemd that finds another time of change on one of them would ask
# for a daemon-reload.
UNITS = "/etc/lxc/movable-units"
DROP_IN = """\
[Service]
ProtectHostname=no
PrivateUsers=no
PrivateIPC=no
ImportCredential=
"""
# What no configuration of its units keeps from it: in the mount namespace of a service the empty /tmp that only this
# one has (PrivateTmp=disconnected), and in its root the link /etc/localtime, which systemd watches.
_LIVE = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)

def check(answer):
    if answer:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def inside(pid, what):
    child = os.fork()
    if child == 0:
        namespaces = [(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), kind)
                      for name, kind in (("user", 0x10000000), ("mnt", 0x20000))]
        for namespace, kind in namespaces:
            os.setns(namespace, kind)
        os.setgid(0)
        os.setuid(0)
        what()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, pid

def mounts(pid):
    for line in open(f"/proc/{pid}/mountinfo"):
        left, right = line.split(" - ")
        yield left.split()[2], left.split()[4], right.split()[0]

def new_tmp(target):
    mode = os.stat(target).st_mode & 0o7777
    assert not os.listdir(target)
    check(libc.umount2(target.encode(), 0))
    check(libc.mount(b"tmpfs", target.encode(), b"tmpfs", ctypes.c_ulong(6), f"mode={mode:o}".encode()))

def localtime():
    if os.path.islink("/etc/localtime"):
        data = open("/etc/localtime", "rb").read()
        with open("/etc/localtime.new", "xb") as file:
            file.write(data)
        os.rename("/etc/localtime.new", "/etc/localtime")

init = int(subprocess.check_output(["lxc-info", "-n", sys.argv[1], "-pH"]))
inside(init, localtime)
services = {}
for folder, _, _ in os.walk(f"/sys/fs/cgroup/lxc.payload.{sys.argv[1]}"):
    for pid in open(f"{folder}/cgroup.procs").read().split():
        services.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), pid)
own = services.pop(os.readlink(f"/proc/{init}/ns/mnt"))
whole = {device for pid in [own, *services.values()] for device, target, _ in mounts(pid)
         if target not in ("/tmp", "/var/tmp") or pid == own}
for pid in services.values():
    for device, target, kind in list(mounts(pid)):
        if kind == "tmpfs" and target in ("/tmp", "/var/tmp") and device not in whole:
            inside(pid, lambda: new_tmp(target))
"""


def make(rig: Rig, host: str, name: str) -> None:
    """A guest whose units are configured so that it can move."""
    for each in LXC_HOSTS:
        rig.exec(each, "mkdir", "-p", UNITS)
        rig.put(each, f"{UNITS}/zz-movable.conf", DROP_IN)
        rig.exec(each, "touch", "-d", "2026-01-01", f"{UNITS}/zz-movable.conf", UNITS)
    line = f"lxc.mount.entry = {UNITS} etc/systemd/system/service.d none bind,ro,create=dir 0 0"
    rig.guest(host, name, "systemd", unprivileged=True, ip=ADDRESS, config=line)


def prepare(rig: Rig, host: str, name: str) -> None:
    """To be done just before each move: what is started later has its mounts again."""
    rig.exec(host, "python3", "-c", _LIVE, name)


def attach(rig: Rig, host: str, name: str, *command: str, check: bool = True) -> str:
    """What a program prints in the guest."""
    return rig.exec(host, "lxc-attach", "-n", name, "--clear-env", "--", *command, check=check).stdout


# Sits at a container's console, types each line when what comes before it has been read, and what it waits for last.
_LOG_IN = """
import os, pty, select, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("lxc-console", ["lxc-console", "-n", sys.argv[1], "-t", "0"])
seen = b""
for said, typed in ((b"login: ", b"root\\n"), (b"Password: ", b"rig\\n"), (sys.argv[2].encode(), b"exit\\n")):
    while said not in seen:
        if select.select([terminal], [], [], 2)[0]:
            seen += os.read(terminal, 4096)
        elif said == b"login: ":  # what is typed while lxc-console still starts is lost
            os.write(terminal, b"\\n")
    seen = b""
    os.write(terminal, typed)
os.kill(pid, 15)
"""


def log_in_at_console(rig: Rig, host: str, name: str) -> None:
    """As root, by its password; the test fails where no shell answers."""
    rig.exec(host, "timeout", "-k", "1", "120", "python3", "-c", _LOG_IN, name, f"root@{name}:~#")
