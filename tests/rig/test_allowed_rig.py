# SPDX-License-Identifier: GPL-2.0-or-later
"""A key that may bring containers and nothing else, with a real sshd."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.rig import DESTINATION, Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import instead_of
from tests.rig.moves import runs_only_on
from tests.rig.outcomes import RUNS_AGAIN, failed

THERE = ("-d", DESTINATION, "--json")


def test_a_key_that_may_bring_containers(rig: Rig, clean_hosts: CleanHosts, limited: Callable[[str], None]) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    limited("receive,lxcpath=/pool,as=hosta")
    # Nothing but containers: no shell, no other command of migrator's, no pairing.
    for command in ("id", "migrator serve; id", "migrator status", "sh"):
        refused = rig.exec("hosta", "ssh", "-T", "root@hostb", command, check=False)
        assert refused.status == 41
        assert "only for `migrator serve`" in refused.stderr
        assert refused.stdout == ""
    assert rig.exec("hosta", "ssh", "-T", "root@hostb", check=False).status == 41
    rig.migrator("hosta", "peer", "add", "root@hostb").expect(48)
    assert rig.exec("hostb", "test", "-e", "/var/lib/migrator/peers", check=False).status != 0
    # Not to elsewhere.
    for command in ("check", "prepare-data", "migrate"):
        refused = rig.migrator("hosta", command, "c1", *THERE, "--destination-lxcpath", "/srv").expect(41)
        assert "only to /pool" in refused.error["message"]
    rig.migrator("hosta", "check", "c1", *THERE).expect(0)
    rig.migrator("hosta", "migrate", "c1", *THERE).expect(0)
    assert rig.probe("hostb", "c1")["intact"]
    # There and back and there again: what stands there fenced is known to be the same container's.
    rig.migrator("hostb", "migrate", "c1", "-d", "root@hosta").expect(0)
    rig.migrator("hosta", "migrate", "c1", *THERE).expect(0)
    assert rig.probe("hostb", "c1")["intact"]


@pytest.mark.nightly  # tests/migrator/host/test_cgroup_limits.py has it without hosts
def test_a_container_is_not_favoured_without_consent(rig: Rig, clean_hosts: CleanHosts,
                                                     limited: Callable[[str], None]) -> None:
    """Its source says what its cgroup had: limits are set, but no memory of the host's is kept for it."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    script = """#!/bin/sh
REAL "$@" || exit
for word; do [ ! -e "$word/cgroup-limits" ] || printf 'memory.min 1073741824\\t.\\n' >>"$word/cgroup-limits"; done
"""
    with instead_of(rig, "hosta", "criu", script):
        # It would be set: the hosts of the rig have no controller for that.
        error = failed(rig.migrator("hosta", "migrate", "c1", *THERE), RUNS_AGAIN, "restore-failed")
        assert "no cgroup controller memory" in str(error["message"])
        limited("receive,lxcpath=/pool,as=hosta")
        rig.migrator("hosta", "migrate", "c1", *THERE).expect(0)
    events = rig.migrator("hostb", "status", "c1", "--events").expect(0).stdout
    assert "memory.min 1073741824" in events
    assert rig.probe("hostb", "c1")["intact"]


def test_a_device_in_the_stream_is_not_opened(rig: Rig, clean_hosts: CleanHosts,
                                              limited: Callable[[str], None]) -> None:
    """EPERM is the filter's word; the kernel's about a loop device that is not there is ENXIO."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    rig.sh("hosta", "mknod -m 666 /pool/c1/rootfs/disk b 7 250")
    opening = ("lxc-attach", "-n", "c1", "-P", "/pool", "--", "/bin/sh", "-c", ": </disk")
    assert "Operation not permitted" not in rig.exec("hosta", *opening, check=False).stderr
    limited("receive,lxcpath=/pool,as=hosta")
    rig.migrator("hosta", "migrate", "c1", *THERE).expect(0)
    assert "Operation not permitted" in rig.exec("hostb", *opening, check=False).stderr
    assert rig.probe("hostb", "c1")["intact"]
    assert "lxc.rootfs.path = btrfs:/pool/c1/rootfs\n" in rig.read("hostb", "/pool/c1/config")


@pytest.mark.parametrize("how", [(), ("--no-memory",)], ids=["restored", "started anew"])
def test_nor_where_consent_was_taken_back_on_the_way(rig: Rig, clean_hosts: CleanHosts, limited: Callable[[str], None],
                                                     how: tuple[str, ...]) -> None:
    """It was defined as it came, without rules for devices."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    rig.sh("hosta", "mknod -m 666 /pool/c1/rootfs/disk b 7 250")
    limited("receive,hooks,lxcpath=/pool,as=hosta")
    rig.migrator("hosta", "prepare-data", "c1", *THERE, *how).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    assert "devices" not in rig.read("hostb", "/pool/c1/config")
    limited("receive,lxcpath=/pool,as=hosta")
    rig.migrator("hosta", "create-dump", "c1", *THERE).expect(0)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    opening = ("lxc-attach", "-n", "c1", "-P", "/pool", "--", "/bin/sh", "-c", ": </disk")
    assert "Operation not permitted" in rig.exec("hostb", *opening, check=False).stderr
    assert "has them now" in rig.migrator("hostb", "status", "c1", "--events").expect(0).stdout
    rig.migrator("hosta", "finish", "c1", *THERE).expect(0)
    rig.exec("hostb", "lxc-stop", "-k", "-n", "c1")
    rig.exec("hostb", "lxc-start", "-n", "c1", "-P", "/pool")
    assert "Operation not permitted" in rig.exec("hostb", *opening, check=False).stderr


def test_what_has_a_device_open_is_not_restored(rig: Rig, clean_hosts: CleanHosts,
                                                limited: Callable[[str], None]) -> None:
    """A filter that came after its files were opened would take none away. For root over SSH it is as at a start."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    rig.exec("hosta", "lxc-stop", "-k", "-n", "c1")
    rig.sh("hosta", "cd /pool/c1/rootfs && rm -f count log starts && mknod -m 666 kmsg c 1 11 &&"
                    " sed -i '1i exec 9</kmsg' counter.sh && lxc-start -n c1")
    wait_for(lambda: rig.probe("hosta", "c1", quick=True)["running"], "it runs")
    begun = rig.probe("hosta", "c1")["start"]
    limited("receive,lxcpath=/pool,as=hosta")
    error = failed(rig.migrator("hosta", "migrate", "c1", *THERE), RUNS_AGAIN, "restore-failed")
    assert "kmsg" in str(error["message"]), error
    runs_only_on(rig, "hosta", begun)
    limited("receive,hooks")
    rig.migrator("hosta", "migrate", "c1", *THERE).expect(0)
    runs_only_on(rig, "hostb", begun)


def test_what_one_key_has_begun_is_not_anothers(rig: Rig, clean_hosts: CleanHosts,
                                                limited: Callable[[str], None]) -> None:
    rig.guest("hosta", "c1", "tick")
    limited("receive,as=hosta")
    rig.migrator("hosta", "prepare-data", "c1", *THERE).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    limited("receive,as=another")
    assert rig.migrator("hosta", "create-dump", "c1", *THERE).expect(41).error["code"] == "not-allowed"
    assert rig.migrator("hostb", "status", "--json").json["migrations"][0]["state"] == "imported"
    limited("receive,as=hosta")
    rig.migrator("hosta", "rollback", "c1").expect(0)
    assert rig.migrator("hostb", "status", "--json").json["migrations"] == []
    assert rig.probe("hosta", "c1")["intact"]


def test_hooks_come_along_only_with_consent(rig: Rig, clean_hosts: CleanHosts, limited: Callable[[str], None]) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", config="lxc.hook.post-stop = /bin/touch /tmp/hooked")
    limited("receive")
    found = rig.migrator("hosta", "check", "c1", *THERE).expect(30).json["findings"]
    (finding,) = [each for each in found if each["code"] == "consent-needed"]
    assert "lxc.hook.post-stop = /bin/touch /tmp/hooked" in finding["message"]
    rig.migrator("hosta", "migrate", "c1", *THERE).expect(30)
    # The source cannot answer for the destination.
    refused = rig.migrator("hosta", "migrate", "c1", *THERE, "--ignore", "consent-needed").expect(49)
    assert refused.error["code"] == "consent-needed"
    assert rig.probe("hosta", "c1")["intact"]
    assert rig.sh("hostb", "ls -A /pool").strip() == ""
    limited("receive,hooks")
    rig.migrator("hosta", "migrate", "c1", *THERE).expect(0)
    assert rig.probe("hostb", "c1")["intact"]
