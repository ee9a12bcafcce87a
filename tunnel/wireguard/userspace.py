# SPDX-License-Identifier: GPL-2.0-or-later
"""The userspace back end: one wireguard-go process per interface, controlled over its UAPI socket.

Keys pass only through that socket, which only root can reach: neither the program's arguments nor its environment
contain anything secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from migrator.base import process_id
from migrator.base.process_id import ENVIRONMENT
from tunnel.tunnel_errors import WireGuardFailed
from tunnel.wireguard import uapi
from tunnel.wireguard.common import Endpoint, Stats, ignore

PROGRAM = "wireguard-go"
SOCKETS = Path("/var/run/wireguard")  # compiled into wireguard-go
TUN = Path("/dev/net/tun")

START_LIMIT = 5.0  # seconds until it answers
ANSWER_LIMIT = 5.0  # seconds for one request
_PAUSE = 0.005  # seconds between two tries to ask it
_LOG_SIZE = 64 * 1024  # bytes
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}  # children of this process, to be waited for


def command(name: str) -> list[str]:
    """How an interface's wireguard-go is started, and told apart from all others."""
    return [PROGRAM, "-f", name]


def socket_path(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


class Userspace:
    """wireguard-go."""

    kind: ClassVar[str] = "userspace"

    def __init__(self, answer_limit: float = ANSWER_LIMIT) -> None:
        self._answer_limit = answer_limit

    def why_not(self) -> str:
        if process_id.which(PROGRAM) is None:
            return f"the program {PROGRAM} is not installed"
        try:
            # Opened without naming an interface, the device creates none: this only asks whether it could.
            os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return f"{TUN}: {error.strerror}"
        return ""

    def create(self, name: str, private_key: bytes, listen_port: int, *,
               started: Callable[[int], None] = ignore) -> None:
        socket_path(name).unlink(missing_ok=True)
        with _log() as log:
            try:
                process = subprocess.Popen(
                    command(name),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=ENVIRONMENT | {"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"},
                    cwd="/",
                    start_new_session=True,  # a Ctrl-C or hang-up of our terminal is for us to act on
                )
            except OSError as error:
                raise WireGuardFailed(name=name, reason=f"{PROGRAM}: {error.strerror}") from None
            _CHILDREN[process.pid] = process
            started(process.pid)
            self._wait_until_it_answers(name, process, log)
        self._set(name, uapi.set_device(private_key, listen_port))

    def set_peer(self, name: str, public_key: bytes, preshared: bytes, endpoint: Endpoint | None, allowed_ip: str,
                 keepalive: int) -> None:
        self._set(name, uapi.set_peer(public_key, preshared, endpoint, allowed_ip, keepalive))

    def set_endpoint(self, name: str, public_key: bytes, endpoint: Endpoint) -> None:
        self._set(name, uapi.set_endpoint(public_key, endpoint))

    def set_keepalive(self, name: str, public_key: bytes, seconds: int) -> None:
        self._set(name, uapi.set_keepalive(public_key, seconds))

    def stats(self, name: str) -> Stats:
        answer = self._ask(name, uapi.GET)
        try:
            found = uapi.parse_stats(answer)
        except uapi.BadAnswer as error:
            raise _bad(name, error) from None
        if found is None:
            raise WireGuardFailed(name=name, reason="it has no peer")
        return found

    def remove(self, name: str) -> None:
        for process in list(process_id.with_command(command(name))):
            process.end()
        for pid, child in list(_CHILDREN.items()):
            if child.poll() is not None:  # this also reaps the zombie
                del _CHILDREN[pid]
        # The interface goes with the process that held its descriptor; what is left is a file that nobody listens on.
        socket_path(name).unlink(missing_ok=True)

    def _wait_until_it_answers(self, name: str, process: subprocess.Popen[bytes], log: int) -> None:
        for _ in range(round(START_LIMIT / _PAUSE)):  # counted: a process that was held up has not waited
            if process.poll() is not None:
                raise WireGuardFailed(name=name, reason=f"{PROGRAM} ended at its start: {_logged(log)}")
            with contextlib.suppress(OSError, WireGuardFailed):
                self._ask(name, uapi.GET)
                return
            time.sleep(_PAUSE)
        raise WireGuardFailed(name=name, reason=f"{PROGRAM} did not answer within {START_LIMIT:g} s: {_logged(log)}")

    def _set(self, name: str, request: bytes) -> None:
        try:
            problem = uapi.check_answer(self._ask(name, request))
        except uapi.BadAnswer as error:
            raise _bad(name, error) from None
        if problem:
            raise WireGuardFailed(name=name, reason=f"{PROGRAM} refused it: {problem}")

    def _ask(self, name: str, request: bytes) -> bytes:
        """One request on a connection of its own: after one that it refuses, wireguard-go reads no more from it."""
        end = time.monotonic() + self._answer_limit
        try:
            with socket.socket(socket.AF_UNIX) as uapi_socket:
                uapi_socket.settimeout(self._answer_limit)
                uapi_socket.connect(str(socket_path(name)))
                uapi_socket.sendall(request)
                answer = bytearray()
                while not uapi.is_complete(answer):
                    uapi_socket.settimeout(max(0.001, end - time.monotonic()))
                    piece = uapi_socket.recv(uapi.ANSWER_MAX)
                    answer += piece
                    if not piece or len(answer) > uapi.ANSWER_MAX:
                        raise WireGuardFailed(name=name, reason=f"{PROGRAM} broke off its answer")
                return bytes(answer)
        except OSError as error:
            raise WireGuardFailed(name=name, reason=f"{PROGRAM} cannot be asked: {error.strerror or error}") from None


def _bad(name: str, error: uapi.BadAnswer) -> WireGuardFailed:
    return WireGuardFailed(name=name, reason=f"{PROGRAM} gave an invalid answer: {error}")


@contextlib.contextmanager
def _log() -> Iterator[int]:
    """Memory for what wireguard-go says, which cannot grow: it complains about every packet that it cannot send."""
    fd = os.memfd_create("wireguard-go", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, _LOG_SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        yield fd
    finally:
        os.close(fd)


def _logged(log: int) -> str:
    said = os.pread(log, _LOG_SIZE, 0).rstrip(b"\0").decode(errors="replace")
    return " ".join(said.split())[-500:] or "it said nothing"
