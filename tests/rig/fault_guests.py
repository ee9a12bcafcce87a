# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests of the fault matrix: many at once, cheaply made, looked at together."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.rig import LXC_HOSTS, Rig

PF_EXITING, PF_SIGNALED = 0x4, 0x400  # include/linux/sched.h
SIGKILL_BIT = 1 << (signal.SIGKILL - 1)


class Named(Protocol):
    """A guest, by its name."""

    name: str


def host_root(rig: Rig, host: str) -> Path:
    """A host's file system, seen from here: to look at a file costs nothing then."""
    instance = "" if rig.instance == "rig" else f"-{rig.instance}"
    return Path("/proc", Path(f"/run/migrator-rig{instance}/{host}.pid").read_text().split()[0], "root")


def make(rig: Rig, addresses: Mapping[str, str]) -> None:
    """Talk guests of these names and addresses on hosta, all of them copies of one that is made first."""
    rig.guest("hosta", "model", "talk", ip="10.0.3.99")
    rig.exec("hosta", "sh", "-c", _MAKE, input="".join(f"{name} {address}\n" for name, address in addresses.items()))


def states(rig: Rig, host: str, guests: Sequence[Named]) -> list[str]:
    """LXC's word for the state of each, ABSENT where there is none."""
    names = " ".join(guest.name for guest in guests)
    return rig.sh(host, f"for name in {names}; do lxc-info -n $name -sH 2>/dev/null || echo ABSENT; done").split()


def probe(rig: Rig, host: str, guests: Sequence[Named], *, quick: bool = False) -> list[dict[str, Any]]:
    """What each of them says of itself (vagrant/guests/probe.py)."""
    given = json.dumps([[guest.name for guest in guests], quick])
    found: list[dict[str, Any]] = json.loads(rig.exec(host, "python3", "-c", _PROBE, input=given).stdout)
    return found


class Look:
    """How the guests' processes are on both hosts, by their cgroups."""

    def __init__(self, rig: Rig) -> None:
        self._cgroups = [host_root(rig, host) / "sys/fs/cgroup" for host in LXC_HOSTS]

    def at(self, guest: Named) -> tuple[str, str]:
        """Both hosts': `runs`, `frozen`, or nothing where it has no processes."""
        # The destination's first: a source that runs when that one has begun to is one too many.
        there, here = (self._on(cgroup, guest.name) for cgroup in reversed(self._cgroups))
        return here, there

    def both_run(self, guest: Named) -> bool:
        """Whether two copies run now. A copy that was killed while it was frozen is not frozen any more, but dying."""
        if self.at(guest) != ("runs", "runs"):
            return False
        try:
            found = (self._cgroups[0] / f"lxc.payload.{guest.name}" / "cgroup.procs").read_text().split()
        except OSError:
            return False
        # Who looks may have been held up between the two: the destination's may have ended before the source's began.
        return any(_lives(pid) for pid in found) and self.at(guest)[1] == "runs"

    @staticmethod
    def _on(cgroup: Path, name: str) -> str:
        try:
            text = (cgroup / f"lxc.payload.{name}" / "cgroup.events").read_text()
        except OSError:
            return ""
        return "" if "populated 1" not in text else "frozen" if "frozen 1" in text else "runs"


class Watch:
    """Looks ten times a second whether two copies of a guest run, processes that are not frozen on both hosts."""

    def __init__(self, rig: Rig, guests: Sequence[Named]) -> None:
        self._look = Look(rig)
        self._guests = guests
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.twice: set[str] = set()  # names
        self.looks = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.looks += 1
            self.twice |= {guest.name for guest in self._guests if self._look.both_run(guest)}


def _lives(pid: str) -> bool:
    """Whether a process can still run code of its own: no SIGKILL waits for it, and it is not on its way out."""
    try:
        status = Path("/proc", pid, "status").read_text()
        flags = int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[6])
    except OSError:
        return False
    pending = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return not flags & (PF_EXITING | PF_SIGNALED) and not any(each & SIGKILL_BIT for each in pending)


_PROBE = """
import concurrent.futures, json, sys
sys.path.insert(0, "/opt/rig/guests")
from probe import probe
names, quick = json.load(sys.stdin)
with concurrent.futures.ThreadPoolExecutor(25) as pool:
    print(json.dumps(list(pool.map(lambda name: probe(name, "/pool", quick=quick), names))))
"""

_MAKE = r"""
set -e
cd /pool
lxc-stop -k -n model
rm -f model/rootfs/count model/rootfs/log model/rootfs/starts model/rootfs/verif*
while read -r name address; do
    mkdir $name
    btrfs -q subvolume snapshot model/rootfs $name/rootfs
    last=${address##*.}
    sed -e "s/model/$name/g" -e "s/10\.0\.3\.99/$address/" -e "s/fd00:3::99/fd00:3::$last/" \
        -e "s/\(hwaddr = 00:16:3e\).*/\1:00:03:$(printf %02x $last)/" model/config >$name/config
    lxc-start -n $name -o /var/log/lxc/$name.log </dev/null
done
btrfs -q subvolume delete model/rootfs
rm -r model
"""
