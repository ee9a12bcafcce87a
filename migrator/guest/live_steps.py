# SPDX-License-Identifier: GPL-2.0-or-later
"""What is changed in a running container right before it is frozen, as CRIU could not dump or restore it otherwise.

An empty ramfs for a unit's credentials is unmounted, and a service's own /tmp that is mounted nowhere as a whole, as
that of PrivateTmp=disconnected, becomes a new tmpfs if it is empty. Nobody inside notices, and it stays so. The link
/etc/localtime becomes a file, and is a link again afterwards (`localtime`).
"""

from __future__ import annotations

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
from migrator.host import lxc
from migrator.host.mountinfo import MountLine, parse_mountinfo
from migrator.host.proc import link, read_text

ROUNDS = 4  # what was behind another thing comes to light, and a service may just have been started
NAMESPACES_MAX = 500
TMP = ("/tmp", "/var/tmp")  # noqa: S108 -- of a service's own mount namespace
_CREDENTIALS = re.compile(r"/run/credentials/([A-Za-z0-9:_.\\@-]{1,255})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Mounts:
    """What a container has mounted: `pids` is a process in each mount namespace."""

    own: str  # the mount namespace of the first process
    lines: Mapping[str, Sequence[MountLine]]
    pids: Mapping[str, int]
    outside: Collection[str]  # devices of file systems that the host has mounted


def credentials_of(line_type: str, target: str) -> str:
    """The unit whose credentials are mounted there as a ramfs; "" for any other mount."""
    found = _CREDENTIALS.fullmatch(target) if line_type == "ramfs" else None
    return found[1] if found else ""


def is_cured(kind: str, type_: str, target: str) -> bool:
    """Whether a trouble of `sandbox_mounts` is cured here, provided that the mount is not in use."""
    if kind == "unsupported":
        return bool(credentials_of(type_, target))
    return kind == "unreachable" and type_ == "tmpfs" and target in TMP


def needed(mounts: Mounts) -> Iterator[Act]:
    """What is to be done, as far as mounts tell it: in the first process's namespace, then in each other one."""
    own = mounts.lines[mounts.own]
    for line in own:
        if credentials_of(line.type, line.target):
            yield Act("drop", mounts.pids[mounts.own], mounts.own, line.target, device=line.device)
    nested = {namespace: lines for namespace, lines in mounts.lines.items() if namespace != mounts.own}
    for each in sandbox_mounts.troubles(own, nested, mounts.outside):
        if is_cured(each.kind, each.line.type, each.line.target):
            yield Act("drop" if each.kind == "unsupported" else "renew", mounts.pids[each.namespace], each.namespace,
                      each.line.target, options=tuple(sorted(each.line.options)), device=each.line.device)


def seen(init: int, pids: Collection[int]) -> Mounts:
    """The mounts of a container with this first process and these processes; raises OSError where it has ended."""
    own = link(f"/proc/{init}/ns/mnt")
    if not own:
        raise ProcessLookupError(f"process {init} has ended")
    first: dict[str, int] = {own: init}
    for pid in pids:
        if len(first) < NAMESPACES_MAX and (namespace := link(f"/proc/{pid}/ns/mnt")):
            first.setdefault(namespace, pid)
    lines = {namespace: parse_mountinfo(read_text(f"/proc/{pid}/mountinfo")) for namespace, pid in first.items()}
    outside = {line.device for line in parse_mountinfo(read_text("/proc/self/mountinfo"))}
    return Mounts(own, lines, first, outside)


def is_systemd(init: int) -> bool:
    """Whether a container's first process is systemd: anywhere else there is nothing of all this."""
    return read_text(f"/proc/{init}/comm") == "systemd\n"


def make_ready(name: str, init: int, processes: Callable[[], Collection[int]], *, watched: bool) -> None:
    """Do all that is needed, in a container that runs; `watched`: systemd watches the link /etc/localtime.

    Raises GuestNotReady; what was done until then does no harm.
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
                raise GuestNotReady(name=name, target=todo[0].target, reason="it is there again each time")
            for act, trouble in acts.carry_out(init, todo):
                if trouble:
                    raise GuestNotReady(name=name, target=act.target, reason=trouble)
                log.debug(f"{name}: {act.kind} {act.target}")
            todo = []
    except (CommandFailed, CommandTimeout, OSError) as error:
        raise GuestNotReady(name=name, target="its mounts", reason=error) from error


def put_back(name: str, init: int) -> None:
    """The link /etc/localtime is there again, where `make_ready` has put a copy in its place. Safe to repeat.

    The container runs, and that is worth more: what fails is told and nothing else.
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
    """The same in a container that may not run, or not be there."""
    try:
        container = lxc.Container(name, lxcpath)
        if container.state == "RUNNING":
            put_back(name, container.init_pid)
    except Interrupted:
        raise
    except Exception as error:
        log.debug(f"{localtime.PATH} in {name} is left as it is: {error}")
