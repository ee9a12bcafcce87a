# SPDX-License-Identifier: GPL-2.0-or-later
"""The only way the rig starts programs: argument lists, a time limit, failures that can be pasted into a shell."""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

from riglib import paths
from riglib.errors import CommandFailed

MINIMAL = ("PATH", "HOME", "LANG", "TERM", "TMPDIR", "MIGRATOR_RIG")


def run(
    command: Sequence[str],
    *,
    timeout: float = 60,
    text: str = "",
    file: str = "",
    check: bool = True,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> str:
    """Run a program, give it `text` (or what is in `file`) on standard input, return its output.

    Raises CommandFailed unless it exits 0, or `check` is off.
    """
    kept = {name: os.environ[name] for name in MINIMAL if name in os.environ}
    kept["LC_ALL"] = "C.UTF-8"
    pasted = shlex.join(command)
    try:
        with contextlib.ExitStack() as stack:
            given = {"stdin": stack.enter_context(open(file, "rb"))} if file else {"input": text.encode()}
            done = subprocess.run(
                list(command),
                **given,
                capture_output=True,
                timeout=timeout,
                env=kept | dict(environment or {}),
                pass_fds=pass_fds,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"no end after {timeout:g} s: {pasted}") from None
    except OSError as error:
        raise CommandFailed(f"{error.strerror}: {pasted}", hint=f"install {command[0]}") from None
    if check and done.returncode:
        told = (done.stderr.strip() or done.stdout.strip()).decode("utf-8", "replace").splitlines()
        raise CommandFailed(f"exit status {done.returncode}: {pasted}: {' | '.join(told[-3:])}")
    return done.stdout.decode("utf-8", "replace")


def inside(host: str, command: Sequence[str], *, timeout: float = 60, text: str = "", file: str = "", check: bool = True) -> str:
    """Run a program inside a host, by the same way that `rig exec` takes."""
    rig = [sys.executable, "-S", f"{paths.VAGRANT}/rig", "exec", host, "--"]
    return run([*rig, *command], timeout=timeout, text=text, file=file, check=check)


def say(message: str) -> None:
    """Tell on standard error what is being done."""
    print(f"rig: {message}", file=sys.stderr, flush=True)
