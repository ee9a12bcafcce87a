# SPDX-License-Identifier: GPL-2.0-or-later
"""Give a frozen container back: reconnect its network and let it run. Needs no disk, no journal and no terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from migrator.base import log, process_id
from migrator.host import lxc, network
from migrator.host.network import Port
from migrator.record.detail import NO_PROCESS, Still

_BY_HAND = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What must be known of a container to give it back; noted before it is frozen."""

    migration: str  # its id
    name: str
    lxcpath: Path
    pid: int  # of its PID 1
    cgroup: Path
    ports: tuple[Port, ...]
    dad: Mapping[str, str] = dataclasses.field(default_factory=dict)  # see network.hush_dad
    # When that process began, see `process_id.start_time`; older versions did not record it.
    started: int | None = None

    @classmethod
    def on_record(cls, migration: str, name: str, lxcpath: Path, still: Still) -> Self:
        """From the record in a journal, or from what `recorded` returned."""
        pid, (init, started) = NO_PROCESS if still.pid is None else still.pid, still.first
        return cls(migration, name, lxcpath, pid, Path(still.cgroup), tuple(still.ports), still.dad,
                   started if init == pid else None)

    def recorded(self) -> Still:
        return Still(pid=self.pid, cgroup=str(self.cgroup), ports=list(self.ports), dad=dict(self.dad),
                     init=(self.pid, self.started))

    def is_here(self) -> bool:
        """Whether the cgroup still holds that container; raises OSError.

        Two containers of one name in two LXC paths use the same cgroup in turn, as do two starts of one container. If
        it is now another one, its owner may be the one who froze it.
        """
        try:
            return self.cgroup.is_dir() and self.started in (None, process_id.start_time(self.pid))
        except (FileNotFoundError, ProcessLookupError):
            return False


def thaw(frozen: Frozen) -> None:
    """Reconnect the container's network and let it run; safe to repeat.

    If a step on the way fails, that is only logged and the container still runs in the end. Raises OSError if the
    kernel does not thaw it. Signals from a user (Ctrl-C and the like) do not interrupt the steps.
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
    """A step on the way to the thaw whose failure must not prevent it; logs `otherwise` if it fails."""
    try:
        step()
    except Exception as error:  # nothing matters more than the thaw that comes after
        log.warning(f"{otherwise}: {error}")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back signals sent by hand until the block has ended.

    Blocking them would not help: the kernel delivers a signal to any thread that does not block it (signal(7)), and
    there is always one that keeps a connection alive. Python then runs the handler in the main thread; other threads
    are never interrupted.
    """
    came: list[int] = []
    try:
        with contextlib.ExitStack() as stack:
            for number in _BY_HAND if threading.current_thread() is threading.main_thread() else ():
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # an ignored signal stays ignored
                    stack.callback(signal.signal, number, before)
                    signal.signal(number, lambda which, _: came.append(which))
            yield
    finally:
        for taken in dict.fromkeys(came):
            signal.raise_signal(taken)
