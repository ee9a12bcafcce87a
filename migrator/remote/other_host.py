# SPDX-License-Identifier: GPL-2.0-or-later
"""The other host as the source sees it: a connection to the `migrator serve` that runs there."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from migrator.base import log
from migrator.record import container_lock
from migrator.remote import destination
from migrator.remote.destination import Kind
from migrator.transfer.rpc import Connection
from migrator.transfer.stream import ByteStream

# What `migrator serve` is called there; ssh gives a minimal PATH, in which /usr/local/bin is.
SERVE = ["migrator", "serve"]


@contextlib.contextmanager
def connected(args: argparse.Namespace, where: str, limit: float | None = None) -> Iterator[Connection]:
    """A connection to the destination `where`, with the command line's options on how to reach it.

    Each step of making one over SSH may take `limit` seconds, by default --timeout.

    Raises the errors of `destination.parse`, `ssh.connect` and `tunnelled.open_stream`, and ProtocolError for another
    version. How it ends takes the place of nothing that has come of the block: a tunnel of which something is left is
    told, and removed by the next one; a first signal by hand waits, and is not raised over an error.
    """
    target = destination.parse(where)
    stack, failed = contextlib.ExitStack(), True
    try:
        stream = _stream(args, target, stack, limit)
        connection = Connection(stream, timeout=_patience(args, target))
        stack.callback(connection.close)
        connection.hello()
        yield connection
        failed = False
    finally:
        with container_lock.held_back(raised=not failed):
            _end(stack, where)


def _end(stack: contextlib.ExitStack, where: str) -> None:
    try:
        stack.close()
    except Exception as error:  # whatever it is, what was asked for over it has been answered, or has failed
        log.warning(f"The connection to {where} did not end in order: {error}")


def _patience(args: argparse.Namespace, target: destination.Destination) -> float:
    """Seconds of silence after which the other host is taken for dead.

    A tunnel notices by itself when its path dies, and heals it or breaks: the protocol must not give up before that.
    """
    if target.kind is Kind.SSH:
        return float(args.timeout)
    from migrator.remote.tunnelled import PATIENCE

    return max(float(args.timeout), PATIENCE)


def _stream(args: argparse.Namespace, target: destination.Destination, stack: contextlib.ExitStack,
            limit: float | None) -> ByteStream:
    """To `migrator serve` there; the stack closes what the stream needs."""
    if target.kind is Kind.PEER:
        from migrator.remote import tunnelled

        through_tunnel = tunnelled.open_stream(target.host, args.path)
        stack.callback(through_tunnel.close)
        args.tunnel = through_tunnel.opened
        return through_tunnel
    from migrator.remote import ssh

    session = ssh.connect(target, accept_new_host_key=args.accept_new_host_key, timeout=args.timeout, limit=limit)
    stack.callback(session.close)
    return session.serve(SERVE)


def fingerprint(args: argparse.Namespace) -> str:
    """Of the peer that `connected` has connected to; "" where that was not through a tunnel."""
    tunnel = getattr(args, "tunnel", None)
    return str(tunnel.tunnel.peer.public.fingerprint) if tunnel else ""


def require_stable_path(args: argparse.Namespace) -> None:
    """Before a container is frozen: raises PathUnstable where the way to a peer is not good enough for that."""
    if tunnel := getattr(args, "tunnel", None):
        tunnel.require_stable()
