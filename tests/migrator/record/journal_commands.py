# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that use a journal, each as a command does: killed, ended, or still at work."""

from __future__ import annotations

# With the folder of the journal as the one argument. `full` leaves no block free; `command` is another one.
BEGIN = """
import os, signal, subprocess, sys, textwrap
from pathlib import Path
from migrator.base import log
from migrator.errors.this_host import JournalBroken
from migrator.record.journal import Journal
from migrator.record.states import Event, Role
folder = Path(sys.argv[1])
path, shared = folder / "journal.db", folder / "journal.db-shm"

def command(code):
    return subprocess.Popen([sys.executable, "-c", BEGIN + textwrap.dedent(code), str(folder)],
                            stdout=subprocess.PIPE, text=True)

def said(code):
    return command(code).communicate()[0].split()

def full():
    with open(folder / "filler", "wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            return

def no_inodes():
    (folder / "filler").unlink()
    for number in range(1000):
        try:
            (folder / str(number)).touch()
        except OSError:
            return
    raise RuntimeError("there is no end of them")

def found(journal):
    return journal.latest("web", Path("/pool"), Role.SOURCE)

def dumping(journal):
    made = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=Path("/pool"), peer="hostb",
                          event=Event.SEND, rounds=[])
    made.move(Event.SENT)
    made.move(Event.FREEZE)
    return made

def refused(do):
    try:
        do()
    except JournalBroken:
        return True

READ = "with Journal(path) as journal: print(found(journal).state)"
"""
KILLED = "dumping(Journal(path)); os.kill(os.getpid(), signal.SIGKILL)"
ENDED = "with Journal(path) as journal: dumping(journal)"
