# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: PTH123
"""Runs a command inside a host.

Tests do this hundreds of times, so it imports next to nothing: pathlib, or signal with its enums, would cost as much as
everything else together.
"""

import _signal  # type: ignore[import-not-found]
import ctypes
import errno
import os
import sys

from riglib import paths
from riglib.errors import RigError

EXEC_FAILED = 125
"""`rig exec` itself failed; 126 and 127 are a command that cannot be run or found, as with env(1)."""

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
ALL_NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
PR_SET_PDEATHSIG = 1

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "LANG": "C.UTF-8",
}
PASSED_ON = ("TERM", "NO_COLOR", "COLUMNS", "LINES")
FORWARDED = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2)

# Python 3.11 has neither os.setns nor os.unshare.
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    """Raise the error of a C library call that returned -1."""
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main_exec(arguments: list[str]) -> int:
    """Run `rig exec HOST -- COMMAND...`; its exit status is the command's, or 128+N if signal N ended it."""
    host, *command = arguments
    if command[:1] == ["--"]:
        del command[0]
    if not command:
        print("usage: rig exec HOST -- COMMAND...", file=sys.stderr)
        return EXEC_FAILED
    try:
        return execute(host, command)
    except RigError as error:
        print(f"rig: {error}" + (f" (cure: {error.hint})" if error.hint else ""), file=sys.stderr)
    except OSError as error:
        print(f"rig: cannot enter {host}: {error.strerror}", file=sys.stderr)
    return EXEC_FAILED


def execute(host: str, command: list[str]) -> int:
    """Run a command as a child in all namespaces of a host, pass signals on to it, return its exit status."""
    pidfd = os.pidfd_open(paths.host_pid(host))
    machine = paths.machine_pid(host)
    # The host's cgroup first: what is started here must end with the host, and LXC expects its host's own subtree.
    with open(f"{paths.cgroup(host)}/init.scope/cgroup.procs", "w", encoding="ascii") as procs:
        procs.write("0")
    if machine:
        from riglib import machine_exec

        check(libc.setns(pidfd, CLONE_NEWNET))
        os.close(pidfd)
        return machine_exec.execute(command)
    environment = ENVIRONMENT | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    check(libc.setns(pidfd, ALL_NAMESPACES))
    os.close(pidfd)
    child = 0

    def forward(number: int, _frame: object) -> None:
        try:  # noqa: SIM105  # contextlib is one more import
            os.kill(child, number)
        except ProcessLookupError:
            pass  # it has just ended

    _signal.pthread_sigmask(_signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child == 0:
        run_child(command, environment)
    for number in FORWARDED:
        _signal.signal(number, forward)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, FORWARDED)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def run_child(command: list[str], environment: dict[str, str]) -> None:
    """Become the command; never returns."""
    try:
        libc.prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # a pending one is the command's, not a KeyboardInterrupt
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, FORWARDED)
        os.chdir("/root")
        # os.execvpe would import a module here, from the host's file system.
        folders = [""] if "/" in command[0] else [f"{folder}/" for folder in environment["PATH"].split(":")]
        problem = errno.ENOENT
        for folder in folders:
            try:
                os.execve(f"{folder}{command[0]}", command, environment)  # noqa: S606
            except OSError as error:
                if error.errno not in (None, errno.ENOENT):
                    problem = error.errno
        os.write(2, f"rig: {command[0]}: {os.strerror(problem)}\n".encode())
        os._exit(127 if problem == errno.ENOENT else 126)
    finally:
        os._exit(EXEC_FAILED)
