# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH against a real sshd: whom we believe."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from harness.loopback_sshd import Sshd, keygen
from migrator.errors.connection import HostKeyChanged, HostKeyUnknown
from migrator.remote import known_hosts
from tests.migrator.remote.ssh_sessions import LIMIT, at_home, configure, connect, says, server, shared  # noqa: F401 -- fixtures


def shown_fingerprint(server: Sshd, kind: str) -> str:
    command = ["ssh-keygen", "-lf", str(server.folder / f"host_{kind}.pub")]
    return str(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1])


def test_known_host(server: Sshd) -> None:
    with connect(server) as session:
        assert says(session, "echo", "hello") == "hello\n"
        ways = session.transport
        assert [ways.banner_timeout, ways.handshake_timeout, ways.auth_timeout] == [LIMIT] * 3  # instead of its own


def test_hashed_known_hosts(server: Sshd) -> None:
    server.know(hashed=True)
    connect(server).close()


def test_unknown_host(server: Sshd) -> None:
    (server.home / ".ssh/known_hosts").unlink()
    with pytest.raises(HostKeyUnknown) as caught:
        connect(server)
    assert shown_fingerprint(server, "ed25519") in caught.value.message
    assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in caught.value.hint
    assert "--accept-new-host-key" in caught.value.hint
    assert not (server.home / ".ssh/known_hosts").exists()


@pytest.mark.parametrize("config, hashed", [("", False), ("HashKnownHosts yes\n", True)])
def test_new_host_is_accepted_once(server: Sshd, capsys: pytest.CaptureFixture[str], config: str, hashed: bool) -> None:
    configure(server, config)
    path = server.home / ".ssh/known_hosts"
    path.unlink()
    connect(server, accept=True).close()
    assert shown_fingerprint(server, "ed25519") in capsys.readouterr().err
    assert path.read_text().startswith("|1|") == hashed
    connect(server, accept=True).close()
    connect(server).close()
    assert len(path.read_text().splitlines()) == 1
    # ssh itself believes it too
    subprocess.run([*server.ssh, "true"], check=True)


@pytest.mark.parametrize("accept", [False, True])
def test_changed_key(server: Sshd, accept: bool) -> None:
    path = server.home / ".ssh/known_hosts"
    keygen(server.home / "other", "ed25519")
    path.write_text(f"[127.0.0.1]:{server.port} {(server.home / 'other.pub').read_text()}")
    before = path.read_text()
    with pytest.raises(HostKeyChanged) as caught:
        connect(server, accept=accept)
    assert shown_fingerprint(server, "ed25519") in caught.value.message
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in caught.value.hint
    assert path.read_text() == before


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_host_is_judged_by_the_key_that_is_known(server: Sshd, kind: str) -> None:
    server.know(kind)
    connect(server).close()


def test_key_of_another_type_only_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sshd(tmp_path, host_keys=("ed25519",)) as server:
        at_home(server.home, monkeypatch)
        server.make_host_key("ecdsa")
        server.know("ecdsa")
        with pytest.raises(HostKeyChanged, match="ED25519"):
            connect(server, accept=True)


def test_global_known_hosts(server: Sshd) -> None:
    (server.home / ".ssh/known_hosts").rename(server.home / "ssh_known_hosts")
    connect(server).close()


def test_nobody_is_asked_to_log_in_before_the_host_is_known(server: Sshd) -> None:
    (server.home / ".ssh/known_hosts").unlink()
    before = (server.folder / "log").read_text().count("Accepted publickey")
    with pytest.raises(HostKeyUnknown):
        connect(server)
    assert (server.folder / "log").read_text().count("Accepted publickey") == before


def test_known_hosts_key_is_the_servers(server: Sshd) -> None:
    (server.home / ".ssh/known_hosts").unlink()
    connect(server, accept=True).close()
    (entry,) = known_hosts.entries([server.home / ".ssh/known_hosts"], f"[127.0.0.1]:{server.port}")
    assert base64.b64encode(entry.key).decode() == (server.folder / "host_ed25519.pub").read_text().split()[1]
