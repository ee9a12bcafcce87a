# SPDX-License-Identifier: GPL-2.0-or-later
"""What ~/.ssh/config and /etc/ssh/ssh_config say about a host, and the only place that imports paramiko."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import pwd
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from migrator.errors import Interrupted
from migrator.errors.connection import HostUnreachable
from migrator.errors.this_host import PackageMissing
from migrator.remote import known_hosts
from migrator.remote.destination import Destination

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
SYSTEM_KNOWN_HOSTS = (Path("/etc/ssh/ssh_known_hosts"), Path("/etc/ssh/ssh_known_hosts2"))
# The fastest to load and sign with first.
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")

_INCLUDE = re.compile(r"\s*include[\s=]+(.*)", re.IGNORECASE)
_INCLUDE_DEPTH = 16
_MATCH_EXEC = re.compile(r"^\s*match\s.*\bexec\b", re.IGNORECASE | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class HostConfig:
    """How to reach one destination, and how to identify it."""

    host: str
    port: int
    user: str
    known_as: str  # its name in known_hosts
    user_known_hosts: tuple[Path, ...]
    global_known_hosts: tuple[Path, ...]
    hash_known_hosts: bool
    identity_files: tuple[Path, ...]
    identities_only: bool
    agent: bool
    connect_timeout: float | None  # seconds
    proxy_jump: tuple[str, ...]
    proxy_command: str | None

    @property
    def known_hosts(self) -> tuple[Path, ...]:
        return self.user_known_hosts + self.global_known_hosts


def load_paramiko(*, match_exec: bool = False) -> Any:
    """Import paramiko; raises PackageMissing.

    It imports `invoke` if that is installed, only for `Match exec` and at a third of its own import time: so that is
    hidden from it unless the configuration needs it.
    """
    hide = not match_exec and "invoke" not in sys.modules and "paramiko" not in sys.modules
    if hide:
        sys.modules["invoke"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            # Older versions name ciphers that newer versions of cryptography warn about.
            warnings.simplefilter("ignore")
            import paramiko
    except ImportError as error:
        raise PackageMissing(module="paramiko", package="python3-paramiko", reason=error) from error
    finally:
        if hide:
            del sys.modules["invoke"]
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # otherwise its tracebacks go to stderr
    logging.getLogger("paramiko").propagate = False
    return paramiko


def lookup(destination: Destination) -> HostConfig:
    """What ssh's configuration files and defaults say about a destination.

    User and port of the destination take precedence over those of the files. Raises HostUnreachable for a file that
    cannot be parsed.
    """
    home = Path.home()
    texts = [read(home / ".ssh/config", home / ".ssh"), read(SYSTEM_CONFIG, SYSTEM_CONFIG.parent)]
    load_paramiko(match_exec=any(_MATCH_EXEC.search(text) for text in texts))
    from paramiko.config import SSHConfig

    config = SSHConfig()
    try:
        for text in texts:
            config.parse(io.StringIO(text))
        found: Mapping[str, Any] = config.lookup(destination.host)
        return _host_config(destination, found, home)
    except Interrupted:
        raise
    except Exception as error:  # paramiko passes on whatever its dependencies raise
        raise HostUnreachable(destination=destination, reason=f"ssh's configuration has an error: {error}") from error


def _host_config(destination: Destination, found: Mapping[str, Any], home: Path) -> HostConfig:
    def yes(key: str, default: str = "no") -> bool:
        return str(found.get(key, default)).lower() in ("yes", "true")

    def paths(key: str, default: tuple[Path, ...]) -> tuple[Path, ...]:
        if key not in found:
            return default
        words = str(found[key]).split()
        return tuple(_path(word.strip('"'), home) for word in words if word.lower() not in ("none", "/dev/null"))

    host = str(found.get("hostname", destination.host))
    port = destination.port or int(found.get("port", 22))
    alias = found.get("hostkeyalias")
    jump = str(found.get("proxyjump") or "none")
    own = home / ".ssh"
    identities = tuple(_path(str(text), home) for text in found.get("identityfile", ()) if str(text).lower() != "none")
    limit = str(found.get("connecttimeout", "none"))
    return HostConfig(
        host=host,
        port=port,
        user=destination.user or str(found.get("user") or pwd.getpwuid(os.getuid()).pw_name),
        known_as=str(alias).lower() if alias else known_hosts.name_of(host, port),
        user_known_hosts=paths("userknownhostsfile", (own / "known_hosts", own / "known_hosts2")),
        global_known_hosts=paths("globalknownhostsfile", SYSTEM_KNOWN_HOSTS),
        hash_known_hosts=yes("hashknownhosts"),
        identity_files=identities if "identityfile" in found else tuple(own / name for name in DEFAULT_KEYS),
        identities_only=yes("identitiesonly"),
        agent=str(found.get("identityagent", "")).lower() != "none",
        connect_timeout=float(limit) if limit.isdecimal() and int(limit) else None,
        proxy_jump=tuple(part.strip() for part in jump.split(",")) if jump.lower() != "none" else (),
        proxy_command=found.get("proxycommand"),
    )


def _path(text: str, home: Path) -> Path:
    if text.startswith("~/"):
        return home / text[2:]
    return home / text.replace("%d", str(home))


def read(path: Path, folder: Path, depth: int = 0) -> str:
    """A configuration file with its Includes expanded, which paramiko does not support; "" if it does not exist."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    text: list[str] = []
    for line in lines:
        included = _INCLUDE.fullmatch(line)
        if not included:
            text.append(line)
            continue
        for pattern in included[1].split() if depth < _INCLUDE_DEPTH else []:
            text += [read(name, folder, depth + 1) for name in _glob(pattern.strip('"'), folder)]
    return "\n".join(text)


def _glob(pattern: str, folder: Path) -> list[Path]:
    base = Path(pattern).expanduser()
    if not base.is_absolute():
        base = folder / base
    with contextlib.suppress(OSError, ValueError):
        return sorted(Path("/").glob(str(base.relative_to("/"))))
    return []
