# SPDX-License-Identifier: GPL-2.0-or-later
"""The two-host rig as tests and measurements use it: run commands on hosts, make and query guests, see what was left
behind.

`Rig` is a thin layer over `vagrant/rig`; the fixtures `rig` and `clean_hosts` in tests/rig/conftest.py provide it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import scripts

TREE = Path(__file__).resolve().parents[1]
VAGRANT = TREE / "vagrant"
PROGRAM = str(VAGRANT / "rig")
LXC_HOSTS = ("hosta", "hostb")
POOL = "/pool"
DESTINATION = "root@hostb"

# Seconds. None of them is a promise: they end what hangs, even on a machine that stalls for a while.
EXEC_LIMIT = 300.0
PROCESS_LIMIT = 120.0
UP_LIMIT = 1500.0  # the first `up` on a machine builds the root file systems


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        """What it printed with --json: the last line of stdout."""
        lines = self.stdout.splitlines()
        assert lines, f"no output: {self}"
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The error of a command that failed with --json."""
        found: dict[str, Any] = self.json["error"]
        return found

    def expect(self, status: int) -> Outcome:
        """Itself, if that is how it ended; otherwise the test fails and shows everything that was printed."""
        assert self.status == status, f"exit status {status} was expected: {self}"
        return self

    def __str__(self) -> str:
        return f"{shlex.join(self.argv)}: exit status {self.status}\n{self.stdout}{self.stderr}"


@dataclasses.dataclass
class Running:
    """A command that runs on a host; made by `Rig.start`."""

    argv: tuple[str, ...]
    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    begun: float

    def wait(self, limit: float = EXEC_LIMIT) -> Outcome:
        """Wait for its end."""
        status = self.process.wait(limit)
        return Outcome(self.argv, status, self.stdout, self.stderr, time.monotonic() - self.begun)

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self.out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal, which `rig exec` passes on to the command.

        SIGKILL ends `rig exec`, and the command with it. Its end is waited for: until then it may have a container
        locked.
        """
        if number != signal.SIGKILL:
            self.process.send_signal(number)
            return
        with contextlib.ExitStack() as stack:
            commands = []
            for pid in _children(self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    commands.append(os.pidfd_open(pid))
                    stack.callback(os.close, commands[-1])
            self.process.kill()
            for fd in commands:
                ended, _, _ = select.select([fd], [], [], PROCESS_LIMIT)
                assert ended, f"{shlex.join(self.argv)} was killed and does not end"


def _children(pid: int) -> list[int]:
    """The pids of a process's children: in proc_pid_stat(5) the parent is the second field after the program's name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


class Rig:
    """One instance of the two-host rig; `options` are for each `rig up`."""

    def __init__(self, instance: str, *options: str) -> None:
        self.instance = instance
        self._options = options
        self._environment = os.environ | {"MIGRATOR_RIG": instance}

    # --- the rig itself ---

    def up(self, *options: str) -> None:
        """Start it, or bring it up to date with the working tree; remember what hosts look like while they are new."""
        self._call(["up", *self._options, *options], limit=UP_LIMIT).expect(0)
        for host in LXC_HOSTS:
            self.exec(host, "sh", "-c", scripts.REMEMBER)

    def down(self) -> None:
        """Take it down and remove every trace of it."""
        self._call(["down"], limit=2 * EXEC_LIMIT).expect(0)

    def reset(self, host: str) -> None:
        """Reset a virtual machine in the middle of whatever it does; wait until it has booted."""
        self._call(["reset", host], limit=UP_LIMIT).expect(0)

    def _call(self, arguments: list[str], *, limit: float = EXEC_LIMIT, given: str | None = None) -> Outcome:
        with self._started(arguments, given) as running:
            return running.wait(limit)

    @contextlib.contextmanager
    def _started(self, arguments: list[str], given: str | None = None) -> Iterator[Running]:
        # Files, not pipes: an LXC daemon that keeps one open must not make us wait.
        with tempfile.TemporaryDirectory(prefix="rig-") as folder:
            out, err, in_ = Path(folder, "out"), Path(folder, "err"), Path(folder, "in")
            in_.write_text(given or "")
            begun = time.monotonic()
            with out.open("wb") as to, err.open("wb") as to_error, in_.open("rb") as from_:
                process = subprocess.Popen([PROGRAM, *arguments], stdin=from_, stdout=to, stderr=to_error,
                                           env=self._environment)
            running = Running(("rig", *arguments), process, out, err, begun)
            try:
                yield running
            except BaseException:  # pytest shows it together with what has failed
                state = "still ran" if process.poll() is None else f"had ended with {process.returncode}"
                print(f"{shlex.join(running.argv)} {state}:\n{running.stdout}{running.stderr}")
                raise
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    # --- commands in hosts ---

    def exec(self, host: str, *argv: str, check: bool = True, input: str | None = None,
             limit: float = EXEC_LIMIT) -> Outcome:
        """Run a command on a host; unless `check` is off, the test fails if the command does."""
        outcome = self._call(["exec", host, "--", *argv], limit=limit, given=input)
        return outcome.expect(0) if check else outcome

    def sh(self, host: str, script: str, *, check: bool = True, limit: float = EXEC_LIMIT) -> str:
        """What a shell script prints on a host."""
        return self.exec(host, "sh", "-c", script, check=check, limit=limit).stdout

    def migrator(self, host: str, *arguments: str, limit: float = EXEC_LIMIT) -> Outcome:
        """Run migrator on a host, however that ends."""
        return self.exec(host, "migrator", *arguments, check=False, limit=limit)

    @contextlib.contextmanager
    def start(self, host: str, *argv: str, input: str | None = None) -> Iterator[Running]:
        """Start a command on a host and go on while it runs; it is killed if it is still running after the block."""
        with self._started(["exec", host, "--", *argv], input) as running:
            yield running

    def kill_serve(self) -> None:
        """Kill the `migrator serve` on hostb that answers a source."""
        self.sh("hostb", scripts.KILL_SERVE)

    def put(self, host: str, path: str, text: str) -> None:
        """Write a file on a host."""
        self.exec(host, "tee", path, input=text)

    def copy(self, file: Path, host: str, path: str) -> None:
        """Copy a file of this machine's to a host, into a folder there or under another name."""
        self._call(["copy", str(file), f"{host}:{path}"]).expect(0)

    def read(self, host: str, path: str) -> str:
        """The content of a file on a host."""
        return self.exec(host, "cat", path).stdout

    def status(self, host: str, name: str) -> dict[str, Any]:
        """A container's newest migration according to `migrator status` on that host."""
        outcome = self.migrator(host, "status", name, "--json", "--events").expect(0)
        newest: dict[str, Any] = outcome.json["migrations"][-1]
        return newest

    def newest_detail(self, host: str) -> dict[str, Any]:
        """What the journal there has recorded about the migration that began last."""
        script = ("import sqlite3; db = sqlite3.connect('/var/lib/migrator/journal.db');"
                  " print(*db.execute('SELECT detail FROM migrations ORDER BY rowid DESC LIMIT 1').fetchone())")
        found: dict[str, Any] = json.loads(self.exec(host, "python3", "-c", script).stdout)
        return found

    # --- guests ---

    def guest(self, host: str, name: str, kind: str, **options: str | float | list[str]) -> None:
        """Make and start a container: `vagrant/rig guest`; options are ip, size, dirty, config, unprivileged (True)."""
        arguments = ["guest", host, name, kind]
        for key, value in options.items():
            for each in value if isinstance(value, list) else [value]:
                arguments += [f"--{key}", *([] if each is True else [str(each)])]
        self._call(arguments).expect(0)

    def probe(self, host: str, name: str, *, quick: bool = False) -> dict[str, Any]:
        """What a guest reports about itself: `running`, `intact`, `start` (which start of it this is), `count`."""
        outcome = self._call(["probe", host, name, *(["--quick"] if quick else [])])
        assert outcome.stdout, str(outcome)
        return outcome.json

    def reaches(self, host: str, address: str) -> None:
        """Wait until an address answers a host. The network may have to resolve its location again."""
        wait_for(lambda: self.exec(host, "ping", "-c", "1", "-W", "5", address, check=False).status == 0,
                 f"{address} answers {host}")

    # --- traces ---

    def leftovers(self) -> list[str]:
        """What migrator has left on both hosts, each as `HOST: KIND: WHAT`; the kinds are in `scripts.LEFTOVERS`.

        Processes get a moment to end: the one that serves a source notices only at the end of its connection that it
        is over.
        """
        end = time.monotonic() + PROCESS_LIMIT
        while True:
            found = self._on_both(scripts.LEFTOVERS)
            if time.monotonic() > end or not any(": process: " in line for line in found):
                return found
            time.sleep(0.2)

    def purge(self) -> list[str]:
        """Destroy all guests and everything that migrator keeps, on both hosts; returns what resisted."""
        left = self._on_both(f"({scripts.PURGE}) >/dev/null 2>&1\n({scripts.LEFTOVERS})\n({scripts.REMAINS})")
        # The next guest that uses the address of an old one has another hardware address.
        self.exec("client", "ip", "neigh", "flush", "all", check=False)
        return [*self.leftovers(), *self._on_both(scripts.REMAINS)] if left else []

    def _on_both(self, script: str) -> list[str]:
        """What a script prints on both hosts at the same time, each line as `HOST: LINE`."""
        with concurrent.futures.ThreadPoolExecutor(len(LXC_HOSTS)) as pool:
            texts = pool.map(lambda host: self.sh(host, script), LXC_HOSTS)
            return [f"{host}: {line}" for host, said in zip(LXC_HOSTS, texts, strict=True)
                    for line in said.splitlines()]


def wait_for(condition: Callable[[], object], what: str, limit: float = 300.0) -> None:
    """Poll until it is so; the test fails if that takes longer than `limit` seconds."""
    end, pause = time.monotonic() + limit, 0.02
    while not condition():
        assert time.monotonic() < end, f"after {limit:g} s still not: {what}"
        time.sleep(pause)
        pause = min(1.2 * pause, 0.2)  # polling without pause takes the machine away from what is polled
