# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH against a real sshd: what ~/.ssh/config says of the way there."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.loopback_sshd import Sshd
from migrator.errors import Interrupted
from migrator.errors.connection import HostKeyUnknown, HostUnreachable, SshRefused
from migrator.remote import ssh_config
from migrator.remote.destination import Destination, parse
from tests.migrator.remote.ssh_sessions import ROOT, configure, connect, says, server, shared  # noqa: F401 -- fixtures


def test_host_entry(server: Sshd) -> None:
    (server.home / ".ssh/id_ed25519").rename(server.home / "a key")
    (server.home / ".ssh/known_hosts").rename(server.home / "known")
    configure(server, f"""
        Host else
            Port 1
        Host backup
            HostName 127.0.0.1
            Port {server.port}
            User {server.user}
            IdentityFile "{server.home}/a key"
            IdentitiesOnly yes
            UserKnownHostsFile {server.home}/known
            ConnectTimeout 15
        Host *
            User nobody
    """)
    with connect("backup") as session:
        assert says(session, "echo", "hello") == "hello\n"
    with pytest.raises(HostUnreachable, match="refused"):
        connect("backup:1")  # the destination's own port comes first
    with pytest.raises(SshRefused, match="as no-such-user"):
        connect("no-such-user@backup")


def test_included_files(server: Sshd) -> None:
    (server.home / ".ssh/config.d").mkdir()
    (server.home / ".ssh/config.d/one.conf").write_text(f"Host backup\n HostName 127.0.0.1\n Port {server.port}\n")
    (server.home / ".ssh/config.d/loop.conf").write_text("Include config.d/loop.conf\n")
    configure(server, f"Include config.d/*.conf /nowhere/*\nUser {server.user}\n")
    connect("backup").close()


def test_system_wide_configuration(server: Sshd) -> None:
    (server.home / "ssh_config").write_text(f"Host backup\n HostName 127.0.0.1\n Port {server.port}\n")
    connect(f"{server.user}@backup").close()


def test_host_key_alias(server: Sshd) -> None:
    path = server.home / ".ssh/known_hosts"
    path.write_text(path.read_text().replace(f"[127.0.0.1]:{server.port}", "the-backup"))
    configure(server, "HostKeyAlias the-backup\n")
    connect(server).close()


def test_unintelligible_configuration(server: Sshd) -> None:
    configure(server, "Host\n")
    with pytest.raises(HostUnreachable, match="configuration"):
        connect(server)


def test_a_signal_while_the_configuration_is_read_is_no_error_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise Interrupted(signal="SIGINT", number=2)

    monkeypatch.setattr("paramiko.config.SSHConfig.lookup", interrupted)
    with pytest.raises(Interrupted):
        ssh_config.lookup(Destination(parse("x").kind, "hostb"))


def test_match_exec(server: Sshd) -> None:
    """In a process of its own: paramiko needs a package for it that is otherwise not loaded."""
    configure(server, 'Match exec "test %h = backup"\n'
                      f" HostName 127.0.0.1\n Port {server.port}\n User {server.user}\n")
    code = (
        "from pathlib import Path; from migrator.remote import ssh, ssh_config;"
        "from migrator.remote.destination import parse;"
        "ssh_config.SYSTEM_CONFIG = Path('/nonexistent');"
        "ssh.connect(parse('backup'), accept_new_host_key=False, timeout=300).close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_proxy_command(server: Sshd) -> None:
    relay = server.home / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def out():\n"
        "    while d := s.recv(65536): os.write(1, d)\n"
        "threading.Thread(target=out, daemon=True).start()\n"
        "while d := os.read(0, 65536): s.sendall(d)\n"
    )
    configure(server, f"Host backup\n HostName 127.0.0.1\n Port {server.port}\n User {server.user}\n"
                      f" ProxyCommand {sys.executable} {relay} %h %p\n")
    with connect("backup") as session:
        assert says(session, "echo", "through", "it") == "through it\n"
        (relay_pid,) = _children_with("relay.py")
    assert not Path(f"/proc/{relay_pid}").exists()


def _children_with(word: str) -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            if word in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
    return found


def test_proxy_command_that_fails(server: Sshd) -> None:
    configure(server, "ProxyCommand false\n")
    with pytest.raises(HostUnreachable) as caught:
        connect(server)
    assert "no answer within" not in str(caught.value), "its end is noticed"


@pytest.mark.parametrize("jumps", ["first", "first,second"])
def test_proxy_jump(server: Sshd, jumps: str) -> None:
    configure(server, f"""
        Host first second backup
            HostName 127.0.0.1
            Port {server.port}
            User {server.user}
        Host backup
            ProxyJump {jumps}
    """)
    before = (server.folder / "log").read_text().count("Accepted publickey")
    with connect("backup") as session:
        assert says(session, "echo", "hello") == "hello\n"
    assert (server.folder / "log").read_text().count("Accepted publickey") == before + 2 + jumps.count(",")


def test_jump_host_that_is_gone(server: Sshd) -> None:
    """To close what went through it is no error."""
    configure(server, f"Host first backup\n HostName 127.0.0.1\n Port {server.port}\n User {server.user}\n"
                      "Host backup\n ProxyJump first\n")
    session = connect("backup")
    through: Any = session.transport.sock
    through.transport.sock.close()  # before paramiko has noticed
    session.close()


def test_jump_host_that_is_not_known(server: Sshd) -> None:
    configure(server, f"Host first\n HostName 127.0.0.1\n Port {server.port}\n HostKeyAlias stranger\n"
                      f"Host backup\n HostName 127.0.0.1\n Port {server.port}\n ProxyJump first\n")
    with pytest.raises(HostKeyUnknown, match="first"):
        connect("backup")


def test_jumping_in_circles(server: Sshd) -> None:
    configure(server, "Host a\n ProxyJump b\nHost b\n ProxyJump a\n")
    with pytest.raises(HostUnreachable, match="too many"):
        connect("a")


def test_lookup_of_a_plain_destination(server: Sshd) -> None:
    found = ssh_config.lookup(Destination(parse("x").kind, "HostB"))
    assert (found.host, found.port, found.known_as, found.proxy_jump) == ("HostB", 22, "hostb", ())
    assert found.identity_files[0] == server.home / ".ssh/id_ed25519"
