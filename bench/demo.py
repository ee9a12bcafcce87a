# SPDX-License-Identifier: GPL-2.0-or-later
"""`make demo`: a running container leaves one host and carries on on another, its client still connected.

Two hosts are made on this machine (vagrant/rig). One runs a Redis server in a container; an outside client increments
a counter in it through one TCP connection, which is never reopened. The container is moved stage by stage, with the
commands that one would type, and back with the one command that does all of that. Then a whole Debian moves there and
back, with a transaction open (bench/demo_systemd.py), and the Redis server between two hosts that are both behind NAT
(bench/demo_nat.py). Finally the figures are shown, beside what CRIU alone needed in the same minute (bench/floor.py): a
table, and build/demo.json (bench/figures.py describes its contents). Then the hosts are removed.

Exit status: 0 nothing was lost, wrong or left behind, 1 something was, 2 a command failed, 130 it was interrupted. How
long things take is shown and never judged.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from bench import demo_nat, demo_systemd, figures, floor, waits, warm
from bench.figures import Figures, ThereAndBack
from bench.hosts import (
    COMMAND_LIMIT,
    ENVIRONMENT,
    NAME,
    RIG,
    TREE,
    DemoFailed,
    alone,
    left,
    migration,
    on,
    probe,
    rig,
    say,
    title,
    two_hosts,
    typed,
    wait_for,
)
from migrator.base.figures import size

REPORT = TREE / "build" / "demo.json"

ADDRESS = "10.0.3.100"
# The command, the host on which it is typed, what follows the container's name, and what it does.
STAGES: tuple[tuple[str, str, list[str], str], ...] = (
    ("check", "hosta", ["-d", "root@hostb"], "Compare both hosts and the container: will it work?"),
    ("prepare-data", "hosta", ["-d", "root@hostb"], "Copy the disk. The container keeps running meanwhile."),
    ("import-data", "hostb", [], "On the other host, put the disk in place. The container still runs where it was."),
    ("create-dump", "hosta", ["-d", "root@hostb"],
     "Now the container is frozen: its memory, and what has changed on the disk since, are sent."),
    ("restore-dump", "hostb", [], "On the other host, bring it to life again. From now on it runs there."),
    ("finish", "hosta", [], "Let go of the copy that was left behind as a safeguard."),
)
ANSWERS = 200  # that the client must have received before the first move, and after the last
PATIENCE = 300.0  # seconds that it waits for one answer before it gives its connection up as broken


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that the hosts are removed in that case too
    if os.geteuid() != 0:
        complain("The demo needs root: it makes namespaces, loop devices and containers.")
        return 2
    try:
        with alone():
            REPORT.unlink(missing_ok=True)  # from an earlier run: nobody should take it for this one's
            return conclude(watched())
    except (DemoFailed, subprocess.SubprocessError, OSError) as error:
        complain(f"demo: {error}")
        return 2
    except KeyboardInterrupt:
        complain("demo: interrupted")
        return 128 + signal.SIGINT
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # `make demo | head`: otherwise Python would try again, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def watched() -> Figures:
    """The whole demo, with its narration; returns the figures."""
    say("""A running program is about to move from one computer to another, with everything that it has in memory, while
        somebody is using it. Two small computers are created for that on this machine, and removed at the end. A line
        that begins with the name of one of them and # is a command typed there; its output follows.""")
    title("Two computers on this machine: hosta and hostb")
    with two_hosts():
        touch_memory()
        found = demonstrate()
        system = demo_systemd.demonstrate()
    title("The same two, each behind a router (NAT) that lets nobody in: SSH does not get through")
    with two_hosts("--nat-a", demo_nat.NAT, "--nat-b", demo_nat.NAT):
        nat = demo_nat.demonstrate()
    return {**found, "whole_system": system, "nat": nat, "load": round(os.getloadavg()[0], 2)}


def conclude(found: Figures) -> int:
    """Write the figures down and show them; returns the exit status."""
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(found, indent=2) + "\n")
    title("Figures")
    print(figures.table(found))
    print(f"\nLoad average {found['load']} on {os.cpu_count()} cores: whatever else runs here makes this slower.")
    print(f"The figures are in {os.path.relpath(REPORT, TREE)} too.\n", flush=True)
    wrong = figures.wrong(found)
    for line in wrong:
        complain(f"demo: {line}")
    if not wrong:
        say("Nothing was lost, nothing was wrong, nothing was left behind.")
    return 1 if wrong else 0


def complain(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may have been closed
        print(text, file=sys.stderr, flush=True)


# --- the move -------------------------------------------------------------------------------------------------


def touch_memory() -> None:
    """See bench/warm.py."""
    count = warm.amount(warm.available())
    seconds = warm.touch(count) if count else None
    told = "there is too little of it here to do so, so the first move may look slow"
    if seconds is not None:
        told = f"{size(count)} were filled and freed just now, in {seconds:.1f} s"
    say(f"""Memory that a machine has never used is slow at its first use, on a virtual machine ten times as slow: the
        figures would show that rather than the move. So the memory that the demo is going to need is used once before:
        {told}.""")


def demonstrate() -> ThereAndBack:
    """Move the container there and back under its client; returns the figures."""
    title("A shop's server on hosta, and a customer who never stops asking")
    say(f"""The container "{NAME}" runs a Redis server (a database that keeps everything in memory) with 64 MiB of data.
        "{floor.TWIN}" is exactly the same; it stays where it is, for comparison.""")
    rig("guest", "hosta", NAME, "redis", "--ip", ADDRESS)
    floor.make_twin("hosta")
    on("hosta", "lxc-ls", "--fancy")
    before = probe("hosta", "--quick")
    title("What CRIU alone needs")
    say("""CRIU is the program that writes a running program's memory into files and makes the program run again from
        them. A move consists of that and the transfer to the other host, so it can hardly be quicker. This is what CRIU
        takes on this machine: by hand, on one host, with the files in memory.""")
    measured = [floor.measure("hosta", show=True)]
    title("The move, stage by stage")
    say("""From a third computer the customer opens one connection, asks the server to add one to a counter, checks the
        answer, and asks again, without a pause. The connection is never reopened: if the move breaks it, or loses or
        changes a single answer, the figures at the end will show it.""")
    with counting_client() as client:
        client.wait_for_answers("hosta")
        seconds = {}
        for stage, host, arguments, meaning in STAGES:
            print(f"\n{meaning}", flush=True)
            begun = time.monotonic()
            on(host, "migrator", stage, NAME, *arguments)
            seconds[stage] = time.monotonic() - begun
        print("\nWhere is it now?", flush=True)
        on("hosta", "lxc-ls", "--fancy")
        on("hostb", "lxc-ls", "--fancy")
        there = migration("hosta"), migration("hostb")
        title("And back, in one command")
        begun = time.monotonic()
        on("hostb", "migrator", "migrate", NAME, "-d", "root@hosta")
        seconds_back = time.monotonic() - begun
        back = migration("hostb"), migration("hosta")
        client.wait_for_answers("hosta")
    title("Afterwards")
    print("What CRIU alone needs, once more:", flush=True)
    measured.append(floor.measure("hosta"))
    after = probe("hosta")
    server = figures.server_of(before, after)
    print(f"\nReading back all values of the server: {figures.in_words(server)}", flush=True)
    print("\nA move keeps the copy it leaves behind, and a snapshot for the next move. Both can go now:", flush=True)
    for host in ("hostb", "hosta"):
        on(host, "migrator", "cleanup", NAME)
    seen = client.seen
    rounds = floor.together(measured)
    return {
        **figures.watched_move(seen, *there, sum(seconds.values()), rounds),
        "stages": [{"name": stage, "seconds": round(taken, 3)} for stage, taken in seconds.items()],
        "one_command": figures.watched_move(seen, *back, seconds_back, rounds),
        "floor": rounds,
        "client": figures.client_of(seen, after),
        "server": server,
        "values_verified": server["values_verified"],
        "left": left("hosta", "hostb"),
    }


# --- the client -----------------------------------------------------------------------------------------------


class CountingClient:
    """vagrant/guests/redis_client.py on a third host; `seen` is what it prints at its end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.seen: dict[str, Any] = {}

    def wait_for_answers(self, host: str) -> None:
        """Until the server, which is on `host` now, has answered it ANSWERS more times, or its connection broke."""
        begun = probe(host, "--quick").get("count", 0)
        more = begun + ANSWERS
        if not wait_for(lambda: self.process.poll() is not None or probe(host, "--quick").get("count", 0) >= more):
            raise DemoFailed("the client has no answers, and its connection did not break either")


@contextlib.contextmanager
def counting_client() -> Iterator[CountingClient]:
    """A client that sends requests without pause while the block runs."""
    command = ["python3", "/opt/rig/guests/redis_client.py", ADDRESS, "--gaps", waits.WORTH_A_NOTE,
               "--seconds", f"{2 * COMMAND_LIMIT:g}", "--patience", f"{PATIENCE:g}"]
    typed("client", *command, behind=" &")
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([RIG, "exec", "client", "--", *command], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                   stdout=out)
        client = CountingClient(process)
        try:
            yield client
            process.terminate()
            process.wait(2 * PATIENCE)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        out.seek(0)
        text = out.read().decode()
    if not text:
        raise DemoFailed(f"the client ended with exit status {process.returncode} and told nothing")
    client.seen.update(json.loads(text))


if __name__ == "__main__":
    sys.exit(main())
