# SPDX-License-Identifier: GPL-2.0-or-later
"""A session with a real sshd, under a home directory of the test's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.loopback_sshd import Sshd
from migrator.remote import ssh, ssh_config
from migrator.remote.destination import parse
from migrator.remote.ssh import Session
from migrator.transfer.stream import ByteStream

LIMIT = 300.0  # seconds; nothing here should ever take that long, also where the machine stands still for a while
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd"), "AcceptEnv PYTHONPATH") as server:
        yield server


@pytest.fixture
def server(shared: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sshd:
    """The shared server, known, under a home directory of this test's own."""
    shared.home = tmp_path / "home"
    (shared.home / ".ssh").mkdir(parents=True, mode=0o700)
    shutil.copy(shared.folder / "home/.ssh/id_ed25519", shared.home / ".ssh")
    shared.know()
    at_home(shared.home, monkeypatch)
    return shared


def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(ssh_config, "SYSTEM_CONFIG", home / "ssh_config")
    monkeypatch.setattr(ssh_config, "SYSTEM_KNOWN_HOSTS", (home / "ssh_known_hosts",))


def connect(where: str | Sshd, *, accept: bool = False, timeout: float = LIMIT) -> Session:
    text = where.destination if isinstance(where, Sshd) else where
    session = ssh.connect(parse(text), accept_new_host_key=accept, timeout=timeout)
    session.user = "root"  # no sudo, whoever runs the tests
    return session


def configure(server: Sshd, text: str) -> None:
    (server.home / ".ssh/config").write_text(text)


def output(stream: ByteStream) -> bytes:
    stream.settimeout(LIMIT)
    found = bytearray()
    view = memoryview(bytearray(65536))
    while count := stream.readinto(view):
        found += view[:count]
    return bytes(found)


def says(session: Session, *argv: str) -> str:
    return output(session.serve(argv)).decode()
