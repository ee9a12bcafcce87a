# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of the source's journal is full when a container stands still there: it is given back all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.rig import Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import DUMP, held
from tests.rig.moves import TO_B
from tests.rig.outcomes import failed
from tests.rig.ticking import frozen, imported
from tests.rig.ticking import guest as ticking  # noqa: F401 -- a fixture
from tests.rig.ticking import roll_back as given_up
from tests.rig.without_memory import SENT_STOPPED, WITHOUT
from tests.rig.without_memory import guest as starting  # noqa: F401 -- a fixture

FOLDER, DISK = "/var/lib/migrator", "/mnt/journal"
FILLER = f"{DISK}/filler"


@pytest.fixture
def small(rig: Rig) -> Iterator[None]:
    """The journal lies on a small disk of its own."""
    rig.sh("hosta", f"mkdir {DISK}; mount -t tmpfs -o size=1m,mode=0700 none {DISK}; rm -rf {FOLDER};"
                    f" ln -s {DISK} {FOLDER}")
    yield
    rig.sh("hosta", f"rm {FOLDER}; umount {DISK} && rmdir {DISK}")


def fill(rig: Rig) -> None:
    """Nor is there the file by which commands share the journal: the next one makes it anew in any case."""
    rig.sh("hosta", f"rm -f {DISK}/journal.db-shm; dd if=/dev/zero of={FILLER} bs=4k 2>/dev/null || true")
    assert rig.sh("hosta", f"df --output=avail {DISK} | tail -1").strip() == "0"


def test_what_was_stopped_is_started_again(rig: Rig, starting: Callable[[str, int], None],  # noqa: F811
                                           small: None) -> None:
    """And once there is room that is recorded."""
    with held(rig, "hosta", "btrfs", SENT_STOPPED) as hold, rig.start("hosta", *WITHOUT) as running:
        hold.wait("it is stopped")
        running.signal(9)
        running.wait()
    fill(rig)
    error = failed(rig.migrator("hosta", "rollback", "c1", "--json"), 15, "journal-broken")
    assert "df -h" in str(error["cure"])
    assert rig.probe("hosta", "c1")["starts"] == 2
    assert rig.status("hosta", "c1")["state"] == "dumping"
    rig.exec("hosta", "rm", FILLER)
    rig.migrator("hosta", "rollback", "c1").expect(0)
    starting("hosta", 2)


def test_what_is_frozen_is_thawed_by_its_watchdog(rig: Rig, ticking: Callable[[], None],  # noqa: F811
                                                  small: None, clean_hosts: CleanHosts) -> None:
    """At once, and not when the freeze has lasted for too long."""
    clean_hosts.allow("snapshot")  # kept for the next attempt, by a journal that goes with its disk
    imported(rig)
    with held(rig, "hosta", "criu", DUMP) as criu:
        with rig.start("hosta", "migrator", "create-dump", "c1", *TO_B, "--max-downtime", "86400") as dumping:
            criu.wait("CRIU has begun")
            dumping.signal(9)
            dumping.wait()
            assert frozen(rig)
            fill(rig)
        criu.release()
        wait_for(lambda: not frozen(rig), "it is thawed")
    ticking()
    rig.exec("hosta", "rm", FILLER)
    given_up(rig, ticking)
