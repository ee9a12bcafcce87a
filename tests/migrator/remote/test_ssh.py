# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH against a real sshd: whom we believe, whom it lets in, and how a program there is talked to."""

from __future__ import annotations

import base64
import errno
import gc
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.loopback_sshd import Sshd, keygen
from migrator.base.run import Completed
from migrator.errors import Interrupted
from migrator.errors.connection import (
    ConnectionLost,
    DestinationInvalid,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    RemoteMissing,
    SshRefused,
)
from migrator.remote import known_hosts, ssh, ssh_config, tcp
from migrator.remote.destination import Destination, parse
from migrator.remote.ssh import Session
from migrator.transfer.messages import Transfer
from migrator.transfer.rpc import Connection
from migrator.transfer.sender import SourceFile, send_files
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


# --- Whom we believe ---


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


# --- ~/.ssh/config ---


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


# --- Whom it lets in ---


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


# --- Whom we cannot reach ---


def test_nobody_listens(server: Sshd) -> None:
    with pytest.raises(HostUnreachable, match="refused") as caught:
        connect(f"{server.user}@127.0.0.1:1")
    assert caught.value.hint.endswith(f"ssh -v ssh://{server.user}@127.0.0.1:1")
    assert not caught.value.silent, "something there has refused it"


def no_route() -> OSError:
    return OSError(errno.EHOSTUNREACH, "No route to host")


@pytest.mark.parametrize(("errors", "on_link", "silent"), [
    ([TimeoutError()], "", True),
    ([no_route()], "10.0.0.1 dev eth0 FAILED\n", True),  # this host has asked for it on its own link
    ([no_route()], "", False),  # it may be a firewall's answer
    ([no_route()], "10.0.0.1 dev eth0 lladdr 02:00:00:00:00:01 REACHABLE\n", False),  # the host's own firewall
    ([ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), TimeoutError()], "", False),
    ([TimeoutError(), ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")], "", False),
    ([TimeoutError(), TimeoutError()], "", True),
])
def test_what_comes_back_from_all_addresses(server: Sshd, monkeypatch: pytest.MonkeyPatch, errors: list[OSError],
                                            on_link: str, silent: bool) -> None:
    """A machine that refuses at its one address is alive, however silent it is at another."""
    left = list(errors)

    def create_connection(*_: object) -> None:
        raise left.pop(0)

    def neighbours(argv: list[str], **_: object) -> object:
        assert argv[:2] == ["ip", "neighbour"]
        return Completed((*argv,), 0, on_link.encode(), b"", 0.0)

    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.0.{number}", 22)) for number in range(len(errors))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr("socket.create_connection", create_connection)
    monkeypatch.setattr(tcp, "run", neighbours)
    with pytest.raises(HostUnreachable) as caught:
        connect("backup")
    assert left == [], "each was tried"
    assert caught.value.silent is silent
    assert caught.value.answered is any(isinstance(error, ConnectionRefusedError) for error in errors)


@pytest.mark.parametrize("config", ["ProxyJump 127.0.0.1:1", "ProxyCommand exit 1"])
def test_a_way_there_that_is_broken_says_nothing_of_the_host(server: Sshd, monkeypatch: pytest.MonkeyPatch,
                                                             config: str) -> None:
    def create_connection(*_: object) -> None:
        raise TimeoutError

    (server.home / ".ssh" / "config").write_text(f"Host backup\n  {config}\n")
    monkeypatch.setattr("socket.create_connection", create_connection)
    with pytest.raises(HostUnreachable) as caught:
        connect("backup")
    assert not caught.value.silent


def test_name_that_is_unknown(server: Sshd) -> None:
    with pytest.raises(HostUnreachable, match="cannot be resolved"):
        connect("no-such-host.invalid")


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-silent\r\n"])
def test_host_that_says_nothing(server: Sshd, greeting: bytes) -> None:
    def answer() -> None:
        peers.append(listener.accept()[0])
        peers[0].sendall(greeting)

    peers: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(HostUnreachable):
            connect(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.2)
        thread.join()
    peers[0].close()


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 10_000, b"SSH-1.5-old\r\n", b""])
def test_something_else_listens(server: Sshd, greeting: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    def answer() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(greeting)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(HostUnreachable):
            connect(f"127.0.0.1:{listener.getsockname()[1]}", timeout=2)
    assert capfd.readouterr().err == ""  # paramiko would print tracebacks


def test_peers_need_the_tunnel() -> None:
    with pytest.raises(DestinationInvalid, match="attic"):
        connect("peer:attic")


# --- A program there ---


def test_arguments_arrive_as_they_are(server: Sshd) -> None:
    words = ["a b", "", "$HOME", "`id`", "it's", 'quote"', "*", ";", "\n", "ü", "-n", "\\"]
    with connect(server) as session:
        assert says(session, "printf", "%s|", *words) == "".join(f"{word}|" for word in words)


def test_both_directions_and_end(server: Sshd) -> None:
    with connect(server) as session:
        stream = session.serve(["head", "-c", "1000000"])
        data = os.urandom(1_000_000)
        threading.Thread(target=stream.write, args=(data[:10], data[10:20], data[20:])).start()
        assert output(stream) == data


def test_several_programs_at_once(server: Sshd) -> None:
    with connect(server) as session:
        streams = [session.serve(["echo", str(number)]) for number in range(5)]
        assert [output(stream) for stream in streams] == [b"%d\n" % number for number in range(5)]


@pytest.mark.parametrize("argv", [["no-such-program"], ["/no/such/program"], ["/etc"]])
def test_missing_program(server: Sshd, argv: list[str]) -> None:
    with connect(server) as session, pytest.raises(RemoteMissing, match=re.escape(argv[0])):
        output(session.serve(argv))


def test_missing_program_found_when_writing(server: Sshd) -> None:
    with connect(server) as session:
        stream = session.serve(["no-such-program"])
        stream.settimeout(LIMIT)
        with pytest.raises(RemoteMissing):
            for _ in range(1000):
                stream.write(bytes(100_000))


def test_missing_program_seen_by_a_connection(server: Sshd) -> None:
    with connect(server) as session:
        connection = Connection(session.serve(["migratr", "serve"]))
        with pytest.raises(RemoteMissing, match="migratr"):
            connection.hello()


def test_program_that_fails(server: Sshd) -> None:
    with connect(server) as session:
        stream = session.serve(["sh", "-c", "yes noise | head -c 100000 >&2; echo the end >&2; exit 3"])
        with pytest.raises(ConnectionLost, match=r"(?s)exit status 3: .*the end") as caught:
            output(stream)
        assert len(str(caught.value)) < 5000


def test_program_that_is_killed(server: Sshd) -> None:
    with connect(server) as session, pytest.raises(ConnectionLost):
        output(session.serve(["sh", "-c", "kill -9 $$"]))


def test_login_that_is_not_root_uses_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    with Sshd(tmp_path / "sshd", f"SetEnv PATH={tools}:/usr/bin:/bin HOME={tmp_path}") as server:
        at_home(server.home, monkeypatch)
        server.know()
        with connect(server) as session:
            session.user = "operator"
            with pytest.raises(RemoteMissing):  # no sudo there
                output(session.serve(["echo", "hello"]))
            (tools / "sudo").write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
            (tools / "sudo").chmod(0o755)
            assert says(session, "echo", "hello") == "-n -- echo hello\n"
            (tools / "sudo").write_text("#!/bin/sh\necho sudo: a password is required >&2; exit 1\n")
            with pytest.raises(RemoteMissing, match="a password is required"):
                output(session.serve(["echo", "hello"]))


def test_silent_program(server: Sshd) -> None:
    with connect(server) as session:
        stream = session.serve(["sh", "-c", "echo $$; exec sleep infinity"])
        pid = b""
        while not pid.endswith(b"\n"):
            one = bytearray(1)
            assert stream.readinto(memoryview(one)) == 1
            pid += one
        stream.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stream.readinto(memoryview(bytearray(1)))
        with pytest.raises(TimeoutError):
            stream.write(bytes(20_000_000))
        os.kill(int(pid), signal.SIGKILL)  # which sshd would leave behind


class Channel:
    """A channel that takes nothing `rounds` times for as long as it is waited for, while `said` comes from there."""

    def __init__(self, rounds: int, said: bytes) -> None:
        self.rounds = rounds
        self.said = said
        self.taken = b""
        self.stream: ssh.SshStream

    def recv(self, _size: int) -> bytes:
        return self.said

    def recv_stderr_ready(self) -> bool:
        return False

    def send(self, data: memoryview) -> int:
        if self.rounds:
            self.rounds -= 1
            if self.said:
                assert self.stream.readinto(memoryview(bytearray(9))) == len(self.said)
            raise TimeoutError
        self.taken += data[:5000]
        return len(data[:5000])


def test_busy_program() -> None:
    """It takes nothing for longer than the limit, but says now and then that it is there."""
    data = os.urandom(20_000)
    for said in (b"busy\n", b""):
        channel: Any = Channel(7, said)
        channel.stream = ssh.SshStream(channel, parse("hostb"))
        if said:
            channel.stream.write(data[:7], data[7:])
            assert (channel.rounds, channel.taken) == (0, data)
        else:
            with pytest.raises(TimeoutError):
                channel.stream.write(data)


def test_server_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sshd(tmp_path) as server:
        at_home(server.home, monkeypatch)
        server.know()
        session = connect(server)
        stream = session.serve(["cat"])
        server.stop()
        with pytest.raises(ConnectionLost):
            output(stream)
        with pytest.raises(ConnectionLost):
            stream.write(bytes(10_000_000))
        with pytest.raises(ConnectionLost):
            session.serve(["cat"])
        session.close()
        session.close()


def test_closing_ends_the_program(server: Sshd) -> None:
    mark = server.home / "mark"
    session = connect(server)
    stream = session.serve(["sh", "-c", f"echo; cat; echo ended > {mark}"])
    stream.settimeout(LIMIT)
    stream.readinto(memoryview(bytearray(100)))
    session.close()
    while not mark.exists():
        time.sleep(0.01)


def test_no_threads_and_descriptors_are_left(server: Sshd) -> None:
    connect(server).close()
    gc.collect()
    threads, descriptors = threading.active_count(), open_descriptors()
    for _ in range(3):
        with connect(server) as session:
            says(session, "true")
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and (threading.active_count() > threads or open_descriptors() > descriptors):
        time.sleep(0.05)
    assert threading.active_count() <= threads
    assert open_descriptors() <= descriptors


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- What it costs ---


def test_heavy_imports_wait_until_they_are_used() -> None:
    code = "import sys, migrator.remote.ssh, migrator.transfer.rpc; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"paramiko", "cryptography", "invoke"} & set(done.stdout.split())


SERVE = (
    "import sys; from pathlib import Path;"
    "from migrator.transfer import messages, rpc, serve_requests, spool, wire_codec;"
    "from migrator.transfer.stream import FileStream; c = rpc.Connection(FileStream.from_stdio()); c.hello();"
    "files = lambda f: wire_codec.decoded(messages.Transfer, f).files;"
    "serve_requests.serve(c, {'transfer': lambda f: spool.receive(Path(sys.argv[1]), files(f), durable=False)})"
)


def test_transfer_over_ssh_goes_on_while_keys_are_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(12 << 20)
    with Sshd(tmp_path / "sshd", "RekeyLimit 2M") as server:
        at_home(server.home, monkeypatch)
        server.know()
        argv = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-c", SERVE, str(tmp_path / "spool")]
        with connect(server) as session, Connection(session.serve(argv), name=server.destination) as connection:
            connection.hello()
            result = send_files(connection, Transfer(), [SourceFile("pages-1.img", io.BytesIO(data), len(data))])
    assert result.raw_bytes == len(data)
    assert (tmp_path / "spool/pages-1.img").read_bytes() == data


def test_ciphers(server: Sshd) -> None:
    with connect(server) as session:
        assert session.transport.local_cipher == "aes128-gcm@openssh.com"


def test_lookup_of_a_plain_destination(server: Sshd) -> None:
    found = ssh_config.lookup(Destination(parse("x").kind, "HostB"))
    assert (found.host, found.port, found.known_as, found.proxy_jump) == ("HostB", 22, "hostb", ())
    assert found.identity_files[0] == server.home / ".ssh/id_ed25519"


def test_known_hosts_key_is_the_servers(server: Sshd) -> None:
    (server.home / ".ssh/known_hosts").unlink()
    connect(server, accept=True).close()
    (entry,) = known_hosts.entries([server.home / ".ssh/known_hosts"], f"[127.0.0.1]:{server.port}")
    assert base64.b64encode(entry.key).decode() == (server.folder / "host_ed25519.pub").read_text().split()[1]
