# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH to a host that cannot be reached, or is no SSH server."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import errno
import socket
import threading

import pytest

from harness.loopback_sshd import Sshd
from migrator.base.run import Completed
from migrator.errors.connection import DestinationInvalid, HostUnreachable
from migrator.remote import tcp
from tests.migrator.remote.ssh_sessions import connect, server, shared  # noqa: F401 -- fixtures


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
