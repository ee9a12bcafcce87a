# SPDX-License-Identifier: GPL-2.0-or-later
"""A session's interface on a host that stays as it is: what the kernel and a back end are told."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from migrator.base.process_id import Process
from tunnel.interface import device, firewall, leftovers
from tunnel.wireguard import kernel, userspace
from tunnel.wireguard.common import Endpoint, Stats

SESSION = bytes(range(16))
DEAD = Process(2, 0)  # no process of ours, and none that was started at boot


@pytest.fixture
def removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What has been removed of this host, which stays as it is."""
    found: list[str] = []
    monkeypatch.setattr(leftovers, "RUN", tmp_path / "run" / "tunnel")
    monkeypatch.setattr(firewall, "remove", lambda name: found.append(f"table {name}"))
    monkeypatch.setattr(userspace.Userspace, "remove", lambda _, name: found.append(f"server {name}"))
    monkeypatch.setattr(Process, "end", lambda _: None)
    monkeypatch.setattr(kernel.Kernel, "remove", lambda _, name: found.append(f"interface {name}"))
    return found  # type: ignore[return-value]


ALL = ["server mig-00010203", "interface mig-00010203", "table mig-00010203"]


@dataclasses.dataclass(frozen=True)
class Keys:
    session: bytes = SESSION
    private_key: bytes = b"\xab" * 32
    peer_public: bytes = bytes(32)
    preshared: bytes = b"\xcd" * 32


@dataclasses.dataclass(frozen=True)
class Path_:
    endpoint: Endpoint = ("127.0.0.1", 40001)
    local_port: int = 40002


class FakeBackend:
    """A back end that writes down what it is told; `fail` is raised by `create`, `hold` is waited for there."""

    kind: ClassVar[str] = "userspace"

    def __init__(self, fail: Exception | None = None, hold: threading.Event | None = None) -> None:
        self.told: list[str] = []
        self.endpoint: Endpoint | None = None
        self.last_handshake = 0.0
        self._fail = fail
        self._hold = hold

    def why_not(self) -> str:
        return ""

    def create(self, name: str, private_key: bytes, listen_port: int, *,
               started: Callable[[int], None] = lambda _: None) -> None:
        (record,) = leftovers.records()
        assert record.is_owned()  # it is on file before anything is made
        started(os.getpid())
        (record,) = leftovers.records()
        assert record.server == Process.current()
        if self._hold:
            self.told.append("create begins")
            self._hold.wait()
        if self._fail:
            raise self._fail
        self.told.append(f"create {name} {listen_port}")

    def set_peer(self, name: str, public_key: bytes, preshared: bytes, endpoint: Endpoint | None, allowed_ip: str,
                 keepalive: int) -> None:
        self.told.append(f"peer {endpoint} {allowed_ip} {keepalive}")

    def set_endpoint(self, name: str, public_key: bytes, endpoint: Endpoint) -> None:
        self.told.append(f"endpoint {endpoint}")
        self.endpoint = endpoint

    def set_keepalive(self, name: str, public_key: bytes, seconds: int) -> None:
        self.told.append(f"keepalive {seconds}")

    def stats(self, name: str) -> Stats:
        return Stats(self.last_handshake, 0, 0, self.endpoint)

    def remove(self, name: str) -> None:
        self.told.append(f"remove {name}")


class Links:
    """What is asked of the kernel."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, kind: str) -> Callable[..., None]:
        return lambda command, **settings: self.asked.append((f"{kind} {command}", settings))


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch, removed: list[str]) -> Links:
    """A host in which everything can be made and nothing is."""
    found = Links()

    @contextlib.contextmanager
    def netlink(_name: str) -> Iterator[tuple[Links, int]]:
        yield found, 7

    monkeypatch.setattr(device, "_netlink", netlink)
    monkeypatch.setattr(device, "_check_ports", lambda _: None)
    monkeypatch.setattr(firewall, "add", lambda rules: found.asked.append(("firewall", {"rules": rules})))
    return found
