# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: S311
"""The init of a memory guest: holds pages whose content can be recomputed, rewrites some each second, verifies.

In addition it counts like counter.sh, so that its disk is checked too. A full verification is requested by a file
`verify` that holds any word; the answer is the file `verified`: that word, and how many pages are correct.

    memory.py MEBIBYTES [DIRTY-MEBIBYTES-A-SECOND]
"""

import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

COUNT = Path("/count")
VERIFY = Path("/verify")
VERIFIED = Path("/verified")
PAGE = 4096
STEP = 0.1
ROLLING = 64
"""Pages that are verified in each step without being asked."""


class Pages:
    """The pages; each has a version, and its content is derived from its number and version."""

    def __init__(self, mebibytes: int) -> None:
        self.number = mebibytes * 1024 * 1024 // PAGE
        self.memory = mmap.mmap(-1, self.number * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.versions = [0] * self.number
        self.secret = int.from_bytes(os.urandom(8), "little")
        for page in range(self.number):
            self.write(page)

    def content(self, page: int) -> bytes:
        """Return what a page must hold."""
        return random.Random(self.secret << 64 | page << 32 | self.versions[page]).randbytes(PAGE)

    def write(self, page: int) -> None:
        """Give a page its next content."""
        self.versions[page] += 1
        self.memory[page * PAGE : (page + 1) * PAGE] = self.content(page)

    def good(self, page: int) -> bool:
        """Tell whether a page holds what it must."""
        return self.memory[page * PAGE : (page + 1) * PAGE] == self.content(page)


def append(file: Path, line: object) -> None:
    """Add a line to a file."""
    with file.open("a", encoding="ascii") as opened:
        print(line, file=opened)


class Counter:
    """The same counter as counter.sh's, with the same files."""

    def __init__(self) -> None:
        self.start = Path("/proc/sys/kernel/random/uuid").read_text(encoding="ascii").strip()
        append(Path("/starts"), self.start)
        self.count = self.errors = 0

    def line(self) -> str:
        """Return the line that the file `count` must hold."""
        return f"{self.start} {self.count} {self.errors}\n"

    def step(self) -> None:
        """Verify what was written in the previous step, and count."""
        if self.count:
            self.errors += COUNT.read_text(encoding="ascii") != self.line()
        self.count += 1
        append(Path("/log"), self.count)
        COUNT.write_text(self.line(), encoding="ascii")


def answer(pages: Pages, rolling_bad: int) -> None:
    """Verify all pages if that is requested."""
    try:
        word = VERIFY.read_text(encoding="ascii")
        VERIFY.unlink()
    except FileNotFoundError:
        return
    bad = sum(not pages.good(page) for page in range(pages.number))
    told = {"word": word, "pages": pages.number, "bad": bad, "rolling_bad": rolling_bad, "written": sum(pages.versions)}
    new = VERIFIED.with_suffix(".new")
    new.write_text(json.dumps(told), encoding="ascii")
    new.rename(VERIFIED)


def main() -> None:
    """Count, dirty, verify, forever."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    pages = Pages(int(sys.argv[1]))
    dirty = int(float(sys.argv[2]) * 1024 * 1024 / PAGE * STEP) if len(sys.argv) > 2 else 0
    counter = Counter()
    position = rolling_bad = 0
    while True:
        began = time.monotonic()
        counter.step()
        for _ in range(dirty):
            pages.write(random.randrange(pages.number))
        for _ in range(ROLLING):
            position = (position + 1) % pages.number
            rolling_bad += not pages.good(position)
        answer(pages, rolling_bad)
        time.sleep(max(0.0, STEP - (time.monotonic() - began)))


if __name__ == "__main__":
    main()
