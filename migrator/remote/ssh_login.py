# SPDX-License-Identifier: GPL-2.0-or-later
"""Host keys and logins: whom to trust, and how to authenticate."""

from __future__ import annotations

import contextlib
import shlex
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from migrator.base import log
from migrator.errors.connection import HostKeyChanged, HostKeyUnknown, SshRefused
from migrator.remote import known_hosts
from migrator.remote.destination import Destination
from migrator.remote.known_hosts import Verdict
from migrator.remote.ssh_config import HostConfig

if TYPE_CHECKING:
    import paramiko

_KEY_FILES = {"ssh-ed25519": "ed25519", "ssh-rsa": "rsa"}  # else ecdsa


def key_types(supported: Sequence[str], config: HostConfig) -> list[str]:
    """The host key types to ask for, with those that known_hosts has for this host first."""
    known = known_hosts.entries(config.known_hosts, config.known_as)
    wanted = {entry.key_type for entry in known if not entry.revoked}
    if "ssh-rsa" in wanted:
        wanted |= {"rsa-sha2-512", "rsa-sha2-256"}
    return sorted(supported, key=lambda name: name not in wanted)  # stable: otherwise in their own order


def check_host_key(destination: Destination, config: HostConfig, transport: paramiko.Transport,
                   accept_new: bool) -> None:
    """Raise HostKeyUnknown or HostKeyChanged unless known_hosts has the host's key, or may be given it."""
    shown = transport.get_remote_server_key()
    key_type, key = shown.get_name(), shown.asbytes()
    kind = _KEY_FILES.get(key_type, "ecdsa")
    verdict = known_hosts.judge(known_hosts.entries(config.known_hosts, config.known_as), key)
    named = {"destination": destination, "key_type": kind.upper(), "fingerprint": known_hosts.fingerprint(key)}
    if verdict is Verdict.CHANGED:
        raise HostKeyChanged(**named, known_hosts_name=shlex.quote(config.known_as))
    if verdict is Verdict.UNKNOWN:
        if not accept_new or not config.user_known_hosts:
            raise HostKeyUnknown(**named, key_file=f"/etc/ssh/ssh_host_{kind}_key.pub")
        known_hosts.add(
            config.user_known_hosts[0], config.known_as, key_type, key, hashed=config.hash_known_hosts
        )
        log.warning(f"Added the {kind.upper()} key {named['fingerprint']} of {destination} to known_hosts")


def log_in(destination: Destination, config: HostConfig, transport: paramiko.Transport, limit: float) -> None:
    """Try the keys one after another; raises SshRefused."""
    import paramiko

    reason = "no key was found, neither in an agent nor in ~/.ssh"
    for key in _keys(config, limit):
        try:
            missing = transport.auth_publickey(config.user, key)
        except paramiko.BadAuthenticationType as error:
            others = ", ".join(filter(None, error.allowed_types))
            reason = f"it accepts no keys, only {others}" if others else "it accepts no keys"
            break
        except paramiko.AuthenticationException as error:
            reason = "it accepts none of the keys that were found"
            log.debug(f"{destination} refused the key {known_hosts.fingerprint(key.asbytes())}: {error}")
        except (paramiko.SSHException, EOFError, OSError) as error:
            reason = reason_of(error)
            break
        else:
            if not missing:
                return
            reason = f"it accepted the key but also wants {', '.join(missing)}"
            break
    raise SshRefused(destination=destination, user=config.user, reason=reason)


def _keys(config: HostConfig, limit: float) -> Iterator[paramiko.PKey]:
    """Keys to try: those in the agent, then the files, each loaded when its turn comes."""
    offered = set()
    for key in _agent_keys(limit) if config.agent else ():
        if not config.identities_only or key.asbytes() in _public_keys(config):
            offered.add(key.asbytes())
            yield key
    for path in config.identity_files:
        found = _load_key(path)
        if found is not None and found.asbytes() not in offered:
            yield found


def _agent_keys(limit: float) -> Sequence[paramiko.PKey]:
    import paramiko

    try:
        agent = paramiko.Agent()
        conn = getattr(agent, "_conn", None)
        if conn is not None:
            conn.settimeout(limit)  # an agent may ask its user before it signs
        return agent.get_keys()
    except (paramiko.SSHException, OSError):
        return ()


def _public_keys(config: HostConfig) -> set[bytes]:
    """The public halves of the configured identity files, if they can be had without a passphrase."""
    import paramiko

    found = set()
    for path in config.identity_files:
        with contextlib.suppress(OSError, ValueError, paramiko.SSHException):
            public = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
            found.add(paramiko.pkey.PublicBlob.from_file(str(public)).key_blob)
    return found


def _load_key(path: Path) -> paramiko.PKey | None:
    """The private key in a file; None if there is none that can be used without a prompt."""
    import paramiko

    if not path.is_file():
        return None
    for cls in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            key: paramiko.PKey = cls.from_private_key_file(str(path))
        except paramiko.PasswordRequiredException:
            log.debug(f"{path} has a passphrase; add it to an agent to use it")
            return None
        except (paramiko.SSHException, OSError, ValueError, IndexError):
            continue
        certificate = path.with_name(path.name + "-cert.pub")
        if certificate.is_file():
            with contextlib.suppress(paramiko.SSHException, ValueError):
                key.load_certificate(str(certificate))
        return key
    log.debug(f"{path} holds no readable key")
    return None


def reason_of(error: BaseException) -> str:
    """What to say about an error raised by paramiko or a socket."""
    if isinstance(error, EOFError):
        return "it closed the connection"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved ({error.strerror})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
