# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH against a real sshd: whom it lets in, by keys in files and in an agent."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.loopback_sshd import Sshd, keygen
from migrator.errors.connection import SshRefused
from tests.migrator.remote.ssh_sessions import at_home, configure, connect, server, shared  # noqa: F401 -- fixtures


def test_refused_key(server: Sshd) -> None:
    (server.home / ".ssh/id_ed25519").unlink()
    keygen(server.home / ".ssh/id_ed25519", "ed25519")
    with pytest.raises(SshRefused, match=f"as {server.user}: it accepts none of the keys"):
        connect(server)


def test_no_key_at_all(server: Sshd) -> None:
    (server.home / ".ssh/id_ed25519").unlink()
    with pytest.raises(SshRefused, match="no key was found"):
        connect(server)


def test_second_of_several_keys(server: Sshd) -> None:
    (server.home / ".ssh/id_ed25519").rename(server.home / ".ssh/id_rsa")  # whatever its name says
    keygen(server.home / ".ssh/id_ed25519", "ed25519")
    keygen(server.home / ".ssh/id_ecdsa", "ecdsa")
    connect(server).close()


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_other_kinds_of_keys(server: Sshd, kind: str) -> None:
    (server.home / ".ssh/id_ed25519").unlink()
    keygen(server.home / f".ssh/id_{kind}", kind)
    authorized = server.folder / "authorized_keys"
    before = authorized.read_text()
    authorized.write_text(before + (server.home / f".ssh/id_{kind}.pub").read_text())
    try:
        connect(server).close()
    finally:
        authorized.write_text(before)


def test_key_with_a_passphrase_is_not_asked_for(server: Sshd) -> None:
    (server.home / ".ssh/id_ed25519").unlink()
    keygen(server.home / ".ssh/id_ed25519", "ed25519", passphrase="secret")
    with pytest.raises(SshRefused, match="no key was found"):
        connect(server)


def test_garbage_in_a_key_file(server: Sshd) -> None:
    (server.home / ".ssh/id_ed25519").write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\ngarbage\n\xff")
    with pytest.raises(SshRefused, match="no key was found"):
        connect(server)


@pytest.fixture
def agent(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """An agent that holds the key, which is in no file any more; with another key in front of it."""
    path = server.home / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        keygen(server.home / "decoy", "ecdsa")
        key = server.home / ".ssh/id_ed25519"
        subprocess.run(["ssh-add", "-q", server.home / "decoy", key], check=True)
        subprocess.run(["ssh-keygen", "-y", "-f", key], check=True, stdout=(server.home / "mine.pub").open("w"))
        key.unlink()
        yield server
    finally:
        process.terminate()
        process.wait()


def test_agent(agent: Sshd) -> None:
    connect(agent).close()


def test_agent_is_told_which_key(agent: Sshd) -> None:
    configure(agent, f"IdentitiesOnly yes\nIdentityFile {agent.home}/mine\n")
    connect(agent).close()
    configure(agent, f"IdentitiesOnly yes\nIdentityFile {agent.home}/decoy\n")
    with pytest.raises(SshRefused):
        connect(agent)


def test_agent_is_left_alone(agent: Sshd) -> None:
    configure(agent, "IdentityAgent none\n")
    with pytest.raises(SshRefused, match="no key was found"):
        connect(agent)


def test_agent_that_does_not_answer(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(server.home / "absent"))
    connect(server).close()


def test_server_that_takes_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sshd(tmp_path, "PubkeyAuthentication no", "PasswordAuthentication yes", "PermitRootLogin yes") as server:
        at_home(server.home, monkeypatch)
        server.know()
        with pytest.raises(SshRefused, match="accepts no keys, only password"):
            connect(server)
