# SPDX-License-Identifier: GPL-2.0-or-later
"""What a caller of `migrator serve` may do here.

Whoever logs in as root over SSH may do everything, being root. A paired peer may do what `migrator peer allow` permits,
by default only ask about what was sent to it; a line in authorized_keys can grant the same with `serve --only`.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from migrator.base import log, names
from migrator.config import consent
from migrator.errors import UsageError
from migrator.errors.connection import ConsentNeeded, NotAllowed
from migrator.errors.containers import InvalidName
from migrator.host import lxc
from migrator.record import next_commands
from migrator.record.detail import ROOT_CALLER
from migrator.record.journal import Migration
from migrator.record.next_commands import this_host

if TYPE_CHECKING:
    from tunnel.identity.peers import Peer

ASKING = frozenset({"source-state"})  # operations for a host that containers have moved to; all others are a source's
FACTS_MAX = 32  # times that a connection may have this host's facts collected
UNFINISHED_MAX = 64  # unfinished migrations of one caller
KNOWN_MAX = 5000  # migrations that the journal keeps for one caller
EVENTS_MAX = 10_000  # events of a migration up to which a caller may begin more steps of it here
EVENTS_SIZE = 8 << 20  # bytes of what these events say
TOLD_MAX = 128 << 20  # bytes recorded about all of a caller's migrations up to which it may begin more
UNKNOWN_MAX = 128  # ids a connection may name that are not on record, or not for its caller
ORIGINS_MAX = 16  # containers, by origin, that a connection may ask about; it brings just one
ABANDONS_MAX = 64  # migrations unknown to this host that a connection may abandon
PEER = "peer:"  # prefix of a paired host, both as caller and as destination
_AS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclasses.dataclass(frozen=True)
class Grant:
    """What one caller may do.

    `caller` is what migrations are bound to, `name` what people call it, `fix` how to allow more.
    """

    caller: str = ROOT_CALLER
    name: str = "root over SSH"
    receive: bool = True
    ask: bool = True
    # Where it may bring containers; (): this host's own LXC path; None: anywhere.
    lxcpaths: tuple[Path, ...] | None = None
    hooks: bool = True  # settings that reach out of the container may come along
    fix: str = ""
    hooks_fix: str = ""  # what has to be done here before it may bring those along; "" if it may

    @property
    def restricted(self) -> bool:
        return self.lxcpaths is not None

    def check(self, op: str) -> None:
        """Raise NotAllowed if the caller may not request that operation at all."""
        if not (self.ask if op in ASKING else self.receive):
            what = "ask about what it was sent" if op in ASKING else "move containers here"
            raise self.refusal(f"it may not {what}")

    def lxcpath(self, wanted: str) -> Path:
        """The LXC path that was asked for, or this host's own by default; raises InvalidName and NotAllowed."""
        allowed = self.lxcpaths if self.lxcpaths != () else (lxc.default_lxcpath(),)
        if allowed is None:
            return names.lxcpath(wanted) if wanted else lxc.default_lxcpath()
        path = names.lxcpath(wanted) if wanted else allowed[0]
        if path not in allowed:
            raise self.refusal(f"it may move containers only to {', '.join(map(str, allowed))}, not to {path}")
        return path

    def owns(self, migration: Migration) -> bool:
        """Whether this caller began it; migrations begun before callers were recorded are root's."""
        return migration.caller == self.caller

    def check_owner(self, migration: Migration) -> None:
        """Raise NotAllowed for a migration that another caller began."""
        if not self.owns(migration):
            raise self.not_its_own(migration)

    def not_its_own(self, migration: Migration) -> NotAllowed:
        """The error for a migration that another caller began or that goes out from here, in the same words for both.

        So whoever guesses an id learns nothing from it: not even which container it is.
        """
        return NotAllowed(host_name=this_host(), caller=self.name,
                          reason=f"migration {migration.id} was begun by someone else",
                          fix=f"Whoever began it can continue it; on {this_host()}: migrator status")

    def source(self, said: str) -> str:
        """Where this caller's migrations come from, in the form of `-d`; `said` is the name the caller gives itself."""
        if self.caller.startswith(PEER):
            return f"{PEER}{self.name}"
        return names.host_name(said) if self.restricted else said[:253]

    def check_destination(self, migration: Migration) -> None:
        """Raise NotAllowed for a migration from here that does not go to this peer."""
        if self.caller.startswith(PEER) and not self.is_destination(migration):
            raise self.refusal(f"migration {migration.id} does not go to it")

    def check_leave(self, migration: Migration) -> None:
        """Raise NotAllowed unless the caller is known to be the host that a migration from here goes to.

        A word given to a different host would make a forced rollback wait for nothing.
        """
        self.check_destination(migration)
        if not self.is_destination(migration):
            there = migration.begun.destination_host
            raise self.refusal(f"its key is not marked as that of {there}, where migration {migration.id} goes"
                               f" (as={there})")

    def is_destination(self, migration: Migration) -> bool:
        """Whether this is the host that a migration from here goes to; for a limited key only `as=NAME` tells.

        A peer is identified by its fingerprint, because a different host may be paired under its name by now.
        Migrations begun by an older version record only the name.
        """
        if not self.restricted:
            return True
        if self.caller.startswith(PEER):
            if fingerprint := migration.begun.destination_fingerprint:
                return self.caller == f"{PEER}{fingerprint}"
            return migration.peer == f"{PEER}{self.name}"
        return self.caller == f"{ROOT_CALLER}:{migration.begun.destination_host}"

    def check_config(self, name: str, text: str, mapped_root: int) -> None:
        """Raise ConsentNeeded for a configuration that reaches out if this caller's must not; see `reaching`."""
        if not self.hooks:
            self.check_reaching(name, reaching(text, mapped_root))

    def check_reaching(self, name: str, lines: str) -> None:
        """As `check_config`, for what `reaching` has found."""
        if lines and not self.hooks:
            raise ConsentNeeded(host_name=this_host(), caller=self.name, name=name, lines=lines,
                                fix=f"on {this_host()}: {self.hooks_fix}")

    def refusal(self, reason: str) -> NotAllowed:
        return NotAllowed(host_name=this_host(), caller=self.name, reason=reason, fix=f"On {this_host()}: {self.fix}")

    @property
    def text(self) -> str:
        """What it may do, in words: `move containers to /pool, with hooks`."""
        if not self.receive:
            return "do nothing"
        where = ", ".join(map(str, self.lxcpaths or ())) or "this host's LXC path"
        return f"move containers to {where}{', with hooks' if self.hooks else ''}"


    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"receive": self.receive, "lxcpaths": [str(path) for path in self.lxcpaths or ()], "hooks": self.hooks}


ROOT = Grant()


def reaching(text: str, mapped_root: int) -> str:
    """Which settings of a configuration reach out of the container on this host, in words; "" for none.

    `mapped_root` is the uid that will own its directory.
    """
    lines = consent.reaching(text, lambda path: Path(path).exists())
    if mapped_root and mapped_root < consent.IDS_FROM:
        lines.append(f"a root that is user {mapped_root} here")
    return consent.shown(lines)


def words_of(*, receive: bool, lxcpaths: Iterable[str] = (), hooks: bool = False) -> tuple[str, ...]:
    """A permission in the form that the peer store and `serve --only` use; raises InvalidName for an invalid path."""
    if not receive:
        return ()
    paths = [f"lxcpath={urllib.parse.quote(str(names.lxcpath(path)))}" for path in dict.fromkeys(lxcpaths)]
    return ("receive", *paths, *(["hooks"] if hooks else []))


def of_peer(peer: Peer) -> Grant:
    """What a paired host may do. A word that this version does not know allows nothing."""
    paths, plain = _read(peer.allowed)
    hooks = "hooks" in plain
    fix = shlex.join(["migrator", "peer", "allow", peer.name, "receive",
                      *(word for path in paths for word in ("--lxcpath", str(path)))])
    return Grant(
        caller=f"{PEER}{peer.public.fingerprint}", name=peer.name, receive="receive" in plain, ask=True,
        lxcpaths=paths, hooks=hooks, fix=fix, hooks_fix="" if hooks else f"{fix} --accept-hooks",
    )


def of_migration(migration: Migration) -> Grant:
    """What whoever began a migration to this host may bring along as of now, for this migration alone.

    For a paired host that is what `peer allow` said last, and nothing once it was removed. What a line of
    authorized_keys says cannot be known here; for such a key, or if the peer store cannot be read, the last request's
    finding applies.
    """
    found = recorded(migration)
    if not found.caller.startswith(PEER):
        return found
    from tunnel.identity import private_files
    from tunnel.identity.peers import Peers
    from tunnel.tunnel_errors import TunnelFileUnusable

    try:
        for peer in Peers(private_files.STATE / "peers").all():
            if found.caller == f"{PEER}{peer.public.fingerprint}":
                return of_peer(peer)
    except (TunnelFileUnusable, InvalidName) as error:
        log.verbose(f"What {found.name} may bring along now is unknown: {error}")
        return found
    return dataclasses.replace(found, hooks=False, hooks_fix=_anew(migration))


def recorded(migration: Migration) -> Grant:
    """As `of_migration`, from the journal: what was found at the last request that brought something."""
    caller, consent = migration.caller, migration.consent
    return Grant(caller=caller, name=migration.peer.removeprefix(PEER),
                 hooks=caller == ROOT_CALLER if consent.hooks is None else consent.hooks,
                 hooks_fix=consent.hooks_fix or _anew(migration))


def _anew(migration: Migration) -> str:
    return f"{next_commands.command('rollback', migration)}, and start over"


def of_peer_id(id: bytes) -> Grant:
    """What the paired host with that id may do right now; raises TunnelFileUnusable."""
    from tunnel.identity import private_files
    from tunnel.identity.peers import Peers

    peer = Peers(private_files.STATE / "peers").by_id(id)
    return of_peer(peer) if peer else nobody(id.hex()[:16])


def nobody(name: str) -> Grant:
    """For a peer that was removed while its tunnel was up."""
    return Grant(caller="", name=name, receive=False, ask=False, lxcpaths=(), hooks=False,
                 fix="migrator peer invite")


def of_only(text: str) -> Grant:
    """What `serve --only` allows: `receive`, `ask`, `hooks`, `lxcpath=PATH`, `as=NAME`; raises UsageError."""
    words = tuple(text.split(","))
    named = [word.partition("=")[2] for word in words if word.startswith("as=")]
    try:
        paths, plain = _read(word for word in words if not word.startswith("as="))
    except InvalidName as error:
        raise UsageError(reason=f"--only {error}") from None
    unknown = plain - {"receive", "ask", "hooks"}
    if unknown or len(named) > 1 or not plain & {"receive", "ask"} or not all(map(_AS.fullmatch, named)):
        raise UsageError(reason=f"--only takes receive or ask, and hooks, lxcpath=PATH, as=NAME; not {text[:100]!r}")
    name, hooks = named[0] if named else "this key", "hooks" in plain
    return Grant(
        caller=f"{ROOT_CALLER}:{named[0] if named else 'only'}", name=name, receive="receive" in plain,
        ask="ask" in plain, lxcpaths=paths, hooks=hooks, fix="see `serve --only` in this key's line of authorized_keys",
        hooks_fix="" if hooks else "add hooks to `serve --only` in this key's line of authorized_keys",
    )


def _read(words: Iterable[str]) -> tuple[tuple[Path, ...], set[str]]:
    """The LXC paths among the words, and the words without a value; raises InvalidName."""
    paths, plain = [], set()
    for word in words:
        key, equals, value = word.partition("=")
        if key == "lxcpath" and equals:
            paths.append(names.lxcpath(urllib.parse.unquote(value)))
        else:
            plain.add(word)
    return tuple(paths), plain
