# SPDX-License-Identifier: GPL-2.0-or-later
"""After a reboot of either host: status tells the truth on both, and resume on either heals. And what --force does."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.rig import DESTINATION, Rig, wait_for
from tests.rig.absence import cut_off, reboot
from tests.rig.boot_guest import dumped, guest, refuses_to_start, runs_only_on, states  # noqa: F401 -- a fixture
from tests.rig.held import RESTORE, Hold, held
from tests.rig.moves import TO_B
from tests.rig.outcomes import UNKNOWN, failed
from tests.rig.ticking import frozen


def killed_while_dumping(rig: Rig) -> None:
    command = ("migrator", "create-dump", "c1", *TO_B)
    with held(rig, "hosta", "criu", '[ "$1" = dump ]') as hold, rig.start("hosta", *command) as dumping:
        hold.wait("it is dumped")
        assert frozen(rig)
        dumping.signal(9)
        dumping.wait()
        reboot(rig, "hosta")
    wait_for(lambda: "migrator serve" not in rig.sh("hostb", "ps ax"), "the destination has noticed")


# --- the source -----------------------------------------------------------------------------------------------


@pytest.mark.nightly  # typed there it is below
def test_source_rebooted_while_it_was_dumped(rig: Rig, guest: str) -> None:
    """The token is here: it is started from its disk, at boot already; the move goes on when it is told to.

    Another one, whose data was under way, is left alone at boot; that it cannot go on afterwards stops nothing else.
    """
    rig.guest("hosta", "c2", "tick")
    rig.migrator("hosta", "prepare-data", "c2", *TO_B).expect(0)
    rig.migrator("hosta", "rollback", "c1").expect(0)  # so that c2's is the older one
    rig.sh("hosta", "sed -i 's/lxc.start.auto = 1/lxc.start.auto = 0/' /pool/c1/config")
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    killed_while_dumping(rig)
    here = rig.status("hosta", "c1")
    assert here["state"] == "dumping" and here["owner"] == "source"
    assert "memory" in here["note"] and "gone" in here["note"], here["note"]
    told = rig.migrator("hosta", "resume", "--all", "--at-boot", "--json").expect(0).json
    assert [(each["name"], each["status"]) for each in told["migrations"]] == [("c2", 0), ("c1", 0)]
    assert rig.sh("hosta", "lxc-info -n c2 -sH").strip() == "STOPPED"
    runs_only_on(rig, "hosta", guest, starts=2)
    assert states(rig)[0] == "prepared"
    told = rig.migrator("hosta", "resume", "--all", "--json").expect(22).json
    assert [(each["name"], each["status"]) for each in told["migrations"]] == [("c2", 22), ("c1", 0)]
    runs_only_on(rig, "hostb", guest, starts=2)
    rig.migrator("hosta", "rollback", "c2").expect(0)


@pytest.mark.parametrize(("host", "command"), [
    ("hosta", ("--all", "--at-boot")), pytest.param("hostb", ("c1",), marks=pytest.mark.nightly)])
def test_source_rebooted_after_the_hand_over(rig: Rig, guest: str, host: str, command: tuple[str, ...]) -> None:
    """Only the destination may run it, and has all of it: by the source's unit at boot, or typed there."""
    dumped(rig)
    reboot(rig, "hosta")
    here = rig.status("hosta", "c1")
    assert here["state"] == "dumped" and here["owner"] == "destination"
    assert "gone" in here["note"] and "hostb has the token" in here["note"], here["note"]
    refuses_to_start(rig, "hosta")
    rig.migrator(host, "resume", *command).expect(0)
    runs_only_on(rig, "hostb", guest)
    assert states(rig) == ("finished", "finished")


def test_resume_there_after_a_reboot_of_the_source_while_it_was_dumped(rig: Rig, guest: str) -> None:
    """The source has the token: it has started the container again at boot, and goes on as it is told."""
    killed_while_dumping(rig)
    rig.migrator("hostb", "resume", "c1").expect(0)
    runs_only_on(rig, "hostb", guest, starts=2)
    assert states(rig) == ("finished", "finished")


# --- the destination ------------------------------------------------------------------------------------------


def test_destination_rebooted_with_the_token(rig: Rig, guest: str) -> None:
    """Its images are gone: it gives the token back, and has the source thaw."""
    dumped(rig)
    reboot(rig, "hostb")
    there = rig.status("hostb", "c1")
    assert there["owner"] == "destination" and "images are gone" in there["note"], there
    assert there["next"] == "migrator resume c1"
    done = rig.migrator("hostb", "resume", "c1", "--json").expect(0)
    assert done.json["source"]["thawed"] is True
    runs_only_on(rig, "hosta", guest)
    assert states(rig) == ("rolled-back", "abandoned")
    assert rig.migrator("hostb", "resume", "c1", "--json").expect(0).json["already"] is True


@pytest.mark.nightly  # test_word.py has one rebooted
def test_both_rebooted_and_the_source_cannot_be_reached(rig: Rig, guest: str) -> None:
    """Each says what it knows; what the destination gave back is on record, and the source starts it from its disk."""
    dumped(rig)
    reboot(rig, "hosta")
    reboot(rig, "hostb")
    error = failed(rig.migrator("hostb", "resume", "c1", "-s", "root@10.0.3.250", "--timeout", "1", "--json"),
                   66, "source-needed")
    assert "migrator resume c1 -P /pool   (on hosta)" in str(error["cure"])
    assert states(rig) == ("dumped", "abandoned")
    refuses_to_start(rig, "hosta")
    rig.migrator("hosta", "resume", "--all", "--at-boot").expect(0)
    runs_only_on(rig, "hosta", guest, starts=2)
    # Asked once more, hosta has nothing left to do.
    assert rig.migrator("hostb", "resume", "c1", "--json").expect(0).json["source"] is None


def test_resume_there_restores_and_has_the_source_finish(rig: Rig, guest: str) -> None:
    """At boot not before the source was asked: it may have been told that this host is lost."""
    dumped(rig)
    unasked = rig.migrator("hostb", "resume", "--all", "--at-boot", "-s", "root@10.0.3.250", "--timeout", "1", "--json")
    assert unasked.expect(66).json["migrations"][0]["error"]["code"] == "source-needed"
    assert states(rig) == ("dumped", "owned")
    rig.migrator("hostb", "resume", "c1").expect(0)
    runs_only_on(rig, "hostb", guest)
    assert states(rig) == ("finished", "finished")


# --- lost for good --------------------------------------------------------------------------------------------


@pytest.fixture
def restoring(rig: Rig, guest: str) -> Iterator[Hold]:
    """hostb stands still in the middle of a restore that nobody waits for any more, until that is released."""
    words = ("migrator", "migrate", "c1", "-d", DESTINATION, "--max-downtime", "40")
    with held(rig, "hostb", "criu", RESTORE) as criu, rig.start("hosta", *words) as command:
        criu.wait("CRIU has begun")
        rig.kill_serve()
        command.signal(9)
        command.wait()
        yield criu


@pytest.mark.nightly
def test_forced_for_a_destination_that_is_lost(rig: Rig, guest: str, restoring: Hold) -> None:
    """The force waits until what stands still there may not let it run any more, and then it does not."""
    id_ = rig.status("hosta", "c1")["id"]
    with cut_off(rig):
        unknown = failed(rig.migrator("hosta", "resume", "c1", "--timeout", "1", "--json"), UNKNOWN, "host-unreachable")
        assert "--force" in str(unknown["cure"])
        for given in ((), ("0badc0de",)):
            refused = rig.migrator("hosta", "rollback", "c1", "--timeout", "1", "--json", "--force", *given)
            error = failed(refused, 67, "force-refused")
            assert "two copies" in str(error["message"])
            assert str(error["cure"]).endswith(f"migrator rollback c1 --force {id_}")
            assert frozen(rig)
        forced = rig.migrator("hosta", "rollback", "c1", "--force", id_, "--timeout", "1", "--json").expect(0).json
        assert forced["forced"] is True and forced["thawed"] is True
        found = rig.probe("hosta", "c1")
        assert found["intact"] and found["start"] == guest
        assert "by force" in rig.status("hosta", "c1")["note"]
    # It comes back after all, with the token and all images, and goes on with what it was at: it is too late for that.
    assert rig.status("hostb", "c1")["owner"] == "destination"
    restoring.release()
    wait_for(lambda: rig.exec("hostb", "pgrep", "-x", "criu|lxc-checkpoint", check=False).status == 1, "it has ended")
    said = rig.sh("hostb", "cat /run/migrator/*/at-restore.error /pool/.migrator/*/*/at-restore.error", check=False)
    assert "permission had expired" in said
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "STOPPED"
    # Asked first, the source tells it what has become of it.
    rig.migrator("hostb", "resume", "--all", "--at-boot").expect(0)
    runs_only_on(rig, "hosta", guest)
    assert states(rig) == ("rolled-back", "abandoned")
    assert rig.status("hosta", "c1")["note"] == "", "and it knows that hostb knows"
    assert rig.leftovers() == []


def test_what_is_no_silence_forces_nothing(rig: Rig, guest: str) -> None:
    """Ctrl-C, and every sign of life: it stays frozen, as if nothing had been typed."""
    dumped(rig)
    id_ = rig.status("hosta", "c1")["id"]
    force = ("migrator", "rollback", "c1", "--force", id_, "--json")
    with cut_off(rig), rig.start("hosta", *force, "--timeout", "100") as forcing:
        wait_for(lambda: "forcing" in rig.newest_detail("hosta"), "it asks hostb")
        forcing.signal(2)
        forcing.wait().expect(130)
    assert frozen(rig) and states(rig) == ("dumped", "owned")
    for file, code in (("/root/.ssh/authorized_keys", "ssh-refused"), ("/usr/local/bin/migrator", "remote-missing")):
        rig.exec("hostb", "mv", file, f"{file}.not-now")
        try:
            failed(rig.exec("hosta", *force, check=False), UNKNOWN, code)
        finally:
            rig.exec("hostb", "mv", f"{file}.not-now", file)
        assert frozen(rig) and states(rig) == ("dumped", "owned")
    rig.migrator("hosta", "rollback", "c1").expect(0)
    runs_only_on(rig, "hosta", guest)


def test_finished_without_a_source_that_is_lost(rig: Rig, guest: str) -> None:
    dumped(rig)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    id_ = rig.status("hostb", "c1")["id"]
    error = failed(rig.migrator("hostb", "finish", "c1", "--json"), 27, "out-of-order")
    assert "(on hosta)" in str(error["cure"])
    failed(rig.migrator("hostb", "finish", "c1", "--force", "--json"), 67, "force-refused")
    failed(rig.migrator("hostb", "finish", "c1", "--force", id_, "--json"), 27, "out-of-order")  # it answers
    rig.sh("hosta", "ip link set eth0 down")
    try:
        failed(rig.migrator("hostb", "cleanup", "c1", "--json"), 25, "already-migrating")
        rig.migrator("hostb", "finish", "c1", "--force", id_, "--timeout", "1").expect(0)
        rig.migrator("hostb", "cleanup", "c1").expect(0)
        assert rig.migrator("hostb", "resume", "c1", "--json").expect(0).json["already"] is True
    finally:
        rig.sh("hosta", "ip link set eth0 up")
    # It comes back: its copy is fenced, and ends as if nothing had been.
    rig.migrator("hosta", "resume", "c1").expect(0)
    runs_only_on(rig, "hostb", guest)
    assert states(rig) == ("finished", "finished")


def test_a_snapshot_in_its_place_is_still_it(rig: Rig, guest: str) -> None:
    """Somebody goes back to what he had put by, before the source has finished."""
    dumped(rig)
    id_ = rig.status("hosta", "c1")["id"]
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.sh("hostb", """lxc-stop -k -n c1 && cd /pool/c1 && btrfs -q subvolume snapshot -r rootfs /pool/kept &&
        btrfs -q subvolume delete rootfs && btrfs -q subvolume snapshot /pool/kept rootfs && lxc-start -n c1""")
    try:
        failed(rig.migrator("hosta", "rollback", "c1", "--force", id_, "--json"), 29, "already-runs")
        rig.migrator("hosta", "finish", "c1").expect(0)
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/kept")
    runs_only_on(rig, "hostb", guest, starts=2)
    assert states(rig) == ("finished", "finished")


@pytest.mark.nightly
def test_forced_though_it_had_run_there(rig: Rig, guest: str) -> None:
    """Not while it answers. Later: what nobody can prevent is told, and the copy there gives way once it is stopped."""
    dumped(rig)
    id_ = rig.status("hosta", "c1")["id"]
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    failed(rig.migrator("hosta", "rollback", "c1", "--force", id_, "--json"), 29, "already-runs")
    with cut_off(rig):
        off = ("--force", id_, "--machine-is-off")  # which is not so: nothing is waited for
        rig.migrator("hosta", "rollback", "c1", *off, "--timeout", "1").expect(0)
    for host, command in (("hosta", ("rollback", "c1")), ("hostb", ("resume", "c1"))):
        error = failed(rig.migrator(host, *command, "--json"), 69, "two-copies")
        assert "lxc-stop -k -P /pool c1" in str(error["cure"])
    rig.exec("hostb", "lxc-stop", "-k", "-P", "/pool", "c1")
    rig.migrator("hostb", "resume", "c1").expect(0)
    rig.reaches("client", "10.0.3.120")
    runs_only_on(rig, "hosta", guest)
    assert rig.status("hosta", "c1")["note"] == "", "it knows"
    assert rig.migrator("hostb", "cleanup", "c1").expect(0)
    assert rig.sh("hostb", "ls /pool").strip() == ""
