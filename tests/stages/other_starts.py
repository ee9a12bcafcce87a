# SPDX-License-Identifier: GPL-2.0-or-later
"""Real processes that live beside a container, as those of another start of it, or as visitors."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PIDS = ["unshare", "--user", "--map-root-user", "--fork", "--kill-child", "--pid"]
START = [*PIDS, "--mount"]  # as LXC's, as far as it goes
SLEEP = ["sleep", "1000"]
NESTED = ["sh", "-c", 'exec "$@"', "sh", *START, *SLEEP]  # first in its namespace is then the inner unshare
# It has this root by a descriptor of it, which was handed to it, and not by a mount of its own.
HANDED = ["sh", "-c", 'exec 9</ "$@"', "sh", *START, sys.executable, "-c",
          "import os; os.fchdir(9); os.chroot('.'); os.execvp('sleep', ['sleep', '1000'])"]


def below(pid: int) -> list[int]:
    """It, and its only child, and so on, once the last of them sleeps."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = [pid]
        with contextlib.suppress(OSError):
            while more := Path(f"/proc/{found[-1]}/task/{found[-1]}/children").read_text().split():
                found.append(int(more[0]))
            if Path(f"/proc/{found[-1]}/comm").read_text() == "sleep\n":
                return found
        time.sleep(0.01)
    raise AssertionError("it does not come up")


@contextlib.contextmanager
def lives(*command: str) -> Iterator[list[int]]:
    with subprocess.Popen(command) as program:
        try:
            yield below(program.pid)
        finally:
            program.kill()


# Who lives beside a container whose first process is the second of these: the command, and which of its processes.
BESIDE = {
    "another start": ([*START, *SLEEP], 1),
    "visits by chroot": (SLEEP, 0),
    "visits by arch-chroot": ([*PIDS, *SLEEP], 1),
    "visits from another container": ([*START, "sh", "-c", "sleep 1000 & wait"], 2),
    "visits from another container, in namespaces of his own": ([*START, *NESTED], 2),
    "another container that was handed this root": (HANDED, 1),
}
