# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tunnel has created on this host: recorded before it is made, and removed whoever is still alive to do it.

Each tunnel has a record, /run/migrator/tunnel/SESSION.json. It names the process that owns the tunnel; once that has
gone, however it ended, `sweep` at the start of the next command removes what the record stands for. Everything else
follows from the session's id, so a record that cannot be read does just as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from migrator.base import process_id
from migrator.base.process_id import Process
from tunnel.identity.private_files import folder_locked, read_private, write_private
from tunnel.interface import addresses, firewall
from tunnel.tunnel_errors import LeftoversRemain, TunnelError, TunnelFileUnusable
from tunnel.wireguard import kernel, userspace

RUN = Path("/run/migrator/tunnel")

_FILE = re.compile(r"([0-9a-f]{32})\.json")
_STALE = 60.0  # seconds after which a temporary file counts as left by a process that was killed while writing it


@dataclasses.dataclass(frozen=True)
class Record:
    """A tunnel on this host."""

    session: bytes
    backend: str  # Backend.kind
    owner: Process | None  # the process that uses it; None if the record cannot be read
    server: Process | None = None  # the wireguard-go that serves it
    created: float = dataclasses.field(default_factory=time.time)  # seconds since the epoch

    @property
    def name(self) -> str:
        return addresses.interface_name(self.session)

    @property
    def path(self) -> Path:
        return RUN / f"{self.session.hex()}.json"

    def is_owned(self) -> bool:
        """Whether the process that uses the tunnel still runs."""
        return self.owner is not None and self.owner.is_alive()

    def write(self) -> None:
        """Write it, in place of an older one of the same session; raises TunnelFileUnusable."""
        data = {
            "session": self.session.hex(),
            "interface": self.name,
            "backend": self.backend,
            "owner": self.owner.to_json() if self.owner else None,
            "server": self.server.to_json() if self.server else None,
            "created": self.created,
        }
        for last in (False, False, True):
            try:
                write_private(self.path, json.dumps(data) + "\n", replace=True)
                return
            except TunnelFileUnusable:
                # Another process may have removed the folder while it was empty for a moment.
                if last or RUN.is_dir():
                    raise


def records() -> list[Record]:
    """All tunnels that this host has, or that were left behind on it."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(RUN.iterdir()):
            if match := _FILE.fullmatch(path.name):
                found.append(_read(bytes.fromhex(match[1]), path))
    return found


def _read(session: bytes, path: Path) -> Record:
    data: Any = None
    with contextlib.suppress(TunnelFileUnusable, ValueError, RecursionError):
        data = json.loads(read_private(path) or "")
    if not isinstance(data, dict):
        data = {}
    return Record(
        session,
        str(data.get("backend", "")),
        Process.from_json(data.get("owner")),
        Process.from_json(data.get("server")),
        created=0.0,
    )


def claim(record: Record) -> bool:
    """Write a new record, and remove what is left of dead tunnels with its name; raises TunnelFileUnusable.

    False, and nothing is touched, if a live one has that name: this session's, or one whose id begins with the same
    digits. The peer chooses ids, and two of its sessions can begin at the same moment.
    """
    with folder_locked(RUN):
        alike = [each for each in records() if each.name == record.name]
        if any(each.is_owned() for each in alike):
            return False
        record.write()
        # From here on the name is this record's, and no sweep touches what bears it.
    for each in alike or [record]:
        if not _undo(each) and each.session != record.session:
            with contextlib.suppress(OSError):
                each.path.unlink(missing_ok=True)
    return True


def remove(record: Record) -> list[str]:
    """Remove everything that a record stands for, then the record; returns what could not be removed, and why.

    Safe to repeat. Only for a caller that has claimed the record, or taken it over.
    """
    problems = _undo(record)
    if not problems:
        record.path.unlink(missing_ok=True)
        _tidy()
    return problems


def _tidy() -> None:
    """Remove the folder if it is empty."""
    with contextlib.suppress(OSError, TunnelFileUnusable):
        if RUN.is_dir():
            with folder_locked(RUN):
                RUN.rmdir()


def _undo(record: Record) -> list[str]:
    """Remove everything that a record stands for except the record; returns what could not be removed, and why.

    Each step is independent, so that one that fails does not keep the others from being done; but the firewall goes
    last, and only once the interface has gone: until then it is all that stands between the peer and this host. Safe
    to repeat.
    """
    name, problems = record.name, []

    def done(what: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except (TunnelError, process_id.ProgramFailed, OSError) as error:
            problems.append(f"{what} ({error})")
            return False
        return True

    done(f"wireguard-go of {name}", lambda: _end_server(record))
    if done(f"interface {name}", lambda: kernel.Kernel().remove(name)):
        done(f"firewall table {name}", lambda: firewall.remove(name))
    else:
        problems.append(f"firewall table {name} (kept, as that interface may still be up)")
    return problems


def _end_server(record: Record) -> None:
    """A record that cannot be read does not say which back end was used: there may have been a server."""
    if record.backend == kernel.Kernel.kind:
        return
    if record.server:
        record.server.end()
    userspace.Userspace().remove(record.name)


def sweep() -> list[str]:
    """Remove what killed processes have left; returns the names of the interfaces, for the log.

    To be called at the start of every command that may open a tunnel, and before the agent waits. Tunnels of processes
    that still run are left alone. Blocks for about as long as it takes to end a process. Raises LeftoversRemain once
    everything that can be removed has been removed.
    """
    removed, problems = [], []
    for record in records():
        try:
            if record.is_owned() or not _take_over(record):
                continue
        except TunnelFileUnusable as error:
            problems.append(f"{record.name} ({error})")
            continue
        if found := remove(record):
            problems += found
            with contextlib.suppress(TunnelFileUnusable):
                record.write()  # it is ownerless again, for the next sweep
        else:
            removed.append(record.name)
    _remove_torn()
    if problems:
        raise LeftoversRemain(what="; ".join(problems))
    return removed


def _take_over(record: Record) -> bool:
    """Make this process the owner of a dead tunnel's record, so that nobody claims its name while it is being removed.

    Not if somebody was faster, or a live tunnel has that name: then what is there belongs to that one.
    """
    with folder_locked(RUN):
        alike = [each for each in records() if each.name == record.name]
        if not any(each.session == record.session for each in alike) or any(each.is_owned() for each in alike):
            return False
        dataclasses.replace(record, owner=Process.current()).write()
        return True


def _remove_torn() -> None:
    """Remove files that a killed process had begun to write, under a name that is not yet a record's."""
    with contextlib.suppress(FileNotFoundError):
        for path in RUN.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.name.startswith(".") and time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()
    _tidy()
