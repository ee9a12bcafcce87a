# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH through paramiko: connects like the `ssh` command with BatchMode and runs a program there as a byte stream.

Nothing is ever prompted for. A host is trusted only by a key in known_hosts. paramiko is imported when a connection is
made, not before.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from migrator.base import log
from migrator.base.run import started
from migrator.errors.connection import ConnectionLost, DestinationInvalid, HostUnreachable, RemoteMissing
from migrator.errors.documented import DocumentedError
from migrator.remote import destination as destinations
from migrator.remote import ssh_config, tcp
from migrator.remote.destination import Destination, Kind
from migrator.remote.ssh_config import HostConfig
from migrator.remote.ssh_login import check_host_key, key_types, log_in, reason_of
from migrator.transfer.stream import Bytes

if TYPE_CHECKING:
    import paramiko

KEEPALIVE = 15  # seconds
TCP_RTO_MAX_MS = 44  # linux/tcp.h, since Linux 6.15: the longest wait before a lost segment is retransmitted
ERROR_TAIL = 4000  # bytes of the remote command's output that an error shows
HOSTS_MAX = 8  # on the way to a destination
# The remote side chooses its receive window (OpenSSH: 2 MiB); this one is for what it sends to us.
WINDOW = 4 * 1024 * 1024  # bytes
# AES-GCM needs no separate MAC and had twice the throughput of AES-CTR (bench/transfer.py).
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
# Rekey after this many bytes. paramiko's own 512 MiB would stall a transfer every second; OpenSSH, too, uses 64 GiB for
# ciphers with 16-byte blocks.
REKEY_BYTES = 1 << 36


class Session:
    """A connection to a host, logged in."""

    def __init__(self, destination: Destination, user: str, transport: paramiko.Transport, timeout: float,
                 resources: contextlib.ExitStack) -> None:
        self.destination = destination
        self.user = user
        self.transport = transport
        self._timeout = timeout
        self._resources = resources

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, which ends every program started over it; safe to repeat."""
        self._resources.close()

    def serve(self, argv: Sequence[str]) -> SshStream:
        """Start a program there as root (with `sudo -n` if the login is another), and talk to its stdin and stdout.

        Raises ConnectionLost. That the program does not exist shows only when the stream is read: RemoteMissing.
        """
        import paramiko

        command = shlex.join(argv if self.user == "root" else ["sudo", "-n", "--", *argv])
        log.trace(f"ssh {self.destination} {command}")
        try:
            with _closed_after(self._timeout, self.transport):
                channel = self.transport.open_session(timeout=self._timeout)
                channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ConnectionLost(destination=self.destination, reason=reason_of(error)) from error
        return SshStream(channel, self.destination)


class SshStream:
    """The byte stream (`migrator.transfer.stream`) of a program that runs on the other host.

    If the stream ends because the program could not be started, reading and writing raise RemoteMissing; if it ends
    with a non-zero exit status, ConnectionLost with what the program printed on stderr.
    """

    def __init__(self, channel: paramiko.Channel, destination: Destination) -> None:
        self._channel = channel
        self._destination = destination
        self._heard = 0.0  # time.monotonic() at the last byte read
        self._stderr = b""
        self._reading_stderr = threading.Lock()

    def settimeout(self, seconds: float) -> None:
        self._channel.settimeout(seconds)

    def readinto(self, view: memoryview) -> int:
        import paramiko

        try:
            data = self._channel.recv(len(view))
        except (EOFError, paramiko.SSHException) as error:  # recv occasionally sends, too
            raise ConnectionResetError(reason_of(error)) from error
        self._read_stderr()
        if not data:
            self._raise_failure()
        self._heard = time.monotonic()
        view[: len(data)] = data
        return len(data)

    def write(self, *buffers: Bytes) -> None:
        import paramiko

        small = sum(len(buffer) for buffer in buffers) <= 16 * 1024  # one packet instead of several
        for buffer in (b"".join(buffers),) if small else buffers:
            rest = memoryview(buffer)
            while rest:
                begun = time.monotonic()
                try:
                    sent = self._channel.send(rest)  # type: ignore[arg-type]
                except TimeoutError:
                    if self._heard < begun:
                        raise
                    continue  # it is alive, and only busy
                except (OSError, EOFError, paramiko.SSHException):  # paramiko raises any of these
                    sent = 0
                if not sent:
                    self._raise_failure()
                    raise ConnectionResetError("the program on the other side has ended")
                rest = rest[sent:]

    def close(self) -> None:
        import paramiko

        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # closing sends a goodbye
            self._channel.close()

    def stderr(self) -> str:
        """The end of what the program has printed on stderr."""
        self._read_stderr()
        return self._stderr.decode(errors="replace").strip()

    def _read_stderr(self) -> None:
        with self._reading_stderr:
            while self._channel.recv_stderr_ready():
                self._stderr = (self._stderr + self._channel.recv_stderr(ERROR_TAIL))[-ERROR_TAIL:]

    def _raise_failure(self) -> None:
        """Raise the error that ended the stream, if one did."""
        known = self._channel.status_event.wait(2.0)
        status = self._channel.exit_status if known else -1
        said = self.stderr()
        if status in (126, 127) or "command not found" in said or (status == 1 and said.startswith("sudo:")):
            raise RemoteMissing(destination=self._destination, reason=said or f"exit status {status}")
        if status > 0:
            raise ConnectionLost(
                destination=self._destination,
                reason=f"the program there ended with exit status {status}: {said or 'no output'}",
            )
        if status < 0:
            raise ConnectionLost(destination=self._destination, reason=said or "the connection was closed")


def connect(destination: Destination, *, accept_new_host_key: bool, timeout: float,
            limit: float | None = None) -> Session:
    """Connect and log in, following ssh's configuration.

    `limit` in seconds applies to each step (connecting, key exchange, login), by default `timeout`, which is how long
    data sent later may go unacknowledged. Raises DestinationInvalid, HostUnreachable, HostKeyUnknown, HostKeyChanged
    and SshRefused.
    """
    if destination.kind is Kind.PEER:
        raise DestinationInvalid(destination=destination, reason="a paired peer cannot be reached by SSH here")
    with contextlib.ExitStack() as resources:
        config, transport = _Connector(resources, accept_new_host_key, timeout, limit).connect(destination)
        return Session(destination, config.user, transport, timeout, resources.pop_all())
    raise AssertionError


class _Connector:
    """Makes connections, and keeps in `resources` what must be closed after them."""

    def __init__(self, resources: contextlib.ExitStack, accept_new: bool, timeout: float,
                 limit: float | None) -> None:
        self._resources = resources
        self._accept_new = accept_new
        self._timeout = timeout
        self._limit = max(limit, 0.1) if limit is not None else timeout
        self._hosts = 0

    def connect(self, destination: Destination,
                jumps: tuple[str, ...] = ()) -> tuple[HostConfig, paramiko.Transport]:
        """A transport that is logged in; `jumps` come before those of the configuration."""
        self._hosts += 1
        if self._hosts > HOSTS_MAX:
            raise HostUnreachable(destination=destination, reason="too many jump hosts in a row")
        config = ssh_config.lookup(destination)
        limit = min(self._limit, config.connect_timeout or self._limit)
        try:
            sock = self._open_socket(destination, config, jumps or config.proxy_jump, limit)
            transport = _start_transport(sock, config, self._resources, limit)
        except DocumentedError:
            raise
        except Exception as error:
            raise HostUnreachable(destination=destination, reason=_why(error, limit)) from error
        check_host_key(destination, config, transport, self._accept_new)
        log_in(destination, config, transport, limit)
        transport.set_keepalive(KEEPALIVE)
        return config, transport

    def _open_socket(self, destination: Destination, config: HostConfig, jumps: tuple[str, ...], limit: float) -> Any:
        """What the transport runs over: a TCP connection, a ProxyCommand, or a channel through a jump host."""
        if jumps:
            *before, last = jumps
            _, transport = self.connect(destinations.parse(last), tuple(before))
            return transport.open_channel("direct-tcpip", (config.host, config.port), ("127.0.0.1", 0), timeout=limit)
        if config.proxy_command:
            ours, theirs = socket.socketpair()
            self._resources.callback(ours.close)
            with theirs:
                argv = ["/bin/sh", "-c", f"exec {config.proxy_command}"]  # ssh defines it as a shell command line
                env = {key: os.environ[key] for key in ("SSH_AUTH_SOCK",) if key in os.environ}
                proxy = started(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), env=env)
                self._resources.enter_context(proxy)
            return ours
        try:
            return _open_tcp(config.host, config.port, limit, self._timeout)
        except tcp.Unreached as tried:
            unreachable = HostUnreachable(destination=destination, reason=_why(tried.error, limit))
            if self._hosts == 1:
                unreachable.silent, unreachable.answered = tried.silent, tried.refused
            raise unreachable from tried


def _why(error: Exception, limit: float) -> str:
    return f"no answer within {limit:g} seconds" if isinstance(error, TimeoutError) else reason_of(error)


class _PromptSocket(socket.socket):
    """A socket that acknowledges incoming data at once.

    Until a program has been started, sshd waits for that before it sends its next packet, and the kernel would delay
    the acknowledgement by 40 ms.
    """

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data = super().recv(size, flags)
        with contextlib.suppress(OSError):
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


def _open_tcp(host: str, port: int, limit: float, timeout: float) -> _PromptSocket:
    plain = tcp.connect(host, port, limit)
    sock = _PromptSocket(fileno=plain.detach())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # By itself, paramiko would try for ever to send to a host that accepts nothing any more.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout * 1000))
    with contextlib.suppress(OSError):  # a link that was down for some seconds is then used as soon as it is back
        sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, 1000)
    return sock


def _end(sock: Any, transport: paramiko.Transport) -> None:
    """Close a transport and the socket it runs over.

    The socket first, so that paramiko's thread notices at once; it checks only every 100 ms whether it was closed.
    Through a jump host, whose connection may be gone, both say goodbye, which is waited for before anything else is
    closed.
    """
    import paramiko

    for work in (lambda: sock.shutdown(socket.SHUT_RDWR), transport.close):
        with contextlib.suppress(AttributeError, OSError, EOFError, paramiko.SSHException):
            work()
    if transport.is_alive():
        transport.join(1.0)


def _start_transport(sock: Any, config: HostConfig, resources: contextlib.ExitStack,
                     limit: float) -> paramiko.Transport:
    """Negotiate ciphers and keys with the host, which is not verified by this yet."""
    import paramiko

    transport = paramiko.Transport(sock, default_window_size=WINDOW)
    resources.callback(_end, sock, transport)
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = limit
    transport.packetizer.REKEY_BYTES = REKEY_BYTES
    options = transport.get_security_options()
    options.ciphers = [name for name in CIPHERS if name in options.ciphers]
    options.key_types = key_types(options.key_types, config)
    transport.start_client(timeout=limit)
    if not transport.initial_kex_done:
        raise TimeoutError
    return transport


@contextlib.contextmanager
def _closed_after(limit: float, transport: paramiko.Transport) -> Iterator[None]:
    """Close the transport unless the block ends in time: paramiko waits for some answers without a limit."""
    timer = threading.Timer(limit, transport.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
