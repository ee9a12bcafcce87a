# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP connection to a host at any of its addresses; and whether all that came back from all of them was silence.

Silence is a timeout. "No route to host" (EHOSTUNREACH) counts as silence only if this host itself has looked for that
very address on its own link and nobody answered: firewalls that reject send the same error, and are alive (RFC 1812,
5.2.7.1: codes 9, 10 and 13 of ICMP's destination unreachable; linux/icmp.c shows what each becomes).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from migrator.base.run import run
from migrator.errors import MigratorError

NOBODY_THERE = {"FAILED", "INCOMPLETE"}  # ip-neighbour(8): the states of an address that does not answer on the link
Tried = tuple[str, OSError]  # an address, and how the attempt ended


class Unreached(Exception):
    """No address of a host could be connected to."""

    def __init__(self, tried: Sequence[Tried]) -> None:
        self.tried = tried

    @property
    def error(self) -> OSError:
        """The one to show: an answer from someone is preferred to mere silence."""
        errors = [error for _, error in self.tried]
        return next((error for error in errors if not isinstance(error, TimeoutError)), errors[-1])

    @property
    def refused(self) -> bool:
        """Whether a machine at one of these addresses refused."""
        return any(isinstance(error, ConnectionRefusedError) for _, error in self.tried)

    @property
    def silent(self) -> bool:
        """Whether nothing at all came back from any of the addresses."""
        return all(_is_silence(address, error) for address, error in self.tried)


def connect(host: str, port: int, limit: float) -> socket.socket:
    """A connection to the first address that accepts it, with `limit` seconds for each.

    Raises Unreached, or OSError if the name cannot be resolved.
    """
    tried: list[Tried] = []
    for address in dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)):
        try:
            return socket.create_connection((address, port), limit)
        except OSError as error:
            tried.append((address, error))
    raise Unreached(tried)


def _is_silence(address: str, error: OSError) -> bool:
    if error.errno in (errno.EHOSTUNREACH, errno.EHOSTDOWN):
        return nobody_on_link(address)
    return isinstance(error, TimeoutError)


def nobody_on_link(address: str) -> bool:
    """Whether this host has just looked for an address on its own links in vain; False if that is unknown."""
    try:
        said = run(["ip", "neighbour", "show", "to", address.partition("%")[0]]).text
    except MigratorError:
        return False
    states = [words[-1] for line in said.splitlines() if (words := line.split())]
    return bool(states) and set(states) <= NOBODY_THERE
