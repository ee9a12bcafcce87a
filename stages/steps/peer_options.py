# SPDX-License-Identifier: GPL-2.0-or-later
"""What was asked of `migrator peer`: a record for each of its actions."""

from __future__ import annotations

import dataclasses

from migrator.record import grant
from migrator.remote.destination import ConnectOptions


@dataclasses.dataclass(frozen=True)
class Allowance:
    """What a peer is to be allowed here."""

    receive: bool = False
    lxcpaths: tuple[str, ...] = ()  # where it may bring containers
    hooks: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        return grant.words_of(receive=self.receive, lxcpaths=self.lxcpaths, hooks=self.hooks)


@dataclasses.dataclass(frozen=True)
class Invite:
    name: str  # of the other host; likewise below
    rendezvous: tuple[str, ...] = ()  # empty for the configured ones
    offline: bool = False
    may: Allowance = Allowance()


@dataclasses.dataclass(frozen=True)
class Join(Invite):
    code: str = ""  # "" to ask for it


@dataclasses.dataclass(frozen=True)
class Add:
    host: str  # in the form that ssh accepts
    name: str = ""  # "" for its own host name
    own_name: str = ""  # "" for this host's name
    connect: ConnectOptions = dataclasses.field(default_factory=ConnectOptions)
    may: Allowance = Allowance()


@dataclasses.dataclass(frozen=True)
class Allow:
    name: str
    may: Allowance


@dataclasses.dataclass(frozen=True)
class List:
    """All peers."""


@dataclasses.dataclass(frozen=True)
class Show:
    name: str = ""  # "" for this host itself


@dataclasses.dataclass(frozen=True)
class Rename:
    name: str
    new_name: str


@dataclasses.dataclass(frozen=True)
class Remove:
    name: str


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Answer another host's `peer add`."""


PeerOptions = Invite | Join | Add | Allow | List | Show | Rename | Remove | Exchange
