# SPDX-License-Identifier: GPL-2.0-or-later
"""A part of `make demo`: a whole Debian, booted by systemd, moves there and back under clients of its services.

PostgreSQL has a transaction open all the time, and somebody is logged in by SSH. No unit may be restarted.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import figures, waits
from bench.figures import WholeSystem
from bench.hosts import (
    COMMAND_LIMIT,
    ENVIRONMENT,
    RIG,
    DemoFailed,
    left,
    migration,
    on,
    probe,
    rig,
    say,
    title,
    typed,
    wait_for,
)

NAME = "office"
ADDRESS = "10.0.3.102"
PATIENCE = 300.0  # seconds that a client waits for one answer before it gives its connection up as broken


def demonstrate() -> WholeSystem:
    """Prepare it, move it there and back under its clients; returns the figures."""
    title("A whole Debian, with a transaction open")
    say(f"""The container "{NAME}" is a Debian 13 as it is installed: booted by systemd, with journald, logind,
        resolved, dbus, cron, sshd, nginx, Redis and PostgreSQL under users of their own. It is unprivileged: its root
        has no rights on the host. Some of its services are run in a way that CRIU cannot save. So they, and no others,
        are restarted once before anybody uses them.""")
    rig("guest", "hosta", NAME, "systemd", "--ip", ADDRESS, "--unprivileged")
    on("hosta", "sh", "-c", f"migrator check {NAME} -d root@hostb | tail -n 1")
    on("hosta", "migrator", "prepare-guest", NAME, "--yes")
    title("It moves there and back, in one command each")
    say("""Four clients on the third computer each open one connection, which is never reopened, and check every answer.
        One inserts rows in PostgreSQL, in a single transaction; one counts in Redis; one gets a page from nginx; and
        one types in a shell that it has logged in to by SSH, with a job in the background.""")
    with clients() as seen:
        before = probe("hosta", name=NAME)
        if not before["intact"]:
            raise DemoFailed(f"{NAME} is not as it should be before it moves: {before}")
        begun = time.monotonic()
        on("hosta", "migrator", "migrate", NAME, "-d", "root@hostb")
        seconds = time.monotonic() - begun
        there = migration("hosta", NAME), migration("hostb", NAME)
        begun = time.monotonic()
        on("hostb", "migrator", "migrate", NAME, "-d", "root@hosta")
        seconds_back = time.monotonic() - begun
        back = migration("hostb", NAME), migration("hosta", NAME)
        after = probe("hosta", name=NAME)
    guest = figures.system_of(before, after)
    rows = seen["postgresql"].get("rows", 0)
    if rows:
        print(f"\nThe client of PostgreSQL typed COMMIT: its {figures.number(rows)} rows are there for everybody; until"
              " then nobody else saw any.")
    print(f"\nThe services of {NAME}: {figures.unchanged(guest)}", flush=True)
    print("\nWhat the move has kept can be removed now:", flush=True)
    for host in ("hostb", "hosta"):
        on(host, "migrator", "cleanup", NAME)
    return {
        **figures.system_move(seen, *there, seconds),
        "back": figures.system_move(seen, *back, seconds_back),
        "clients": figures.services_of(seen), "rows": rows, "system": guest,
        "left": left("hosta", "hostb"),
    }


@contextlib.contextmanager
def clients() -> Iterator[dict[str, dict[str, Any]]]:
    """Clients of all services while the block runs; after it, what vagrant/guests/service_clients.py told of each."""
    command = ["python3", "/opt/rig/guests/service_clients.py", ADDRESS, "--gaps", waits.WORTH_A_NOTE,
               "--seconds", f"{2 * COMMAND_LIMIT:g}", "--patience", f"{PATIENCE:g}"]
    typed("client", *command, behind=" &")
    seen: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        said, told = Path(folder, "said"), Path(folder, "told")
        with said.open("wb") as err, told.open("wb") as out:
            process = subprocess.Popen([RIG, "exec", "client", "--", *command], env=ENVIRONMENT,
                                       stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            wait_for(lambda: b"connected" in said.read_bytes() or process.poll() is not None, limit=2 * PATIENCE)
            yield seen
            process.terminate()
            process.wait(2 * PATIENCE)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        text, error = told.read_text(), said.read_text()
    if not text:
        raise DemoFailed(f"the clients ended with exit status {process.returncode} and told nothing\n{error}".rstrip())
    seen.update(json.loads(text))
