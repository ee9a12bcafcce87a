# SPDX-License-Identifier: GPL-2.0-or-later
"""Give a frozen container back: on its network, and running. Nothing here needs a disk, a journal or a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from migrator.base import log
from migrator.host import lxc, network
from migrator.host.network import Port
from migrator.record import container_lock
from migrator.record.detail import NO_PROCESS, Still

_BY_HAND = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What must be known of a container to give it back: written down before it is frozen."""

    migration: str  # its id
    name: str
    lxcpath: Path
    pid: int  # of its first process
    cgroup: Path
    ports: tuple[Port, ...]
    dad: Mapping[str, str] = dataclasses.field(default_factory=dict)  # see network.hush_dad
    started: int | None = None  # when that process began, see `container_lock.start_time`; older versions do not say

    @classmethod
    def on_record(cls, migration: str, name: str, lxcpath: Path, still: Still) -> Self:
        """As a journal has it, or `recorded` made it."""
        pid, (init, started) = NO_PROCESS if still.pid is None else still.pid, still.first
        return cls(migration, name, lxcpath, pid, Path(still.cgroup), tuple(still.ports), still.dad,
                   started if init == pid else None)

    def recorded(self) -> Still:
        return Still(pid=self.pid, cgroup=str(self.cgroup), ports=list(self.ports), dad=dict(self.dad),
                     init=(self.pid, self.started))

    def is_here(self) -> bool:
        """Whether it still is that container which lives in the cgroup; raises OSError.

        Two of one name, in two LXC paths, have it in turn, as have two starts. Another one its owner may have frozen.
        """
        try:
            return self.cgroup.is_dir() and self.started in (None, container_lock.start_time(self.pid))
        except (FileNotFoundError, ProcessLookupError):
            return False


def thaw(frozen: Frozen) -> None:
    """Give the container its network again and let it run; safe to repeat.

    It runs in the end even where a step on the way fails; that is only told. Raises
    OSError where the kernel does not thaw it. No signal by hand comes between the steps.
    """
    with undisturbed():
        for what, step in (
            ("IPv6 addresses are not checked for duplicates", lambda: network.bring_back_dad(frozen.pid, frozen.dad)),
            ("its network does not hear it", lambda: network.hear(frozen.migration) if frozen.ports else None),
            ("it is not on its bridge", lambda: network.plug(frozen.pid, frozen.ports)),
        ):
            attempt(f"{frozen.name} runs again, but {what}", step)
        lxc.thaw_cgroup(frozen.cgroup)
        attempt(f"LXC still takes {frozen.name} for frozen",
             lambda: lxc.Container(frozen.name, frozen.lxcpath).tell_thawed())
    if frozen.ports:
        network.announce(frozen.pid, (0.0,)).join()


def attempt(otherwise: str, step: Callable[[], None]) -> None:
    """A step on the way to where it runs, which nothing but the last one may keep it from; says `otherwise` if not."""
    try:
        step()
    except Exception as error:  # nothing is worth more than the thaw, which comes after
        log.warning(f"{otherwise}: {error}")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals by hand wait until the block has ended.

    To block them does not help: the kernel hands a signal to any thread that does not (signal(7)), and one that keeps a
    connection alive is always there. Python then runs its handler in the main thread, and no other is ever disturbed.
    """
    came: list[int] = []
    try:
        with contextlib.ExitStack() as stack:
            for number in _BY_HAND if threading.current_thread() is threading.main_thread() else ():
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # which stays so
                    stack.callback(signal.signal, number, before)
                    signal.signal(number, lambda which, _: came.append(which))
            yield
    finally:
        for taken in dict.fromkeys(came):
            signal.raise_signal(taken)
