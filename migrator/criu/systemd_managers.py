# SPDX-License-Identifier: GPL-2.0-or-later
"""Have each systemd of a restored container, PID 1 and one for each user logged in, identify its processes anew.

Since version 257, systemd identifies a process not only by its id but also by the inode number of its pidfd
(pidref_equal in src/basic/pidref.c), which the kernel never uses twice in one boot (fs/pidfs.c, since 6.9). So a
restore cannot give a process the number that it had. After a move, systemd therefore took every service for some other
process: it ignored their messages (READY=1, FDSTORE=1), including WATCHDOG=1, and after three minutes it killed
journald, logind and resolved. Reloading its configuration makes systemd forget these numbers, and SIGHUP makes it
reload (systemd(1), "Signals"). The signal is sent before any task runs, so it is pending when systemd does.

`at_restore` imports this module while the container stands still, so it imports little itself.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD = "systemd-managers"  # sent with the images: a line for each systemd, with its process id in the container
RECORD_LIMIT = 16 << 20  # bytes
NAME = b"systemd"
PROC = "/proc"
_SIGHUP = 1  # signal(7)
_SIGHUP_BLOCKED = 1 << _SIGHUP - 1  # in SigBlk of proc_pid_status(5)


def record(pids: Iterable[int]) -> str:
    """The record of the systemds among these processes; empty if the inodes of pidfds mean nothing on this host."""
    if not numbered():
        return ""
    found = (_status(pid) for pid in pids)
    return "".join(f"{status[b'NSpid'].split()[-1].decode()}\n" for status in found if _is_manager(status))


def reload(text: str, pids: Iterable[int]) -> None:
    """Have the recorded ones reload; `pids` are the processes of the restored container.

    The record comes from another host, so only a process that is a systemd by our own judgement gets the signal.
    """
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
    """Whether this kernel gives each pidfd an inode: pidfds are then on a file system other than that of eventfds."""
    pidfd, other = os.pidfd_open(os.getpid()), os.eventfd(0)
    try:
        return os.fstat(pidfd).st_dev != os.fstat(other).st_dev
    finally:
        os.close(pidfd)
        os.close(other)


def _is_manager(status: dict[bytes, bytes]) -> bool:
    """Whether this is a systemd, judging by its name, and by SIGHUP being blocked.

    Any process may have that name; but SIGHUP does not kill one that has it blocked, as systemd does, which reads its
    signals from a descriptor.
    """
    return status.get(b"Name") == NAME and bool(int(status.get(b"SigBlk", b"0"), 16) & _SIGHUP_BLOCKED)


def _opened(pid: int) -> int:
    """A pidfd of the process; -1 if it has gone."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _status(pid: int) -> dict[bytes, bytes]:
    """The fields of /proc/PID/status; none if the process has gone."""
    try:
        with open(f"{PROC}/{pid}/status", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(b":") for line in lines)}
