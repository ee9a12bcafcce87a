# SPDX-License-Identifier: GPL-2.0-or-later
"""What is changed in a running container right before the freeze because CRIU could not dump or restore it otherwise.

A ramfs for a unit's credentials is unmounted if it is empty, else replaced by a tmpfs with the same files. A service's
own /tmp is replaced by a new tmpfs if it is empty and only part of its file system is mounted anywhere, as with
PrivateTmp=disconnected. No process notices any of this, and it is not undone. The symlink /etc/localtime is replaced by
a file, and becomes a symlink again afterwards (`localtime`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from migrator.base import log
from migrator.criu import sandbox_mounts
from migrator.errors import Interrupted
from migrator.errors.memory import GuestNotReady
from migrator.errors.this_host import CommandFailed, CommandTimeout
from migrator.guest import acts, localtime
from migrator.guest.acts import Act
from migrator.host import lxc, mount_tables
from migrator.host.mountinfo import MountLine, parse_mountinfo
from migrator.host.proc import link, read_text

ROUNDS = 4  # removing one mount can uncover another, and a service may just have been started
NAMESPACES_MAX = 500  # mount namespaces that are looked at
TMP = ("/tmp", "/var/tmp")  # noqa: S108 -- of a service's own mount namespace
_CREDENTIALS = re.compile(r"/run/credentials/([A-Za-z0-9:_.\\@-]{1,255})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Mounts:
    """What a container has mounted, by mount namespace (named as /proc names it)."""

    own: str  # the mount namespace of its first process
    lines: Mapping[str, Sequence[MountLine]]
    pids: Mapping[str, int]  # one process in each
    outside: Collection[str]  # devices of file systems that the host has mounted


def credentials_of(line_type: str, target: str) -> str:
    """The unit whose credentials are in this mount, if it is a ramfs for that; "" for any other mount."""
    found = _CREDENTIALS.fullmatch(target) if line_type == "ramfs" else None
    return found[1] if found else ""


def is_cured(kind: str, type_: str, target: str) -> bool:
    """Whether this module can cure a trouble found by `sandbox_mounts`, provided that the mount is not in use."""
    if kind == "unsupported":
        return bool(credentials_of(type_, target))
    return kind == "unreachable" and type_ == "tmpfs" and target in TMP


def needed(mounts: Mounts) -> Iterator[Act]:
    """The acts that these mounts make necessary: in the first process's mount namespace, then in each of the others."""
    own = mounts.lines[mounts.own]
    for line in own:
        if credentials_of(line.type, line.target):
            yield _act("credentials", mounts, mounts.own, line)
    nested = {namespace: lines for namespace, lines in mounts.lines.items() if namespace != mounts.own}
    for each in sandbox_mounts.troubles(own, nested, mounts.outside):
        if is_cured(each.kind, each.line.type, each.line.target):
            kind = "credentials" if each.kind == "unsupported" else "renew"
            yield _act(kind, mounts, each.namespace, each.line)


def _act(kind: str, mounts: Mounts, namespace: str, line: MountLine) -> Act:
    return Act(kind, mounts.pids[namespace], namespace, line.target, options=tuple(sorted(line.options)),
               device=line.device)


def seen(init: int, pids: Collection[int]) -> Mounts:
    """What a container with this first process and these processes has mounted.

    Raises OSError if it has ended, TooManyMounts if it has more than is read.
    """
    own = link(f"/proc/{init}/ns/mnt")
    if not own:
        raise ProcessLookupError(f"process {init} has ended")
    first: dict[str, int] = {own: init}
    for pid in pids:
        if len(first) < NAMESPACES_MAX and (namespace := link(f"/proc/{pid}/ns/mnt")):
            first.setdefault(namespace, pid)
    tables, lines = mount_tables.MountTables(), dict[str, list[MountLine]]()
    for namespace, pid in first.items():
        lines[namespace] = []
        with contextlib.suppress(OSError):  # it has ended
            lines[namespace] = parse_mountinfo(tables.read(f"/proc/{pid}/mountinfo"))
    outside = {line.device for line in parse_mountinfo(read_text("/proc/self/mountinfo"))}
    return Mounts(own, lines, first, outside)


def is_systemd(init: int) -> bool:
    """Whether a container's first process is systemd; only systemd sets up what is changed here."""
    return read_text(f"/proc/{init}/comm") == "systemd\n"


def make_ready(name: str, init: int, processes: Callable[[], Collection[int]], *, watched: bool) -> None:
    """Change whatever would keep a running container from being dumped.

    `init` is its first process, `processes` lists all of them, and `watched` says whether systemd watches the symlink
    /etc/localtime. Raises GuestNotReady; what has been changed until then does no harm.
    """
    if not is_systemd(init):
        return
    try:
        todo = [Act("copy", init, link(f"/proc/{init}/ns/mnt"), localtime.PATH)] if watched else []
        for left in reversed(range(ROUNDS + 1)):
            todo += needed(seen(init, processes()))
            if not todo:
                return
            if not left:
                raise GuestNotReady(name=name, target=todo[0].target, reason="it keeps coming back")
            for act, trouble in acts.carry_out(init, todo):
                if trouble:
                    raise GuestNotReady(name=name, target=act.target, reason=trouble)
                log.debug(f"{name}: {act.kind} {act.target}")
            todo = []
    except (CommandFailed, CommandTimeout, OSError, mount_tables.TooManyMounts) as error:
        raise GuestNotReady(name=name, target="its mounts", reason=error) from error


def put_back(name: str, init: int) -> None:
    """Make /etc/localtime a symlink again if `make_ready` has replaced it by a copy. Safe to repeat.

    A failure is logged and not raised: that the container runs matters more.
    """
    try:
        if is_systemd(init):
            for _, trouble in acts.carry_out(init, [Act("link", init, link(f"/proc/{init}/ns/mnt"), localtime.PATH)]):
                if trouble:
                    log.warning(f"{localtime.PATH} in {name} stays a file, which does no harm: {trouble}")
    except Interrupted:
        raise
    except Exception as error:
        log.warning(f"{localtime.PATH} in {name} may stay a file, which does no harm: {error}")


def put_back_in(name: str, lxcpath: Path) -> None:
    """The same for a container that may be stopped, or gone."""
    try:
        container = lxc.Container(name, lxcpath)
        if container.state == "RUNNING":
            put_back(name, container.init_pid)
    except Interrupted:
        raise
    except Exception as error:
        log.debug(f"{localtime.PATH} in {name} is left as it is: {error}")
