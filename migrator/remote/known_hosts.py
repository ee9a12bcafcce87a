# SPDX-License-Identifier: GPL-2.0-or-later
"""known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT): which host has which key.

Host certificates are not checked: lines marked @cert-authority are skipped.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import enum
import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SIZE_MAX = 16 * 1024 * 1024  # bytes of one file that are read


class Verdict(enum.Enum):
    KNOWN = "known"
    UNKNOWN = "unknown"  # there is no line for this host
    CHANGED = "changed"  # it is known by other keys, or this key has been revoked


class Entry(NamedTuple):
    """A line about the host that was asked for."""

    revoked: bool
    key_type: str
    key: bytes  # in SSH's wire format


def name_of(host: str, port: int) -> str:
    """A host's name as known_hosts spells it."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def entries(paths: Iterable[Path], name: str) -> list[Entry]:
    """The lines about `name` in those files; files that do not exist or cannot be read contribute none."""
    found: list[Entry] = []
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb") as file:
            found += parse(file.read(SIZE_MAX).decode(errors="replace"), name)
    return found


def parse(text: str, name: str) -> list[Entry]:
    """The lines of `text` that are about `name`; malformed lines are skipped, as ssh does."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#") or marker not in ("", "@revoked"):
            continue
        if not _matches(fields[0], name):
            continue
        with contextlib.suppress(binascii.Error, ValueError):
            found.append(Entry(bool(marker), fields[1], base64.b64decode(fields[2], validate=True)))
    return found


def judge(known: list[Entry], key: bytes) -> Verdict:
    """What those entries say about a host that presents `key`.

    A host known only by keys of other types counts as changed: a man in the middle could choose the type.
    """
    if any(entry.revoked and entry.key == key for entry in known):
        return Verdict.CHANGED
    valid = [entry for entry in known if not entry.revoked]
    if any(entry.key == key for entry in valid):
        return Verdict.KNOWN
    return Verdict.CHANGED if valid else Verdict.UNKNOWN


def fingerprint(key: bytes) -> str:
    """As `ssh-keygen -l` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def add(path: Path, name: str, key_type: str, key: bytes, *, hashed: bool) -> None:
    """Append a line for a host: all of it or nothing, even if others append at the same time. Raises OSError."""
    line = f"{_hashed(name) if hashed else name} {key_type} {base64.b64encode(key).decode()}\n".encode()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+b", buffering=0) as file:
        fcntl.flock(fd, fcntl.LOCK_EX)
        length = os.fstat(fd).st_size
        if length and os.pread(fd, 1, length - 1) != b"\n":
            line = b"\n" + line
        if file.write(line) != len(line):
            os.truncate(fd, length)
            raise OSError("there is no space for another line")


def _matches(patterns: str, name: str) -> bool:
    found = False
    for pattern in patterns.split(","):
        negated = pattern.startswith("!")
        if _matches_one(pattern.removeprefix("!"), name):
            if negated:
                return False
            found = True
    return found


def _matches_one(pattern: str, name: str) -> bool:
    if pattern.startswith("|1|"):
        try:
            _, _, salt, digest = pattern.split("|")
            expected = base64.b64decode(digest)
            return hmac.compare_digest(hmac.digest(base64.b64decode(salt), name.encode(), "sha1"), expected)
        except ValueError:
            return False
    wanted = re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(wanted, name) is not None


def _hashed(name: str) -> str:
    salt = secrets.token_bytes(20)
    digest = hmac.digest(salt, name.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
