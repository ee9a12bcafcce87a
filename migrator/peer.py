"""The other host as the source sees it: a connection to the `migrator serve` that runs there."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from migrator import destination
from migrator.protocol import Connection

# What `migrator serve` is called there; ssh gives a minimal PATH, in which /usr/local/bin is.
SERVE = ["migrator", "serve"]


@contextlib.contextmanager
def connected(args: argparse.Namespace, where: str) -> Iterator[Connection]:
    """A connection to the destination `where`, with the command line's options on how to reach it.

    Raises the errors of `destination.parse` and `ssh.connect`, and ProtocolError for another version.
    """
    from migrator import ssh

    target = destination.parse(where)
    with contextlib.ExitStack() as stack:
        session = ssh.connect(target, accept_new_host_key=args.accept_new_host_key, timeout=args.timeout)
        stack.callback(session.close)
        stream = session.serve(SERVE)
        connection = Connection(stream, timeout=args.timeout)
        stack.callback(connection.close)
        connection.hello()
        yield connection
