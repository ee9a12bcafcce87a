# SPDX-License-Identifier: GPL-2.0-or-later
"""`migrator abort` of a worker that keeps everybody from the journal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from migrator.base.result import Result
from migrator.errors.this_host import JournalBroken
from migrator.record import container_lock
from migrator.record.journal import Journal
from migrator.record.states import Event, Role
from migrator.record.transactions import is_busy
from stages import abort
from stages.steps import arguments, roll_back
from stages.steps.options import EndOptions, NamedContainer

# On a full disk the journal is had alone for the time of an access, in which it is stopped here. Called as a command
# that is asked to stop, or as another one.
WORKER = """
import os, signal, sqlite3, sys, time
from pathlib import Path
from migrator.record import container_lock
from migrator.record.migration_paths import locked
signal.signal(container_lock.ABORT, lambda *_: sys.exit(7))
with locked("web", Path(sys.argv[2]), lxcpath=Path(sys.argv[3])):
    alone = sqlite3.connect(sys.argv[4], isolation_level=None)
    alone.execute("PRAGMA locking_mode = EXCLUSIVE")
    alone.execute("PRAGMA user_version").fetchone()
    os.kill(os.getpid(), signal.SIGSTOP)
    alone.close()
    while True:  # a signal that comes just before a sleep is noticed after it
        time.sleep(0.05)
"""


@pytest.mark.parametrize("command", ["migrate", container_lock.SERVE])
def test_one_that_was_stopped_in_the_journal_goes_on_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           command: str) -> None:
    """What answers another host is nothing that could be given up, and whoever has stopped it continues it."""
    path, locks = tmp_path / "journal.db", tmp_path / "lock"
    with Journal(path) as journal:
        migration = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=tmp_path, peer="root@hostb",
                                   event=Event.SEND, rounds=[])
    rolled_back: list[str] = []

    def rolls_back(_: EndOptions) -> Result:
        rolled_back.append(migration.id)
        return Result({}, "")

    monkeypatch.setattr(container_lock, "LOCKS", locks)
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    monkeypatch.setattr(roll_back, "run", rolls_back)
    monkeypatch.setattr(abort, "DEFAULT_PATH", path)
    patience = 0.05 if command == container_lock.SERVE else 600.0
    monkeypatch.setattr(abort, "Journal", lambda path, seconds=patience: Journal(path, seconds))
    words = [sys.executable, "-c", WORKER, command, str(locks), str(tmp_path), str(path)]
    options = EndOptions(NamedContainer("web", str(tmp_path)))
    with subprocess.Popen(words) as worker:
        try:
            seen = os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            assert seen and seen.si_code == os.CLD_STOPPED
            if command == container_lock.SERVE:
                with pytest.raises(JournalBroken) as broken:
                    abort.run(options)
                assert is_busy(broken.value) and os.waitpid(worker.pid, os.WNOHANG | os.WCONTINUED) == (0, 0)
            else:
                done = abort.run(options)
                assert done.data["stopped"]["pid"] == worker.pid and worker.wait() == 7 and rolled_back == ["0badc0de"]
        finally:
            worker.kill()
