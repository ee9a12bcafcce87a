# SPDX-License-Identifier: GPL-2.0-or-later
"""What `-d` accepts: where a container is to go, and how that host is reached.

    [user@]host[:port]          a host reached by SSH; an IPv6 address is put in brackets
    ssh://[user@]host[:port]    the same
    peer:NAME                   a paired peer, reached through the tunnel

Nothing here looks anything up; names from ~/.ssh/config are resolved by `migrator.remote.ssh`.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import re
from typing import TYPE_CHECKING

from migrator.errors.connection import DestinationInvalid

if TYPE_CHECKING:
    from tunnel.candidates.outlook import Policy

_LONGEST = 512  # characters; a host name has at most 253, a login 256
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}", re.ASCII)
# Not a dash as the first character, or ssh would take it for an option; nothing that a ProxyCommand's shell acts on.
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,255}", re.ASCII)
_PEER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


class Kind(enum.StrEnum):
    SSH = "ssh"
    PEER = "peer"


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where to go. `user` and `port` are None if the command line leaves them to ssh's configuration."""

    kind: Kind
    host: str  # a name, an address without brackets, or the peer's name
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """In a form accepted by `-d` and by ssh, which takes ports and brackets only in a URL."""
        if self.kind is Kind.PEER:
            return f"peer:{self.host}"
        user = f"{self.user}@" if self.user else ""
        if ":" not in self.host and not self.port:
            return f"{user}{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{user}{host}" + (f":{self.port}" if self.port else "")


@dataclasses.dataclass(frozen=True)
class ConnectOptions:
    """How a host is reached, whichever it is."""

    timeout: float = 15.0  # seconds of silence after which the connection is dropped
    accept_new_host_key: bool = False
    path: Policy = "prefer-direct"  # to a paired peer


def parse(text: str) -> Destination:
    """The destination that `text` names; raises DestinationInvalid."""
    if len(text) > _LONGEST:
        raise DestinationInvalid(destination=ascii(text[:100]), reason=f"it is longer than {_LONGEST} characters")
    try:
        return _peer(text) if text.startswith("peer:") else _ssh(text)
    except ValueError as error:
        raise DestinationInvalid(destination=ascii(text[:100]), reason=error) from None


def _peer(text: str) -> Destination:
    name = text.removeprefix("peer:")
    if not _PEER.fullmatch(name):
        raise ValueError("a peer's name is 1 to 63 letters, digits, '.', '_' or '-', and begins with a letter or digit")
    return Destination(Kind.PEER, name)


def _ssh(text: str) -> Destination:
    rest = text
    if "://" in rest:
        scheme, _, rest = rest.partition("://")
        if scheme != "ssh":
            raise ValueError(f"{scheme!a} is not a scheme that migrator knows")
        rest = rest.removesuffix("/")
    user, at, rest = rest.rpartition("@")  # the last one: user names may contain '@', host names cannot
    if at and not _USER.fullmatch(user):
        raise ValueError("the user name is empty or has characters that are not allowed")
    host, port = _host_and_port(rest)
    return Destination(Kind.SSH, host, user if at else None, port)


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Split `host[:port]`; raises ValueError with the reason."""
    if text.startswith("["):
        host, bracket, after = text[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise ValueError("the brackets around the address do not match")
        if not _is_ipv6(host):
            raise ValueError("what is in brackets is not an IPv6 address")
        return host, _port(after[1:]) if after else None
    if text.count(":") > 1:
        # If brackets could be omitted, ::1:22 would be another address than the one meant.
        raise ValueError("an IPv6 address needs brackets" if _is_ipv6(text) else "it has more than one ':'")
    host, colon, number = text.partition(":")
    if not _HOST.fullmatch(host):
        raise ValueError("the host name is empty or has characters that are not allowed")
    return host, _port(number) if colon else None


def _is_ipv6(text: str) -> bool:
    address, percent, zone = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or bool(_ZONE.fullmatch(zone))


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError("the port is not a number from 1 to 65535")
    return int(text)
