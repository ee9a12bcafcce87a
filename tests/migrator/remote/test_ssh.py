# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH against a real sshd: how a program there is talked to, and what that costs."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import gc
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.loopback_sshd import Sshd
from migrator.errors.connection import ConnectionLost, RemoteMissing
from migrator.remote import ssh
from migrator.remote.destination import parse
from migrator.transfer.messages import Transfer
from migrator.transfer.rpc import Connection
from migrator.transfer.sender import SourceFile, send_files
from tests.migrator.remote.ssh_sessions import LIMIT, ROOT, at_home, connect, output, says, server, shared  # noqa: F401 -- fixtures

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
