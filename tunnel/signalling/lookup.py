# SPDX-License-Identifier: GPL-2.0-or-later
"""Name resolution, done so that a name that nobody answers for keeps nothing else waiting.

getaddrinfo cannot be interrupted, and takes half a minute and more if no server answers. A paired peer names servers,
and can arrange for that. So each look-up has a thread of its own: asyncio's threads are few, and are needed to set up
WireGuard and interfaces.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

AT_ONCE = 64  # look-ups for peers
EACH = 2  # of a name that the user has given: one that began before the network came back must not be waited for

Found: TypeAlias = Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]]

_lock = threading.Lock()
_running: dict[str, list[concurrent.futures.Future[Found]]] = {}  # the newest for a name is last


async def addresses(host: str, *, by_peer: bool) -> Found:
    """What getaddrinfo returns for a name, for TCP and no port; raises OSError, and UnicodeError for an invalid name.

    A name that is being looked up already is not looked up again: the result of that look-up is waited for.
    """
    return await asyncio.wrap_future(_look_up(host, by_peer=by_peer))


def _look_up(host: str, *, by_peer: bool) -> concurrent.futures.Future[Found]:
    with _lock:
        running = _running.get(host, [])
        if len(running) >= (1 if by_peer else EACH):
            return running[-1]
        if by_peer and sum(map(len, _running.values())) >= AT_ONCE:
            raise OSError("too many names are being looked up")
        future: concurrent.futures.Future[Found] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # so that a caller who stops waiting does not end it for the others
        try:
            # A daemon thread, as the end of this program does not wait for it either.
            threading.Thread(target=_run, args=(host, future), name=f"getaddrinfo {host}", daemon=True).start()
        except RuntimeError:
            raise OSError("there is no thread left to look up its name") from None
        _running[host] = [*running, future]
    return future


def _run(host: str, future: concurrent.futures.Future[Found]) -> None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except BaseException as error:  # whatever it is, somebody waits for it
        _ended(host, future)
        future.set_exception(error)
    else:
        _ended(host, future)
        future.set_result(found)


def _ended(host: str, future: concurrent.futures.Future[Found]) -> None:
    """Runs before any caller gets the result, so that whoever asks after that starts a new look-up."""
    with _lock:
        left = [each for each in _running[host] if each is not future]
        if left:
            _running[host] = left
        else:
            del _running[host]
