# SPDX-License-Identifier: GPL-2.0-or-later
"""The other host as the source sees it: a connection to the `migrator serve` that runs there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from migrator.base import log
from migrator.record import container_lock
from migrator.remote import destination
from migrator.remote.destination import ConnectOptions, Kind
from migrator.transfer.rpc import Connection
from migrator.transfer.stream import ByteStream, Tunnel

# The command to run there; ssh sets a minimal PATH, which includes /usr/local/bin.
SERVE = ["migrator", "serve"]
# Seconds for its first word: only once it is loaded does it signal that it is alive, and that takes long on a slow or
# busy host, or one that has just booted.
START_LIMIT = 60.0


@contextlib.contextmanager
def connected(options: ConnectOptions, where: str, limit: float | None = None) -> Iterator[Connection]:
    """A connection to the destination `where`.

    Each step of connecting over SSH may take `limit` seconds, by default the options' timeout. Without a limit, the
    program there gets START_LIMIT for its first word, else no more than for any other.

    Raises what `destination.parse`, `ssh.connect` and `tunnelled.open_stream` raise, and ProtocolError for another
    version. Closing it never replaces the outcome of the block: tunnel leftovers are reported, and removed by the next
    tunnel; and a first signal sent by hand waits, and is not raised over an error.
    """
    target = destination.parse(where)
    stack, failed = contextlib.ExitStack(), True
    try:
        stream, tunnel = _stream(options, target, stack, limit)
        patience = _patience(options, target)
        connection = Connection(stream, timeout=patience, tunnel=tunnel)
        stack.callback(connection.close)
        connection.hello(patience if limit is not None else max(patience, START_LIMIT))
        yield connection
        failed = False
    finally:
        with container_lock.held_back(raised=not failed):
            _end(stack, where)


def _end(stack: contextlib.ExitStack, where: str) -> None:
    try:
        stack.close()
    except Exception as error:  # whatever it is, what was requested over the connection has been answered or has failed
        log.warning(f"The connection to {where} did not end cleanly: {error}")


def _patience(options: ConnectOptions, target: destination.Destination) -> float:
    """Seconds of silence after which the other host is considered dead.

    A tunnel notices by itself when its path dies, and heals it or breaks: the protocol must not give up before that.
    """
    if target.kind is Kind.SSH:
        return options.timeout
    from migrator.remote.tunnelled import PATIENCE

    return max(options.timeout, PATIENCE)


def _stream(options: ConnectOptions, target: destination.Destination, stack: contextlib.ExitStack,
            limit: float | None) -> tuple[ByteStream, Tunnel | None]:
    """A stream to `migrator serve` there, and the tunnel it runs through, if any; `stack` closes what the stream needs.
    """
    if target.kind is Kind.PEER:
        from migrator.remote import tunnelled

        through_tunnel = tunnelled.open_stream(target.host, options.path)
        stack.callback(through_tunnel.close)
        return through_tunnel, through_tunnel.opened
    from migrator.remote import ssh

    session = ssh.connect(target, accept_new_host_key=options.accept_new_host_key, timeout=options.timeout,
                          limit=limit)
    stack.callback(session.close)
    return session.serve(SERVE), None


def fingerprint(there: Connection) -> str:
    """The fingerprint of the peer at the other end; "" if the connection does not run through a tunnel."""
    return there.tunnel.fingerprint if there.tunnel else ""


def require_stable_path(there: Connection) -> None:
    """Before a container is frozen: raise PathUnstable if the path to a peer is not good enough for that."""
    if there.tunnel:
        there.tunnel.require_stable()
