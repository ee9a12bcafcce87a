# SPDX-License-Identifier: GPL-2.0-or-later
"""The systemds of a container, PID 1 and one for each user who is logged in: told to look at their processes anew.

From 257 on a systemd knows a process not only by its id, but also by the inode number of its pidfd (pidref_equal in its
src/basic/pidref.c), which the kernel gives once in a boot and never again (fs/pidfs.c, from 6.9 on). No restore can
give a process the one that it had. So after a move systemd took every service for somebody else: what they said to it
was ignored (READY=1, FDSTORE=1), WATCHDOG=1 among it, and after three minutes it killed journald, logind and resolved.
Reloading its configuration makes it forget these numbers. SIGHUP does that (systemd(1), "Signals"), and is waiting for
it when it runs.

`at_restore` imports it while a container stands still.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD = "systemd-managers"  # travels beside the images: the ids of their processes in the container, a line each
RECORD_LIMIT = 16 << 20  # bytes
NAME = b"systemd"
PROC = "/proc"
_SIGHUP = 1  # signal(7)
_SIGHUP_BLOCKED = 1 << _SIGHUP - 1  # in SigBlk of proc_pid_status(5)


def record(pids: Iterable[int]) -> str:
    """Those among these processes; none where this host's kernel does not number its pidfds."""
    if not numbered():
        return ""
    found = (_status(pid) for pid in pids)
    return "".join(f"{status[b'NSpid'].split()[-1].decode()}\n" for status in found if _is_manager(status))


def reload(text: str, pids: Iterable[int]) -> None:
    """Tell those of a record, which comes from another host; `pids` are the processes of the restored container."""
    wanted = {line.encode() for line in text.split("\n") if line}
    for pid in pids if wanted else ():
        pidfd = _opened(pid)
        if pidfd < 0:
            continue
        try:
            status = _status(pid)
            if _is_manager(status) and status[b"NSpid"].split()[-1] in wanted:
                import signal

                signal.pidfd_send_signal(pidfd, _SIGHUP)
        finally:
            os.close(pidfd)


def numbered() -> bool:
    """Whether pidfds have inodes of their own here, on a file system of theirs, unlike other anonymous files."""
    pidfd, other = os.pidfd_open(os.getpid()), os.eventfd(0)
    try:
        return os.fstat(pidfd).st_dev != os.fstat(other).st_dev
    finally:
        os.close(pidfd)
        os.close(other)


def _is_manager(status: dict[bytes, bytes]) -> bool:
    """By its name, which anything may have. But what reads its signals as systemd does is not ended by this one."""
    return status.get(b"Name") == NAME and bool(int(status.get(b"SigBlk", b"0"), 16) & _SIGHUP_BLOCKED)


def _opened(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _status(pid: int) -> dict[bytes, bytes]:
    """What /proc/PID/status has of a process; nothing of one that has gone."""
    try:
        with open(f"{PROC}/{pid}/status", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(b":") for line in lines)}
