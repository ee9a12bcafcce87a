# SPDX-License-Identifier: GPL-2.0-or-later
"""A stock Debian guest: what `check` finds in it, and how `prepare-guest` makes it possible to move it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from harness.rig import DESTINATION, POOL, Outcome, Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import DUMP, held
from tests.rig.moves import migrate
from tests.rig.outcomes import RUNS_AGAIN, failed
from tests.rig.service_clients import clients_of
from tests.rig.systemd_guests import ADDRESS, attach, booted

NAME = "deb"
LOCALTIME = "../usr/share/zoneinfo/Europe/Berlin"
GETTYS = {"console-getty.service", *(f"container-getty@{number}.service" for number in range(1, 5))}
UNITS = GETTYS | {"redis-server.service", "systemd-logind.service"}


def check(rig: Rig, host: str = "hosta") -> Outcome:
    return rig.migrator(host, "check", "-P", POOL, NAME, "-d", DESTINATION, "--json")


def prepare(rig: Rig, host: str, *more: str) -> Outcome:
    return rig.migrator(host, "prepare-guest", "-P", POOL, NAME, "--json", *more)


def localtime(rig: Rig, host: str) -> str:
    return attach(rig, host, NAME, "readlink", "/etc/localtime", check=False).strip()


def nothing_restarted(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Apart from mounts for credentials, which are unmounted if they are empty."""
    return all(now["units"].get(unit) == started for unit, started in before["units"].items()
               if not unit.startswith("run-credentials-"))


@pytest.fixture(name="guest")
def stock_guest(rig: Rig, clean_hosts: CleanHosts) -> Rig:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", NAME, "systemd", unprivileged=True)
    attach(rig, "hosta", NAME, "ln", "-sfn", LOCALTIME, "/etc/localtime")
    return rig


def test_from_stock_to_moved(guest: Rig) -> None:
    rig = guest
    found = check(rig)
    seen = {(each["code"], unit) for each in found.json["findings"] if each["severity"] == "error"
            for unit in UNITS if f" of {unit}" in each["message"]}
    assert seen == {
        *(("mount-unsupported", unit) for unit in GETTYS),
        ("nested-namespace", "redis-server.service"), ("nested-namespace", "systemd-logind.service"),
    }
    assert "include-unreadable" not in {each["code"] for each in found.json["findings"]}, "stock folders may be missing"
    assert found.json["verdict"] == "blocked"
    assert found.json["prepare"] == f"migrator prepare-guest {NAME} -P {POOL} --yes"
    before = rig.probe("hosta", NAME)

    shown = prepare(rig, "hosta").expect(0).json
    assert set(shown["units"]) == UNITS and not shown["done"]
    assert prepare(rig, "hosta", "--yes", "--dry-run").json == shown
    assert rig.probe("hosta", NAME)["units"] == before["units"], "nothing has been restarted"

    prepare(rig, "hosta", "--yes").expect(0)
    prepared = rig.probe("hosta", NAME)
    restarted = {unit for unit, started in before["units"].items() if prepared["units"].get(unit) != started}
    assert restarted == UNITS, "these, and no others"
    again = prepare(rig, "hosta", "--yes").expect(0).json
    assert again["units"] == [] and rig.probe("hosta", NAME)["units"] == prepared["units"]
    assert check(rig).json["verdict"] != "blocked" and check(rig).json["prepare"] is None

    for host, other in (("hosta", "hostb"), ("hostb", "hosta")):
        migrate(rig, NAME, host).expect(0)
        now = rig.probe(other, NAME)
        assert now["intact"] and nothing_restarted(prepared, now)
        assert localtime(rig, other) == LOCALTIME, "put back, as it was"

    prepare(rig, "hosta", "--undo").expect(0)
    prepare(rig, "hosta", "--undo").expect(0)
    attach(rig, "hosta", NAME, "systemctl", "restart", "redis-server")
    assert check(rig).json["verdict"] == "blocked"


def logged_in(rig: Rig, host: str) -> dict[str, str]:
    """The pid of who leads each session, by the session's id."""
    rows = [line.split() for line in attach(rig, host, NAME, "loginctl", "list-sessions", "--no-legend").splitlines()]
    return {id_: leader for id_, _, _, _, leader, kind, *_ in rows if kind == "user"}


def blocking(rig: Rig) -> list[dict[str, str]]:
    return [each for each in check(rig).json["findings"] if each["severity"] == "error"]


@pytest.mark.nightly  # it waits until a session and its user's systemd have ended
def test_who_is_logged_in_stays_so(rig: Rig, clean_hosts: CleanHosts) -> None:
    """While systemd-logind is restarted. check then names who must log in again; after that they move along."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", NAME, "systemd", unprivileged=True, ip=ADDRESS)
    asleep = ("ssh", "-tt", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", f"root@{ADDRESS}", "sleep", "1h")
    with rig.start("client", *asleep):
        wait_for(lambda: len(logged_in(rig, "hosta")) == 1, "somebody is logged in")
        with clients_of(rig, ADDRESS, "ssh"):  # a shell, a job, and a terminal, which all are the same throughout
            before = logged_in(rig, "hosta")
            shown = rig.migrator("hosta", "prepare-guest", "-P", POOL, NAME).expect(0).stdout
            assert shown.count("until it has ended") == len(before) == 2
            done = prepare(rig, "hosta", "--yes").expect(30).json
            assert {each["scope"]: each["ends"] for each in done["sessions"]} == {
                f"session-{each}.scope": False for each in before}
            assert "systemd-logind.service" in done["units"] and logged_in(rig, "hosta") == before
        cures = [each["cure"] for each in blocking(rig)]
        assert cures and all("loginctl terminate-" in cure for cure in cures)
        for cure in cures:  # the first may end the others as well
            rig.sh("hosta", cure[cure.index("lxc-attach"):], check=False)
        wait_for(lambda: not blocking(rig), "nothing blocks the move any more")
    with clients_of(rig, ADDRESS, "ssh"):
        again = logged_in(rig, "hosta")
        migrate(rig, NAME, "hosta").expect(0)
        assert logged_in(rig, "hostb") == again and len(again) == 1


@pytest.mark.nightly  # it is like the one above, of what no session has
def test_a_lock_that_was_taken_before(guest: Rig) -> None:
    """By a service, from the systemd-logind of before: prepare-guest has the service restarted as well."""
    rig = guest
    rig.put("hosta", f"{POOL}/{NAME}/rootfs/etc/systemd/system/lock.service",
            "[Service]\nExecStart=systemd-inhibit sleep infinity\n")
    attach(rig, "hosta", NAME, "systemctl", "daemon-reload")
    attach(rig, "hosta", NAME, "systemctl", "start", "lock.service")
    locks = ("systemd-inhibit", "--list", "--no-legend")
    wait_for(lambda: attach(rig, "hosta", NAME, *locks), "it has the lock")
    (error,) = prepare(rig, "hosta", "--yes").expect(30).json["findings"]
    assert error["code"] == "outside-file" and "of lock.service)" in error["message"]
    assert prepare(rig, "hosta", "--yes").expect(0).json["units"] == ["lock.service"]
    wait_for(lambda: attach(rig, "hosta", NAME, *locks), "it has the lock again")
    migrate(rig, NAME, "hosta").expect(0)
    assert attach(rig, "hostb", NAME, *locks)


def test_a_dump_that_fails_leaves_the_guest_as_it_was(guest: Rig) -> None:
    rig = guest
    ignored = ("--ignore", "nested-namespace", "--ignore", "mount-unsupported")
    failed(migrate(rig, NAME, "hosta", *ignored), 91, "guest-not-ready")
    assert localtime(rig, "hosta") == LOCALTIME
    prepare(rig, "hosta", "--yes").expect(0)
    failed(migrate(rig, NAME, "hosta", "--max-downtime", "0.001"), RUNS_AGAIN, "downtime-exceeded")
    assert localtime(rig, "hosta") == LOCALTIME and rig.probe("hosta", NAME)["intact"]
    rig.migrator("hosta", "rollback", "-P", POOL, NAME).expect(0)


def test_one_that_is_killed_is_healed(guest: Rig) -> None:
    """Nothing is on record about what was changed in the guest; the next command looks in the guest itself."""
    rig = guest
    prepare(rig, "hosta", "--yes").expect(0)
    with held(rig, "hosta", "criu", DUMP) as dump:
        with rig.start("hosta", "migrator", "migrate", "-P", POOL, NAME, "-d", DESTINATION) as command:
            dump.wait("it is about to be dumped")
            command.signal(9)
        dump.release()
    rig.migrator("hosta", "resume", "--all", "--at-boot").expect(0)
    assert localtime(rig, "hosta") == LOCALTIME and rig.probe("hosta", NAME)["intact"]
    rig.migrator("hosta", "rollback", "-P", POOL, NAME).expect(0)


# The errors of io_uring_setup(2), called with more entries than it ever accepts, and of bpf(2).
CALLS = 'for (425, 321) { syscall($_, 1 << 30, 0, 0); print $! + 0, " " }'
REFUSED = "38 1 "


def calls(rig: Rig, host: str) -> str:
    return attach(rig, host, NAME, "perl", "-e", CALLS)


PROFILE = "/usr/share/lxc/config/common.seccomp"


@contextlib.contextmanager
def changed(rig: Rig, host: str, path: str) -> Iterator[None]:
    """The file has another line at its end while the block runs, as if its package had been updated."""
    before = rig.read(host, path)
    rig.put(host, path, f"{before}# of a later version\n")
    try:
        yield
    finally:
        rig.put(host, path, before)


def started_again(rig: Rig, host: str) -> None:
    rig.exec(host, "lxc-stop", "-n", NAME, "-t", "120")
    rig.exec(host, "lxc-start", "-n", NAME)
    wait_for(lambda: booted(rig, host, NAME), "it has booted")


def test_for_good(guest: Rig) -> None:
    """--for-good outlasts the next boot, unlike the drop-in in memory, and also holds on the host that it moves to."""
    rig = guest
    assert prepare(rig, "hosta", "--yes", "--for-good").expect(0).json["seccomp"] == ""
    assert calls(rig, "hosta") != REFUSED, "from its next start on"
    started_again(rig, "hosta")
    assert check(rig).json["prepare"] is None and prepare(rig, "hosta").json["units"] == []
    assert "seccomp-profile-missing" not in {each["code"] for each in check(rig).json["findings"]}
    assert calls(rig, "hosta") == REFUSED
    with changed(rig, "hosta", PROFILE):
        assert "seccomp-copy-outdated" in {each["code"] for each in check(rig).json["findings"]}
        prepare(rig, "hosta", "--yes", "--for-good").expect(0)
        assert "seccomp-copy-outdated" not in {each["code"] for each in check(rig).json["findings"]}
    migrate(rig, NAME, "hosta").expect(0)
    assert calls(rig, "hostb") == REFUSED
    started_again(rig, "hostb")
    assert calls(rig, "hostb") == REFUSED
    migrate(rig, NAME, "hostb").expect(0)
    prepare(rig, "hosta", "--undo").expect(0)
    assert attach(rig, "hosta", NAME, "find", "/etc/systemd", "/run/systemd/system", "-name", "*zz-migrator*") == ""
    assert "migrator" not in rig.read("hosta", f"{POOL}/{NAME}/config")


@pytest.mark.nightly  # as the one above
def test_an_older_systemd(rig: Rig, clean_hosts: CleanHosts) -> None:
    """That of Debian 12, which does not know all the settings in the drop-in."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", NAME, "systemd12", unprivileged=True)
    prepare(rig, "hosta", "--yes").expect(0)
    before = rig.probe("hosta", NAME)
    for host, other in (("hosta", "hostb"), ("hostb", "hosta")):
        migrate(rig, NAME, host).expect(0)
        now = rig.probe(other, NAME)
        assert now["intact"] and nothing_restarted(before, now)
        assert attach(rig, other, NAME, "test", "-L", "/etc/localtime") == ""
