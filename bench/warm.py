# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that was never used is slow at its first use: so it is used once before anything is measured.

The kernel clears a page before a program gets it; in a virtual machine the hypervisor has to find it first, which took
ten times as long (240 MiB/s against 4 GiB/s, on a virtual machine that had just started). The kernel hands out first
what was freed last (mm/page_alloc.c), so containers and images get next what was filled and freed here.
"""

from __future__ import annotations

import contextlib
import mmap
import subprocess
import sys
import time
from pathlib import Path

# Two containers, the images of one on both hosts, its disk in the page cache of two file systems and of the files that
# these are in: everything that the demo takes, with something to spare.
WANTED = 2 << 30
PAGE = mmap.PAGESIZE


def amount(available: int) -> int:
    """How many bytes to touch if programs can still have `available`: never more than half of that."""
    return min(WANTED, available // 2) // PAGE * PAGE


def available() -> int:
    """Bytes that programs can still have without swapping (MemAvailable in proc_meminfo(5)); 0 if that is not known."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def touch(count: int) -> float | None:
    """Have `count` bytes of memory used once, and freed; returns the seconds, or None if there was not enough.

    A separate process does it, which is the first to be ended if memory runs out, as in a container with a limit of its
    own. It takes memory and no file: whoever kills it gets it back.
    """
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "bench.warm", str(count)], cwd=Path(__file__).resolve().parents[1],
                          stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.monotonic() - begun if done.returncode == 0 else None


def fill(count: int) -> None:
    """The process of `touch`: write a byte in each page."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # proc_pid_oom_score_adj(5)
    with mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[::PAGE] = bytes(count // PAGE)


if __name__ == "__main__":
    fill(int(sys.argv[1]))
