# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's hosts: the two-host rig under the demo's own name, and commands in it shown as one would see them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[1]
RIG = str(TREE / "vagrant" / "rig")
NAME = "shop"  # the container
ENVIRONMENT = os.environ | {"MIGRATOR_RIG": "demo"}


class DemoFailed(Exception):
    """A command did not do what it was there for."""


@contextlib.contextmanager
def two_hosts(*options: str) -> Iterator[None]:
    """Both hosts, and the client's, while the block runs; `options` are those of `vagrant/rig up`."""
    try:
        rig("down")  # what a killed demo has left
        rig("up", *options, limit=1800)
        yield
    finally:
        rig("down")


def rig(*arguments: str, limit: float = 180) -> None:
    """Run `vagrant/rig`, which says itself what it does."""
    done = subprocess.run([RIG, *arguments], env=ENVIRONMENT, stdin=subprocess.DEVNULL, timeout=limit, check=False)
    if done.returncode:
        raise DemoFailed(f"vagrant/rig {shlex.join(arguments)}: exit status {done.returncode}")


def on(host: str, *command: str, show: bool = True) -> str:
    """Run a command in a host, shown as one would see it there; returns what it printed."""
    if show:
        print(bold(f"{host}# {shlex.join(command)}"), flush=True)
    # A file: a daemon of LXC's that keeps a pipe open would make us wait for ever.
    with tempfile.TemporaryFile() as out:
        status = subprocess.run([RIG, "exec", host, "--", *command], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                stdout=out, timeout=180, check=False).returncode
        out.seek(0)
        text = out.read().decode(errors="replace")
    if show:
        print(text, end="", flush=True)
    if status:
        raise DemoFailed(f"{shlex.join(command)} on {host}: exit status {status}\n{'' if show else text}".rstrip())
    return text


def migration(host: str) -> dict[str, Any]:
    """The container's newest migration as that host's journal has it."""
    found: dict[str, Any] = json.loads(on(host, "migrator", "status", NAME, "--json", show=False))["migrations"][-1]
    return found


def frozen_ms(source: dict[str, Any], destination: dict[str, Any]) -> float:
    """From freeze to thaw, by both journals; the two hosts share one clock."""
    return float(round((destination["restored_at"] - source["frozen_at"]) * 1000, 1))


def title(text: str) -> None:
    print(f"\n{bold(f'== {text} ==')}", flush=True)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
