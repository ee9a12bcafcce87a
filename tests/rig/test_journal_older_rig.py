# SPDX-License-Identifier: GPL-2.0-or-later
"""The container runs on the destination, whose journal is put back from before that, or is lost."""

from __future__ import annotations

import pytest

from harness.rig import Rig
from tests.rig.boot_guest import dumped, guest, runs_only_on, states  # noqa: F401 -- a fixture
from tests.rig.outcomes import UNKNOWN, failed
from tests.rig.ticking import frozen

# ruff: noqa: F811 -- fixtures

JOURNAL = "/var/lib/migrator/journal.db"
UNRECORDED = 80, "runs-unrecorded"


@pytest.mark.nightly  # tests/stages/test_journal_older.py has it without hosts
@pytest.mark.parametrize("journal", ["older", "lost"])
def test_what_runs_there_is_kept_with_the_id(rig: Rig, guest: str, journal: str) -> None:
    dumped(rig)
    id_ = str(rig.status("hosta", "c1")["id"])
    rig.sh("hostb", f"cp {JOURNAL} /root/journal.db; rm -f /root/journal.db-*")
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.sh("hostb", f"rm -f {JOURNAL}*")
    if journal == "older":
        rig.sh("hostb", f"mv /root/journal.db {JOURNAL}")
        failed(rig.migrator("hostb", "restore-dump", "c1", "--json"), *UNRECORDED)
    for words in ("rollback", "finish"):
        failed(rig.migrator("hosta", words, "c1", "--json"), *UNRECORDED)
    resumed = rig.migrator("hosta", "resume", "c1", "--json")
    failed(resumed, *(UNRECORDED if journal == "older" else (UNKNOWN, "not-known-there")))
    failed(rig.migrator("hosta", "rollback", "c1", "--force", id_, "--json"), *UNRECORDED)
    rig.migrator("hostb", "cleanup").expect(0)
    cure = str(failed(rig.migrator("hosta", "rollback", "c1", "--json"), *UNRECORDED)["cure"])
    path = " -P /pool" if journal == "older" else ""  # else that host does not know where it lies here
    assert f"migrator finish c1{path} --force {id_}" in cure and "lxc-stop -k -P /pool c1" in cure and frozen(rig)

    rig.migrator("hosta", "finish", "c1", "--force", id_).expect(0)
    runs_only_on(rig, "hostb", guest)
    if journal == "older":  # else that host never hears of it
        assert states(rig) == ("finished", "finished")
    rig.migrator("hosta", "cleanup", "c1").expect(0)
    rig.migrator("hostb", "cleanup", "c1").expect(0)


@pytest.mark.nightly  # tests/stages/test_ended_before.py has it without hosts
def test_what_has_ended_ends_by_an_older_journal_too(rig: Rig, guest: str) -> None:
    dumped(rig)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.sh("hostb", f"cp {JOURNAL} /root/journal.db")
    rig.migrator("hosta", "finish", "c1").expect(0)
    rig.sh("hostb", f"rm -f {JOURNAL}*; mv /root/journal.db {JOURNAL}")
    assert states(rig) == ("finished", "restored")
    assert "This asks hosta: migrator resume c1" in rig.migrator("hostb", "status", "c1").expect(0).stdout
    rig.migrator("hostb", "resume", "c1").expect(0)
    assert states(rig) == ("finished", "finished")
    runs_only_on(rig, "hostb", guest)
