# SPDX-License-Identifier: GPL-2.0-or-later
"""The other end of the userspace back end's socket, as the test would have it answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tunnel.wireguard.secret_keys import NAME, PRESHARED, PRIVATE, PUBLIC
from tunnel.wireguard import userspace

ANSWER = (
    f"private_key={PRIVATE.hex()}\nlisten_port=40000\npublic_key={PUBLIC.hex()}\npreshared_key={PRESHARED.hex()}\n"
    "protocol_version=1\nendpoint=[2001:db8::1]:33\nlast_handshake_time_sec=1700000000\n"
    "last_handshake_time_nsec=500000000\ntx_bytes=148\nrx_bytes=92\npersistent_keepalive_interval=15\n"
    "allowed_ip=fd00::2/128\nerrno=0\n\n"
).encode()


@contextlib.contextmanager
def answering(folder: Path, answer: Callable[[bytes], bytes]) -> Iterator[list[bytes]]:
    """A UAPI socket that gives `answer` to each request; yields what it was asked. An empty answer: none, for ever."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / f"{NAME}.sock"))
        server.listen()
        kept = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(connection.recv(65536))
                found = answer(asked[-1])
                if found:
                    with contextlib.suppress(OSError):
                        connection.sendall(found)
                    connection.close()
                else:
                    kept.append(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(userspace, "SOCKETS", tmp_path)
    return tmp_path
