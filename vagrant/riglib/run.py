# SPDX-License-Identifier: GPL-2.0-or-later
"""The only way the rig starts programs: argument lists, a time limit, failures that can be pasted into a shell."""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from riglib import paths
from riglib.errors import CommandFailed

KEPT = ("PATH", "HOME", "TERM", "TMPDIR", "MIGRATOR_RIG")
"""The part of our environment that programs see."""


def run(
    command: Sequence[str],
    *,
    timeout: float = 60,
    text: str = "",
    file: Path | None = None,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> str:
    """Run a program, give it `text` (or what is in `file`) on standard input, return its output.

    Raises CommandFailed unless it exits 0, or `check` is off.
    """
    kept = {name: os.environ[name] for name in KEPT if name in os.environ} | {"LC_ALL": "C.UTF-8"}
    pasted = shlex.join(command)
    with contextlib.ExitStack() as stack:
        try:
            process = stack.enter_context(
                subprocess.Popen(
                    list(command),
                    stdin=stack.enter_context(file.open("rb")) if file else subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=kept | dict(environment or {}),
                    pass_fds=pass_fds,
                )
            )
        except OSError as error:
            raise CommandFailed(f"{error.strerror}: {pasted}", hint=f"install {command[0]}") from None
        try:
            output, errors = process.communicate(None if file else text.encode(), timeout=timeout)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandFailed(f"no end after {timeout:g} s: {pasted}") from None
            raise
    if check and process.returncode:
        told = (errors.strip() or output.strip()).decode("utf-8", "replace").splitlines()
        raise CommandFailed(f"exit status {process.returncode}: {pasted}: {' | '.join(told[-3:])}")
    return output.decode("utf-8", "replace")


def inside(
    host: str,
    command: Sequence[str],
    *,
    timeout: float = 60,
    text: str = "",
    file: Path | None = None,
    check: bool = True,
) -> str:
    """Run a program inside a host, the same way that `rig exec` does."""
    rig = [sys.executable, "-S", f"{paths.VAGRANT}/rig", "exec", host, "--"]
    return run([*rig, *command], timeout=timeout, text=text, file=file, check=check)


def say(message: str) -> None:
    """Report on standard error what is being done."""
    print(f"rig: {message}", file=sys.stderr, flush=True)
