# SPDX-License-Identifier: GPL-2.0-or-later
"""The console and the ttys that LXC gives a container: pseudo-terminals whose other end its monitor holds.

A getty on one of them, or an init with its output there, is dumped with the terminal as an external resource. At the
restore LXC provides a new console (`console`, liblxc's criu.c), but no ttys: for each of these we create a
pseudo-terminal and leave both ends to lxc-checkpoint, which becomes the monitor and holds them as long as the container
lives. As before, nobody reads what is written there; `lxc-console -t N` reaches it after the next start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from migrator.host import mount_tables
from migrator.host.mountinfo import MountLine, parse_mountinfo

RECORD = "terminals"  # the file that travels beside the images
COUNT_LIMIT = 64
CONSOLE = "dev/console"
# LXC mounts one terminal on each, below lxc.tty.dir if that is set (lxc_setup_ttys and lxc_setup_console in conf.c).
_TARGET = re.compile(r"dev/(?:[A-Za-z0-9._-]{1,64}/)?(?:console|tty[0-9]{1,3})")
_ID = re.compile(r"tty\[[0-9a-f]{1,16}:[0-9a-f]{1,16}\]")


@dataclasses.dataclass(frozen=True)
class Terminal:
    """A pseudo-terminal of LXC's that is mounted in a container."""

    id: str  # CRIU's name for it, from the device numbers of the terminal and of its file system
    uid: int  # its owner, as seen from the host
    gid: int
    mode: int
    targets: tuple[str, ...]  # where it is mounted, without the leading slash

    @property
    def console(self) -> bool:
        return CONSOLE in self.targets

    def line(self) -> str:
        return f"{self.id} {self.uid} {self.gid} {self.mode:o} {' '.join(self.targets)}\n"


def is_lxcs(target: str) -> bool:
    """Whether LXC mounts a terminal of its own at this path of a container."""
    return bool(_TARGET.fullmatch(target.lstrip("/")))


def index(line: MountLine) -> int | None:
    """The number, in its devpts, of a mounted terminal of LXC's; None for any other mount."""
    number = line.root.strip("/")
    return int(number) if line.type == "devpts" and number.isdecimal() and is_lxcs(line.target) else None


def found(pid: int) -> list[Terminal]:
    """The terminals that LXC has mounted in the container whose PID 1 is `pid`; raises TooManyMounts and OSError."""
    mounted: dict[str, tuple[os.stat_result, list[str]]] = {}
    for line in parse_mountinfo(mount_tables.MountTables().read(f"/proc/{pid}/mountinfo")):
        target = line.target.lstrip("/")
        if index(line) is not None:
            seen = Path(f"/proc/{pid}/root", target).stat()
            id_ = f"tty[{seen.st_rdev:x}:{seen.st_dev:x}]"
            mounted.setdefault(id_, (seen, []))[1].append(target)
    return [Terminal(id_, seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode), tuple(targets))
            for id_, (seen, targets) in mounted.items()]


def recorded(text: str, mapped: Callable[[int], bool]) -> list[Terminal]:
    """The terminals in a record, which comes from another host; raises ValueError if it makes no sense.

    An owner that is not `mapped` to a user of the container would be a user of this host: root takes that place.
    """
    lines = text.splitlines()
    if len(lines) > COUNT_LIMIT:
        raise ValueError(f"it has {len(lines)} terminals")
    result = []
    for line in lines:
        id_, uid, gid, mode, *targets = line.split(" ")
        if not _ID.fullmatch(id_) or not targets or not all(_TARGET.fullmatch(target) for target in targets):
            raise ValueError(f"{line!r} is not a terminal of LXC's")
        owner, group = (int(word) if mapped(int(word)) else 0 for word in (uid, gid))
        result.append(Terminal(id_, owner, group, int(mode, 8) & 0o777, tuple(targets)))
    return result


def dump_options(terminals: Sequence[Terminal]) -> list[str]:
    """What CRIU is told at the dump."""
    options = []
    for terminal in terminals:
        options += ["--external", terminal.id]
        for target in terminal.targets:
            # liblxc uses this name for its console at the restore.
            options += ["--ext-mount-map", f"/{target}:{'console' if terminal.console else target}"]
    return options


@dataclasses.dataclass(frozen=True)
class Made:
    """What `made` has for a restore."""

    criu: tuple[str, ...] = ()  # lines of CRIU's configuration file
    descriptors: tuple[int, ...] = ()  # that lxc-checkpoint is to inherit


@contextlib.contextmanager
def made(terminals: Sequence[Terminal]) -> Iterator[Made]:
    """New pseudo-terminals of this host to replace ttys; the console is up to LXC.

    Our descriptors of them are closed at the end; whoever has inherited them keeps them.
    """
    lines: list[str] = []
    descriptors: list[int] = []
    try:
        for terminal in terminals:
            if terminal.console:
                continue
            descriptors += (pair := os.openpty())
            os.fchown(pair[1], terminal.uid, terminal.gid)
            os.fchmod(pair[1], terminal.mode)
            lines.append(f"inherit-fd fd[{pair[1]}]:{terminal.id}")
            lines += [f"ext-mount-map {target}:{os.ttyname(pair[1])}" for target in terminal.targets]
        yield Made(tuple(lines), tuple(descriptors))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
