# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds a program of a host before it does its work: time to do something meanwhile, however slow the machine is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from harness.rig import Rig, wait_for

FOLDER = "/opt/held"
DUMP, RESTORE = '[ "$1" = dump ]', '[ "$1" = restore ]'


@dataclasses.dataclass(frozen=True)
class Hold:
    """A program that is held; made by `held`."""

    rig: Rig
    host: str
    path: str

    @property
    def real(self) -> str:
        """The program itself. It stays: what is let go still needs it."""
        return f"{FOLDER}/{self.path.rpartition('/')[2]}"

    @property
    def waiting(self) -> str:
        """The folder in which each that is held has one of its own. Where this one has gone, none can be made."""
        return f"{self.real}.waiting"

    def wait(self, what: str, count: int = 1) -> None:
        """Until so many have been started, and wait."""
        wait_for(lambda: self.waits() >= count, what)

    def waits(self) -> int:
        """How many have been started, and wait."""
        return len(self.rig.sh(self.host, f"ls {self.waiting}", check=False).split())

    def spare(self) -> None:
        """Hold none of those who come from now on; who waits already goes on waiting."""
        self.rig.sh(self.host, f"[ {self.path} -ef {self.real} ] || "
                               f"{{ ln -f {self.real} {self.path}.new && mv {self.path}.new {self.path}; }}")

    def release(self) -> None:
        """Let them do their work, all at the same moment, and whoever comes from now on."""
        self.spare()  # first: what they become is to be known by the file that they execute
        self.rig.sh(self.host, f"mv {self.waiting} {self.waiting}.not; rm -rf {self.waiting}.not")


@contextlib.contextmanager
def instead_of(rig: Rig, host: str, program: str, script: str) -> Iterator[Hold]:
    """A shell script in a program's place, under its name. `REAL` in the script is the program itself."""
    hold = Hold(rig, host, rig.sh(host, f"readlink -f $(command -v {program})").strip())
    # The same file under another name: by it, migrator knows whose process one is.
    rig.sh(host, f"rm -rf {hold.waiting} {hold.path}.new; mkdir -p {hold.waiting}; ln -f {hold.path} {hold.real}")
    rig.put(host, f"{hold.path}.new", script.replace("WAITING", hold.waiting).replace("REAL", hold.real))
    try:
        rig.sh(host, f"chmod 755 {hold.path}.new && mv {hold.path}.new {hold.path}")
        yield hold
    finally:
        hold.release()


@contextlib.contextmanager
def held(rig: Rig, host: str, program: str, when: str = "true") -> Iterator[Hold]:
    """Whoever starts a program waits, `when` that is so, until it is released, at the latest at the end of the block.

    It keeps its name, by which it is known that it is at work. It opens no device, as `btrfs receive` can open none.
    """
    script = f"""#!/bin/sh
if {when} && mkdir WAITING/$$ 2>&-; then
    while [ -e WAITING/$$ ]; do sleep 0.02; done
fi
exec REAL "$@"
"""
    with instead_of(rig, host, program, script) as hold:
        yield hold


@dataclasses.dataclass(frozen=True)
class HeldStream:
    """What `btrfs send` writes, as far as it may; made by `held_stream`. One that is started anew may go as far."""

    hold: Hold

    def let(self, size: int) -> None:
        """It may go on until it has written so many bytes."""
        self.hold.rig.sh(self.hold.host, f"echo {size} >{self.hold.real}.limit.new; "
                                         f"mv {self.hold.real}.limit.new {self.hold.real}.limit")

    def release(self) -> None:
        """It may write all there is."""
        self.let(1 << 60)


@contextlib.contextmanager
def held_stream(rig: Rig, host: str, size: int) -> Iterator[HeldStream]:
    """Every `btrfs send` of a host waits when it has written so many bytes: what has not arrived yet does not, however
    slow or fast the machine is."""
    with instead_of(rig, host, "btrfs", _STREAM) as hold:
        stream = HeldStream(hold)
        try:
            stream.let(size)
            yield stream
        finally:
            stream.release()


_STREAM = """#!/usr/bin/python3
import os, pathlib, subprocess, sys, time
if sys.argv[1:2] != ["send"]:
    os.execv("REAL", ["btrfs", *sys.argv[1:]])
process = subprocess.Popen(["REAL", *sys.argv[1:]], stdout=subprocess.PIPE)
passed, limit = 0, pathlib.Path("REAL.limit")
while True:
    while passed >= (may := int(limit.read_text())):
        time.sleep(0.02)
    data = os.read(process.stdout.fileno(), min(1 << 18, may - passed))
    if not data:
        break
    passed += len(data)
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
sys.exit(process.wait())
"""


@contextlib.contextmanager
def slow_criu(rig: Rig, host: str, verb: str, seconds: int) -> Iterator[None]:
    """CRIU begins `verb` only after some seconds."""
    with instead_of(rig, host, "criu", f'#!/bin/sh\n[ "$1" = {verb} ] && sleep {seconds}\nexec REAL "$@"\n'):
        yield
