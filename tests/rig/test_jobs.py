# SPDX-License-Identifier: GPL-2.0-or-later
"""Job control from another terminal: status, wait and abort while a migration is under way between two real hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from harness.rig import Outcome, Rig, Running, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import DUMP, RESTORE, held, held_stream
from tests.rig.moves import ALL_AT_ONCE, arrived, events, guest, migrate, runs_only_on
from tests.rig.outcomes import failed
from tests.rig.ticking import frozen

__all__ = ["guest"]


def given_up(rig: Rig, outcome: Outcome) -> None:
    """The command that was aborted says so; the container runs on hosta, and nothing of the attempt is left."""
    assert "Interrupted by migrator abort: giving up the attempt" in outcome.expect(130).stderr
    runs_only_on(rig, "hosta")
    assert rig.status("hosta", "c1")["state"] == "rolled-back"
    assert rig.leftovers() == [] and rig.sh("hostb", "ls /pool").strip() == ""


@contextlib.contextmanager
def waiting(rig: Rig, *hosts: str) -> Iterator[list[Running]]:
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(rig.start(host, "migrator", "wait", "c1", "--json")) for host in hosts]
        wait_for(lambda: all("state" in each.stderr for each in started), "they wait")
        yield started


def sent(rig: Rig) -> int:
    """Bytes, as the process that sends them says."""
    return int((rig.status("hosta", "c1")["working"]["progress"] or {"bytes": 0})["bytes"])


def test_abort_while_the_disk_is_sent(rig: Rig, guest: Callable[[str], None]) -> None:
    rig.exec("hosta", "dd", "if=/dev/urandom", "of=/pool/c1/rootfs/blob", "bs=1M", "count=32", "status=none")
    with held_stream(rig, "hosta", 14 << 20), rig.start("hosta", *ALL_AT_ONCE) as running:
        wait_for(lambda: arrived(rig) >= 12 << 20, "some of it has arrived")
        wait_for(lambda: sent(rig) > 1 << 20, "the source has heard so")
        working = rig.status("hosta", "c1")["working"]
        assert (working["command"], working["step"]) == ("migrate", "send")
        assert rig.sh("hosta", f"tr '\\0' ' ' </proc/{working['pid']}/cmdline").strip().endswith(" ".join(ALL_AT_ONCE))
        assert 0 < working["progress"]["bytes"] < working["progress"]["total"]
        there = rig.status("hostb", "c1")
        assert there["working"]["command"] == "serve" and there["bytes"]["spool"] >= 12 << 20
        failed(rig.migrator("hosta", "wait", "c1", "--timeout", "0.3", "--json"), 17, "still-under-way")
        assert "migrator abort c1 -P /pool   (on hosta)" in str(
            failed(rig.migrator("hostb", "abort", "c1", "--json"), 34, "abort-elsewhere")["cure"])
        with waiting(rig, "hosta", "hostb") as waits:
            done = rig.migrator("hosta", "abort", "c1", "--json").expect(0).json
            assert done["stopped"]["pid"] == working["pid"] and not done["already"]
            given_up(rig, running.wait())
            for each in waits:
                failed(each.wait(), 33, "rolled-back")
    again = rig.migrator("hosta", "abort", "c1", "--json").expect(0).json
    assert again["already"] is True and again["stopped"] is None
    failed(rig.migrator("hosta", "wait", "c1", "--json"), 33, "rolled-back")


def test_a_second_abort_does_not_kill(rig: Rig, guest: Callable[[str], None]) -> None:
    """While CRIU dumps, a second Ctrl-C would end the program and leave the container frozen."""
    abort = ("migrator", "abort", "c1")
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *ALL_AT_ONCE) as running:
        criu.wait("CRIU has begun")
        with rig.start("hosta", *abort) as first:
            wait_for(lambda: "Interrupted" in running.stderr, "it has heard the first")
            with rig.start("hosta", *abort) as second:
                wait_for(lambda: "Stopping" in second.stderr, "it hears the second")
                criu.release()
                second.wait().expect(0)
            first.wait().expect(0)
        given_up(rig, running.wait())


def test_abort_and_wait_where_nobody_works(rig: Rig, guest: Callable[[str], None]) -> None:
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", *ALL_AT_ONCE) as running:
        criu.wait("CRIU has begun")
        with waiting(rig, "hosta") as (watched,):
            running.signal(9)
            running.wait()
            criu.release()
            assert "migrator resume c1" in str(failed(watched.wait(), 32, "broken-off")["cure"])
    assert rig.status("hosta", "c1")["working"] is None and not frozen(rig)
    wait_for(lambda: "criu" not in rig.sh("hosta", "ps ax"), "CRIU, which was left behind, has ended")
    shown = migrate(rig, "c1", "hosta", "--dry-run").expect(0).json
    assert shown["dry_run"][0]["stage"] == "create-dump" and rig.status("hosta", "c1")["state"] == "dumping"
    done = rig.migrator("hosta", "abort", "c1", "--json").expect(0).json
    assert done["stopped"] is None
    guest("hosta")
    assert rig.leftovers() == []


def test_too_late_to_abort(rig: Rig, guest: Callable[[str], None]) -> None:
    with held(rig, "hostb", "criu", RESTORE) as criu, rig.start("hosta", *ALL_AT_ONCE) as running:
        criu.wait("CRIU has begun")
        with waiting(rig, "hosta", "hostb") as waits:
            with rig.start("hosta", "migrator", "abort", "c1", "--json") as aborting:
                wait_for(lambda: "Interrupted" in running.stderr, "it has heard it")
                criu.release()
                failed(aborting.wait(), 29, "already-runs")
            for each in waits:
                outcome = each.wait().expect(0)
                assert events(outcome, "state")[0]["working"] and outcome.json["state"] == "finished"
        running.wait().expect(0)
    guest("hostb")


def test_without_a_migration(rig: Rig, clean_hosts: CleanHosts) -> None:
    assert rig.migrator("hosta", "abort", "c1", "--json").expect(0).json["already"] is True
    failed(rig.migrator("hosta", "wait", "c1", "--json"), 26, "no-migration")
