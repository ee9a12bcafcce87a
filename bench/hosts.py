# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's hosts: the two-host rig under the demo's own name, and commands on it shown as one would see them.

`MIGRATOR_RIG` selects an instance of the rig other than `demo`, for running two demos side by side. Whatever runs under
that name is ended first.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[1]
RIG = str(TREE / "vagrant" / "rig")
INSTANCE = os.environ.get("MIGRATOR_RIG") or "demo"
ENVIRONMENT = os.environ | {"MIGRATOR_RIG": INSTANCE}
NAME = "shop"  # the container
POOL = "/pool"

# Seconds. None of these is a judgement: they end a demo that hangs, on whatever machine.
COMMAND_LIMIT = 900.0
UP_LIMIT = 3600.0  # the first one builds the root file systems
LEAVING_LIMIT = 120.0  # for the process that serves the other host to notice that it is over

# What migrator must not have left on a host after `migrator cleanup NAME`: programs, snapshots, received data, memory
# images, mounts. Its journal and its logs stay.
LEFT = r"""
for folder in /proc/[0-9]*; do
    words=$(tr '\0' ' ' 2>/dev/null <"$folder/cmdline") || continue
    case $words in "" | "[lxc monitor]"*) continue ;; esac
    case $(cat "$folder/comm" 2>/dev/null) in
    criu* | lxc-checkpoint | migrator | btrfs) echo "process ${folder#/proc/}: $words" ;;
    esac
done
find /pool/.migrator -mindepth 1 -maxdepth 2 2>/dev/null
find /run/migrator /dev/shm/migrator -mindepth 1 -maxdepth 1 2>/dev/null | grep -E '/[0-9a-f]{8}$'
grep migrator /proc/self/mounts | grep -v ' / ' | sed 's/^/mount: /'
exit 0
"""


class DemoFailed(Exception):
    """A command did not do what it was there for."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Only one demo of this name at a time: a second one would begin by removing the first one's hosts.

    Raises DemoFailed. An abstract socket (unix(7)) is not a file: it goes with its process, however that ends.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        try:
            taken.bind(f"\0migrator-demo-{INSTANCE}")
        except OSError as error:
            raise DemoFailed(f"another demo is running on this machine ({error.strerror}); MIGRATOR_RIG=NAME make demo"
                             " runs one beside it") from None
        yield


@contextlib.contextmanager
def two_hosts(*options: str) -> Iterator[None]:
    """Both hosts, and the client's, while the block runs; `options` are those of `vagrant/rig up`."""
    try:
        rig("down")  # whatever a killed demo has left
        rig("up", *options, limit=UP_LIMIT)
        yield
    finally:
        with undisturbed():
            with contextlib.suppress(OSError):  # the terminal may have been closed
                print("\nrig: the hosts are removed", file=sys.stderr, flush=True)
            rig("down", apart=True)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Cleaning up takes a second or two, and is completed however often Ctrl-C is pressed."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def rig(*arguments: str, limit: float = COMMAND_LIMIT, apart: bool = False) -> None:
    """Run `vagrant/rig`, which reports what it does; `apart` from the terminal, so that it gets no Ctrl-C from it."""
    done = subprocess.run([RIG, *arguments], env=ENVIRONMENT, stdin=subprocess.DEVNULL, timeout=limit, check=False,
                          start_new_session=apart)
    if done.returncode:
        raise DemoFailed(f"vagrant/rig {shlex.join(arguments)}: exit status {done.returncode}")


def on(host: str, *command: str, show: bool = True, fine: Container[int] = (0,)) -> str:
    """Run a command on a host, shown as one would see it there; returns what it printed.

    Raises DemoFailed if its exit status is not one of those that are `fine`.
    """
    if show:
        typed(host, *command)
    # A file: an LXC daemon that keeps a pipe open would make us wait forever.
    with tempfile.TemporaryFile() as out:
        status = subprocess.run([RIG, "exec", host, "--", *command], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                stdout=out, timeout=COMMAND_LIMIT, check=False).returncode
        out.seek(0)
        text = out.read().decode(errors="replace")
    if show:
        print(text, end="", flush=True)
    if status not in fine:
        raise DemoFailed(f"{shlex.join(command)} on {host}: exit status {status}\n{'' if show else text}".rstrip())
    return text


def migration(host: str, name: str = NAME) -> dict[str, Any]:
    """A container's newest migration, with its events, according to that host's journal."""
    text = on(host, "migrator", "status", name, "--json", "--events", show=False)
    found: dict[str, Any] = json.loads(text)["migrations"][-1]
    return found


def probe(host: str, *options: str, name: str = NAME) -> dict[str, Any]:
    """What a container reports about itself: see vagrant/guests/probe.py."""
    text = on(host, "python3", "/opt/rig/guests/probe.py", name, *options, show=False, fine=(0, 1))
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        raise DemoFailed(f"{name} on {host} could not be asked: {text or 'no answer'}") from None
    return found


def left(*hosts: str) -> list[str]:
    """What migrator has left on these hosts, each as `HOST: WHAT`.

    A program that is about to end is waited for.
    """
    found: list[str] = []

    def nothing() -> bool:
        found[:] = [f"{host}: {line}" for host in hosts for line in on(host, "sh", "-c", LEFT, show=False).splitlines()]
        return not found

    wait_for(nothing, limit=LEAVING_LIMIT)
    return found


def wait_for(condition: Callable[[], object], *, limit: float = COMMAND_LIMIT) -> bool:
    """Poll until it is so; false if it is not so after `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def title(text: str) -> None:
    print(f"\n{bold(f'== {text} ==')}\n", flush=True)


def say(text: str) -> None:
    """A paragraph for people who watch."""
    print(f"{textwrap.fill(' '.join(text.split()), 100)}\n", flush=True)


def typed(host: str, *command: str, behind: str = "") -> None:
    """A command as one would type it on that host."""
    print(bold(f"{host}# {shlex.join(command)}{behind}"), flush=True)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
