# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel's configuration: which rendezvous servers there are, and which certificates they have."""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from tunnel.tunnel_errors import TunnelFileUnusable

PATH = Path("/etc/migrator/tunnel.conf")
PORT = 443
SERVERS_MAX = 8
URL_MAX = 512  # characters
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,15})?")
_PIN = re.compile(r"sha256:([0-9a-f]{64})")


class InvalidServer(ValueError):
    """What is wrong with a server's URL."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A rendezvous server: `wss://HOST[:PORT]`, with `#sha256:HEX` if its certificate is self-signed.

    Two spellings of the same server are equal.
    """

    url: str = dataclasses.field(compare=False)  # as it was written
    host: str  # in lower case; an IPv6 address as it is usually written
    port: int
    pin: bytes | None  # SHA-256 of the certificate in DER; None: the system's authorities vouch for it
    # A paired peer has named it, not this host's user; it still equals the same server named by the user.
    by_peer: bool = dataclasses.field(default=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Server:
        """Parse a URL; raises InvalidServer. Only TLS is supported, and no part of the URL can carry a password."""
        try:
            parts = urlsplit(text)
            port = parts.port if parts.port is not None else PORT
            host = parts.hostname or ""
        except ValueError as error:
            raise InvalidServer(f"it is not a URL ({error})") from None
        # urlsplit drops blanks, and older versions drop what surrounds an address in brackets; `url` is as it was
        # written, and the store of peers has blanks between its fields and commas between the servers.
        if len(text) > URL_MAX or not text.isascii() or not text.isprintable() or {" ", ","} & {*text}:
            raise InvalidServer("it is too long or has characters that are not allowed")
        if parts.scheme != "wss":
            raise InvalidServer("it does not begin with wss://")
        if parts.username or parts.password or parts.query or parts.path not in ("", "/"):
            raise InvalidServer("it must be wss://HOST[:PORT][#sha256:HEX] and nothing more")
        if not _HOST.fullmatch(host) or not port:
            raise InvalidServer("its host or port is malformed")
        pin = _PIN.fullmatch(parts.fragment.lower())
        if parts.fragment and not pin:
            raise InvalidServer("what follows # is not sha256: and 64 hexadecimal digits")
        return cls(text, _usual(host), port, bytes.fromhex(pin[1]) if pin else None)

    def of_peer(self) -> Server:
        """The same as a peer names it."""
        return dataclasses.replace(self, by_peer=True)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORT else f"{host}:{self.port}"


def _usual(host: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv6Address(host))
    return host


@dataclasses.dataclass(frozen=True)
class Config:
    """What the configuration says; empty if there is none."""

    servers: tuple[Server, ...] = ()

    @classmethod
    def load(cls, path: Path = PATH) -> Config:
        """Read the configuration; raises TunnelFileUnusable."""
        # Interpolation is off: a URL may contain %.
        parser = configparser.ConfigParser(interpolation=None)
        try:
            text = path.read_text()
            parser.read_string(text, str(path))
            return cls(parse_servers(re.split(r"[\s,]+", parser.get("rendezvous", "servers", fallback=""))))
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError, configparser.Error, InvalidServer) as error:
            reason = " ".join(str(error).split())
            fix = "It should read: [rendezvous] and below it: servers = wss://HOST:PORT#sha256:HEX"
            raise TunnelFileUnusable(path=path, reason=reason, fix=fix) from None


def together(first: Iterable[Server], then: Iterable[Server]) -> list[Server]:
    """Both, each server once, in their order. A server that the user has named too counts as the user's choice."""
    every = [*first, *then]
    chosen = {server: server for server in every if not server.by_peer}
    return [chosen.get(server, server) for server in dict.fromkeys(every)]


def parse_servers(urls: Iterable[str]) -> tuple[Server, ...]:
    """Several URLs, each once, in their order; raises InvalidServer."""
    found: list[Server] = []
    for url in filter(None, urls):
        try:
            server = Server.parse(url)
        except InvalidServer as error:
            raise InvalidServer(f"{url[:80]!a}: {error}") from None
        if server not in found:
            found.append(server)
    if len(found) > SERVERS_MAX:
        raise InvalidServer(f"there are more than {SERVERS_MAX} servers")
    return tuple(found)
