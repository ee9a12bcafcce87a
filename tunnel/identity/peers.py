# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts with which this one is paired: a text file, one line per peer, in the style of known_hosts.

    NAME  mi1:IDENTITY  SECONDS-SINCE-1970  RENDEZVOUS,RENDEZVOUS (or -)  WORD,WORD (or -)

The words say what the peer may do here. Their meaning is not this package's business; a line without any allows
nothing.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable
from pathlib import Path

from migrator.base.strict_json import Malformed
from tunnel.identity import private_files, tunnel_config
from tunnel.identity.own_identity import PublicIdentity
from tunnel.identity.private_files import STATE
from tunnel.identity.tunnel_config import InvalidServer, Server
from tunnel.tunnel_errors import IdentityChanged, PeerNameRefused, PeerUnknown, TunnelFileUnusable

NAME_MAX = 63
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_MAX - 1}}}")
_WORD = re.compile(r"[a-z]+(=[!-+\--~]+)?")  # printable, without blanks and commas
WORDS_MAX = 32
WORD_MAX = 4096 * 3  # characters; a path has up to 4096, and some of them may be quoted
_TIME_MAX = 1e12  # seconds since 1970; keeps inf and the like out
_HEADER = "# Peers of this host: name, identity, when pinned, where it is rung, what it may do. See migrator(1).\n"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A pinned host; `added` in seconds since 1970, `rendezvous` are URLs as `tunnel_config.Server` has them.

    `allowed` is what it may do here, in words.
    """

    name: str
    public: PublicIdentity
    rendezvous: tuple[str, ...]
    added: float
    allowed: tuple[str, ...] = ()

    @property
    def servers(self) -> tuple[Server, ...]:
        """Where it can be rung."""
        return tuple(server.of_peer() for server in tunnel_config.parse_servers(self.rendezvous))


def checked_name(name: str) -> str:
    """The name itself if a peer can have it; raises PeerNameRefused."""
    if not _NAME.fullmatch(name):
        raise PeerNameRefused(
            name=repr(name[:20]), reason="it has characters that are not allowed, or too many",
            fix="Letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 63.",
        )
    return name


class Peers:
    """The store. Every call reads the file again, so that running programs know at once that a peer was removed."""

    def __init__(self, path: Path = STATE / "peers") -> None:
        self.path = path

    def all(self) -> list[Peer]:
        """Every peer, by name; raises TunnelFileUnusable."""
        return sorted(self._read(), key=lambda peer: peer.name)

    def get(self, name: str) -> Peer:
        """The peer of that name; raises PeerUnknown and TunnelFileUnusable."""
        checked_name(name)
        for peer in self._read():
            if peer.name == name:
                return peer
        raise PeerUnknown(name=name)

    def by_id(self, id: bytes) -> Peer | None:
        """The peer whose identity has that id (`PublicIdentity.id`)."""
        return next((peer for peer in self._read() if peer.public.id == id), None)

    def check(self, name: str, public: PublicIdentity) -> None:
        """Whether `pin` would succeed: raises IdentityChanged, PeerNameRefused and TunnelFileUnusable."""
        _check(self._read(), name, public)

    def pin(self, name: str, public: PublicIdentity, rendezvous: Iterable[str] = ()) -> Peer:
        """Remember an identity under a name.

        Pinning the same one again only updates where it can be rung. Raises IdentityChanged if the name has another
        identity, PeerNameRefused if the identity has another name, and TunnelFileUnusable.
        """
        urls = tuple(server.url for server in tunnel_config.parse_servers(rendezvous))
        with private_files.locked(self.path):
            peers = self._read()
            _check(peers, name, public)
            known = next((peer for peer in peers if peer.name == name), None)
            # A repeated pairing by copy and paste does not have to name servers.
            if known and not urls:
                urls = known.rendezvous
            added = known.added if known else round(time.time(), 3)
            peer = Peer(name, public, urls, added, known.allowed if known else ())
            self._write([other for other in peers if other.name != name] + [peer])
        return peer

    def allow(self, name: str, words: Iterable[str]) -> Peer:
        """Let a peer do exactly what these words say; raises PeerUnknown, ValueError and TunnelFileUnusable."""
        allowed = tuple(words)
        if not _are_words(allowed):
            raise ValueError("that cannot be written to the list of peers")
        with private_files.locked(self.path):
            peer = dataclasses.replace(self.get(name), allowed=allowed)
            self._write([other for other in self._read() if other.name != name] + [peer])
        return peer

    def rename(self, name: str, new: str) -> Peer:
        """Give a peer another name; raises PeerUnknown, PeerNameRefused and TunnelFileUnusable."""
        checked_name(new)
        with private_files.locked(self.path):
            peer = self.get(name)
            peers = self._read()
            if new != name and any(other.name == new for other in peers):
                raise _taken(new, "another peer has that name")
            renamed = dataclasses.replace(peer, name=new)
            self._write([other for other in peers if other.name != name] + [renamed])
        return renamed

    def remove(self, name: str) -> Peer:
        """Forget a peer; raises PeerUnknown and TunnelFileUnusable."""
        with private_files.locked(self.path):
            peer = self.get(name)
            self._write([other for other in self._read() if other.name != name])
        return peer

    def _read(self) -> list[Peer]:
        text = private_files.read_private(self.path) or ""
        peers: list[Peer] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                peers.append(_parse(line, peers))
            except (Malformed, ValueError, PeerNameRefused) as error:
                fix = f"Fix or remove line {number}; a removed peer can be paired again."
                raise TunnelFileUnusable(path=self.path, reason=f"line {number}: {error}", fix=fix) from None
        return peers

    def _write(self, peers: list[Peer]) -> None:
        lines = [
            f"{peer.name} {peer.public.to_text()} {peer.added:.3f} {','.join(peer.rendezvous) or '-'}"
            f" {','.join(peer.allowed) or '-'}\n"
            for peer in sorted(peers, key=lambda peer: peer.name)
        ]
        private_files.write_private(self.path, _HEADER + "".join(lines), replace=True)


def _parse(line: str, before: list[Peer]) -> Peer:
    fields = line.split()
    if len(fields) not in (4, 5):
        raise Malformed("it does not have four or five fields")
    name, identity, added, urls = fields[:4]
    allowed = tuple(fields[4].split(",")) if fields[4:] not in ([], ["-"]) else ()
    if not _are_words(allowed):
        raise Malformed("what the peer may do is malformed")
    seconds = float(added)
    if not 0 <= seconds <= _TIME_MAX:
        raise Malformed("its time is malformed")
    try:
        servers = tunnel_config.parse_servers([] if urls == "-" else urls.split(","))
    except InvalidServer as error:
        raise Malformed(str(error)) from None
    public = PublicIdentity.from_text(identity)
    if any(name == other.name or public == other.public for other in before):
        raise Malformed("its name or identity is there twice")
    return Peer(checked_name(name), public, tuple(server.url for server in servers), seconds, allowed)


def _are_words(allowed: tuple[str, ...]) -> bool:
    return len(allowed) <= WORDS_MAX and all(len(word) <= WORD_MAX and _WORD.fullmatch(word) for word in allowed)


def _check(peers: list[Peer], name: str, public: PublicIdentity) -> None:
    checked_name(name)
    for peer in peers:
        if peer.name == name and peer.public != public:
            raise IdentityChanged(name=name, pinned=peer.public.fingerprint, found=public.fingerprint)
        if peer.public == public and peer.name != name:
            raise _taken(name, f"that host is already pinned, as {peer.name}",
                         fix=f"migrator peer rename {peer.name} {name}, or pair under the name {peer.name}")


def _taken(name: str, reason: str, fix: str = "Choose another: migrator peer list shows all.") -> PeerNameRefused:
    return PeerNameRefused(name=name, reason=reason, fix=fix)
