# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells systemd about the state of a service: sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import os
import socket

from migrator.base import printable


def status(text: str) -> None:
    """What `systemctl status` shows for the service.

    One line, whatever is in it: the next would be a command to systemd.
    """
    notify(f"STATUS={printable.line(text)}")


def notify(state: str) -> None:
    """Send for example `READY=1` or `STOPPING=1`; does nothing if systemd does not listen."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)  # @ stands for an abstract name
        sock.send(state.encode())
