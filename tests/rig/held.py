# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds a program of a host before it does its work: time to kill who waits for it, however slow the machine is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from tests.rig.harness import Rig, wait_for

FOLDER = "/opt/held"


@dataclasses.dataclass(frozen=True)
class Hold:
    """A program that is held; made by `held`."""

    rig: Rig
    host: str
    program: str

    @property
    def folder(self) -> str:
        return f"{FOLDER}/{self.program}"

    def wait(self, what: str) -> None:
        """Until somebody has started it, and waits for it."""
        look = ("test", "-e", f"{self.folder}/reached")
        wait_for(lambda: self.rig.exec(self.host, *look, check=False).status == 0, what)

    def release(self) -> None:
        """Let it do its work, now and from now on."""
        self.rig.exec(self.host, "rm", "-f", f"{self.folder}/closed")


@contextlib.contextmanager
def held(rig: Rig, host: str, program: str, when: str = "true") -> Iterator[Hold]:
    """Whoever starts a program waits, `when` that is so, until it is released, at the latest at the end of the block.

    It keeps its name, by which it is known that it is at work.
    """
    hold = Hold(rig, host, program)
    path = rig.sh(host, f"readlink -f $(command -v {program})").strip()
    real = f"{hold.folder}/{program}"  # which stays: what is held at the end of the block still needs it
    rig.sh(host, f"set -e; mkdir -p {hold.folder}; cd {hold.folder}; "
                 f"rm -f reached {program}; cp -p {path} {program}; : >closed")
    script = f"""#!/bin/sh
if {when} && [ -e {hold.folder}/closed ]; then
    : >{hold.folder}/reached
    while [ -e {hold.folder}/closed ]; do sleep 0.02; done
fi
exec {real} "$@"
"""
    rig.put(host, f"{path}.held", script)
    rig.sh(host, f"chmod 755 {path}.held && mv {path}.held {path}")
    try:
        yield hold
    finally:
        hold.release()
        rig.sh(host, f"cp -p {real} {path}.held && mv {path}.held {path}")
