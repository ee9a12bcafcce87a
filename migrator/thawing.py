# SPDX-License-Identifier: GPL-2.0-or-later
"""Give a frozen container back: on its network, and running. Nothing here needs a disk, a journal or a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from migrator import log, lxc, network
from migrator.network import Port

_BY_HAND = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}


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

    @classmethod
    def from_detail(cls, migration: str, name: str, lxcpath: Path, detail: Mapping[str, Any]) -> Self:
        """As a journal has it, or `to_detail` made it."""
        ports = tuple(Port(**port) for port in detail["ports"])
        return cls(migration, name, lxcpath, int(detail["pid"]), Path(detail["cgroup"]), ports, detail.get("dad", {}))

    def to_detail(self) -> dict[str, Any]:
        return {"pid": self.pid, "cgroup": str(self.cgroup), "ports": [port.to_json() for port in self.ports],
                "dad": dict(self.dad)}


def thaw(frozen: Frozen) -> None:
    """Give the container its network again and let it run; safe to repeat.

    It runs in the end even where a step on the way fails; that is only told. Raises
    OSError where the kernel does not thaw it. No signal by hand comes between the steps.
    """
    with _undisturbed():
        for what, step in (
            ("IPv6 addresses are not checked for duplicates", lambda: network.bring_back_dad(frozen.pid, frozen.dad)),
            ("its network does not hear it", lambda: network.hear(frozen.migration) if frozen.ports else None),
            ("it is not on its bridge", lambda: network.plug(frozen.pid, frozen.ports)),
        ):
            _try(f"{frozen.name} runs again, but {what}", step)
        lxc.thaw_cgroup(frozen.cgroup)
        _try(f"LXC still takes {frozen.name} for frozen",
             lambda: lxc.Container(frozen.name, frozen.lxcpath).tell_thawed())
    if frozen.ports:
        network.announce(frozen.pid, (0.0,)).join()


def _try(otherwise: str, step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as error:  # nothing is worth more than the thaw, which comes after
        log.warning(f"{otherwise}: {error}")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals by hand, the first and any other, wait until the block has ended.

    To mask them would not do: that is a thread's own, the kernel gives them to another thread, of a connection say, and
    Python's handler interrupts the main thread all the same (signal in Python's library reference).
    """
    if threading.current_thread() is not threading.main_thread():  # only that one can, and is interrupted
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _BY_HAND}
    replaced = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in replaced:
            signal.signal(number, lambda number, _frame: came.append(number))
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)
