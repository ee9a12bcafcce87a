# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with systemd whose units are configured so that the guest can be moved."""

from __future__ import annotations

from harness.rig import LXC_HOSTS, Rig

ADDRESS = "10.0.3.101"
# Mounted read-only into the guest, on both hosts, and with the same modification time on both: otherwise systemd would
# ask for a daemon-reload after a move.
UNITS = "/etc/lxc/movable-units"
DROP_IN = """\
[Service]
ProtectHostname=no
PrivateUsers=no
PrivateIPC=no
ImportCredential=
"""


def make(rig: Rig, host: str, name: str, kind: str = "systemd") -> None:
    """Make and start such a guest, with address ADDRESS."""
    for each in LXC_HOSTS:
        rig.exec(each, "mkdir", "-p", UNITS)
        rig.put(each, f"{UNITS}/zz-movable.conf", DROP_IN)
        rig.exec(each, "touch", "-d", "2026-01-01", f"{UNITS}/zz-movable.conf", UNITS)
    line = f"lxc.mount.entry = {UNITS} etc/systemd/system/service.d none bind,ro,create=dir 0 0"
    rig.guest(host, name, kind, unprivileged=True, ip=ADDRESS, config=line)


def attach(rig: Rig, host: str, name: str, *command: str, check: bool = True) -> str:
    """The output of a program that is run in the guest."""
    return rig.exec(host, "lxc-attach", "-n", name, "--clear-env", "--", *command, check=check).stdout


# The id first: a guest that shuts down unmounts its own, and the host's is seen in its place. While it answers that it
# runs, that has not happened yet.
_BOOTED = """
boot=$(cat /proc/sys/kernel/random/boot_id)
case $(systemctl is-system-running) in running | degraded) echo "$boot" ;; esac
"""


def booted(rig: Rig, host: str, name: str) -> str:
    """The id of the guest's boot once it has finished booting; "" before, and while it shuts down."""
    return attach(rig, host, name, "sh", "-c", _BOOTED, check=False).strip()


# At the console of a container, or a tty of its, wait for each prompt and then type what belongs to it.
_LOG_IN = """
import os, pty, select, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("lxc-console", ["lxc-console", "-n", sys.argv[1], "-t", sys.argv[3]])
seen = b""
# At last another login appears: what has not been read when lxc-console ends is lost, and so would be the exit.
for said, typed in ((b"login: ", b"root\\n"), (b"Password: ", b"rig\\n"), (sys.argv[2].encode(), b"exit\\n"),
                    (b"login: ", b"")):
    while said not in seen:
        if select.select([terminal], [], [], 2)[0]:
            seen += os.read(terminal, 4096)
        elif said == b"login: ":  # what is typed while lxc-console starts is lost, so try again
            os.write(terminal, b"\\n")
    seen = b""
    os.write(terminal, typed)
os.kill(pid, 15)
"""


def log_in_at_console(rig: Rig, host: str, name: str, tty: int = 0) -> None:
    """Log in as root with the password, at the console or at that tty; the test fails if no shell answers."""
    rig.exec(host, "timeout", "-k", "1", "120", "python3", "-c", _LOG_IN, name, f"root@{name}:~#", str(tty))
