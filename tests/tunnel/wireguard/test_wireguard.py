# SPDX-License-Identifier: GPL-2.0-or-later
"""WireGuard in a program of its own, and which of the back ends is taken."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from migrator.base import process_id
from tests.tunnel.wireguard.secret_keys import NAME, PRESHARED, PRIVATE, PUBLIC, shows_a_secret
from tests.tunnel.wireguard.uapi_socket import ANSWER, answering, sockets  # noqa: F401 -- a fixture
from tunnel.tunnel_errors import WireGuardFailed, WireGuardMissing
from tunnel.wireguard import picker, uapi, userspace
from tunnel.wireguard.common import Backend
from tunnel.wireguard.kernel import Kernel
from tunnel.wireguard.userspace import Userspace


def test_userspace_asks_its_socket(sockets: Path) -> None:
    with answering(sockets, lambda request: ANSWER if request == uapi.GET else b"errno=0\n\n") as asked:
        Userspace().set_peer(NAME, PUBLIC, PRESHARED, ("203.0.113.5", 40001), "fd00::2/128", 15)
        Userspace().set_endpoint(NAME, PUBLIC, ("203.0.113.6", 40002))
        assert Userspace().stats(NAME) == uapi.parse_stats(ANSWER)
    assert asked == [
        uapi.set_peer(PUBLIC, PRESHARED, ("203.0.113.5", 40001), "fd00::2/128", 15),
        uapi.set_endpoint(PUBLIC, ("203.0.113.6", 40002)),
        uapi.GET,
    ]


@pytest.mark.parametrize(("answer", "reason"), [
    (b"errno=-98\n\n", "Address already in use"),
    (b"", "timed out"),
    (b"errno=0\n", "broke off its answer"),
    (b"nonsense\n\n", "an invalid answer"),
    (b"a" * (uapi.ANSWER_MAX + 1), "broke off its answer"),
])  # fmt: skip
def test_userspace_reports_what_goes_wrong_and_no_key(sockets: Path, answer: bytes, reason: str) -> None:
    with answering(sockets, lambda _: answer), pytest.raises(WireGuardFailed, match=reason) as caught:
        Userspace(600.0 if answer else 0.1).set_peer(NAME, PUBLIC, PRESHARED, None, "fd00::2/128", 15)
    assert not shows_a_secret(f"{caught.value} {caught.value.to_json()}")


def test_userspace_reports_that_nobody_listens(sockets: Path) -> None:
    with pytest.raises(WireGuardFailed, match="cannot be asked"):
        Userspace().stats(NAME)
    (sockets / f"{NAME}.sock").touch()  # no socket at all
    with pytest.raises(WireGuardFailed, match="cannot be asked"):
        Userspace().stats(NAME)


def test_wireguard_go_is_started_without_secrets_and_what_it_says_is_told(
    sockets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "wireguard-go"
    program.write_text("#!/bin/sh\necho ERROR: no tun; tr '\\0' '\\n' </proc/$$/environ\n"
                       "tr '\\0' ' ' </proc/$$/cmdline; head -c 200000 /dev/zero | tr '\\0' x; exit 3\n")  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setattr(userspace, "ENVIRONMENT", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("A_SECRET_OF_OURS", "hush")
    started: list[int] = []
    said = []

    def logged(log: int) -> str:
        said.append(os.pread(log, 1 << 20, 0).decode())
        return ""

    monkeypatch.setattr(userspace, "_logged", logged)
    with pytest.raises(WireGuardFailed, match="ended at its start"):
        Userspace().create(NAME, PRIVATE, 40000, started=started.append)
    assert len(started) == 1
    assert "ERROR: no tun" in said[0] and "WG_PROCESS_FOREGROUND=1" in said[0] and f"-f {NAME}" in said[0]
    assert "hush" not in said[0] and not shows_a_secret(said[0])
    assert len(said[0]) == 64 * 1024  # it can go on for ever and take no more


# --- Which one ---


def fake(kind: str, problem: str) -> type[Backend]:
    return type(kind, (), {"kind": kind, "why_not": lambda _self: problem})


def test_the_first_that_the_system_grants_is_taken() -> None:
    assert picker.choose([fake("kernel", ""), fake("userspace", "")]).backend.kind == "kernel"
    second = picker.choose([fake("kernel", "no module"), fake("userspace", "")])
    assert (second.backend.kind, second.reason) == ("userspace", "kernel: no module")
    with pytest.raises(WireGuardMissing, match="kernel: no module; userspace: not installed"):
        picker.choose([fake("kernel", "no module"), fake("userspace", "not installed")])
    assert isinstance(picker.named("kernel"), Kernel) and isinstance(picker.named("userspace"), Userspace)


@pytest.mark.parametrize(("version", "fast"), [
    ("0.0.20260522-1", True), ("0.0.20231211-1", True), ("0.0.20230223-1", False), ("0.0.20220316-1+b4", False),
    ("1.2.3", True), ("0.0.20230223-1ubuntu0.24.04.3", False),
])  # fmt: skip
def test_package_versions(version: str, fast: bool) -> None:
    assert picker.is_fast(version) == fast


def test_an_old_package_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, count in (("0.0.20230223-1", 1), ("0.0.20260522-1", 0), ("", 0)):
        monkeypatch.setattr(picker, "package_version", lambda version=version: version)
        assert len(picker.warnings(Userspace())) == count
        assert picker.warnings(Kernel()) == []


def test_no_dpkg_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise process_id.ProgramFailed("the program dpkg-query is not installed")

    monkeypatch.setattr(process_id, "run", missing)
    assert picker.package_version() == ""


def test_userspace_asks_for_program_and_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_id, "which", lambda _: None)
    assert "not installed" in Userspace().why_not()
    monkeypatch.setattr(process_id, "which", lambda _: "/usr/bin/wireguard-go")
    monkeypatch.setattr(userspace, "TUN", tmp_path / "tun")
    assert "No such file" in Userspace().why_not()
    (tmp_path / "tun").touch()
    assert Userspace().why_not() == ""


def test_popen_is_the_only_way_that_wireguard_go_is_started(monkeypatch: pytest.MonkeyPatch, sockets: Path) -> None:
    class Refused(Exception):
        pass

    def popen(argv: list[str], **settings: Any) -> None:
        assert argv == ["wireguard-go", "-f", NAME]
        assert settings["start_new_session"] and settings["stdin"] == subprocess.DEVNULL
        assert set(settings["env"]) == {"PATH", "LC_ALL", "WG_PROCESS_FOREGROUND", "LOG_LEVEL"}
        raise Refused

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(Refused):
        Userspace().create(NAME, PRIVATE, 40000)
