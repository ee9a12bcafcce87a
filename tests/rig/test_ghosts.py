# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and folders that are open though deleted: they move along, and lead nowhere on the other host."""

from __future__ import annotations

import pytest

from harness.rig import DESTINATION, Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import instead_of
from tests.rig.moves import migrate, other, runs_only_on
from tests.rig.outcomes import RUNS_AGAIN, failed

# What is done beside the guest's counter, which then goes on.
CONFIG = ["lxc.init.cmd = /bin/busybox sh /held.sh", "lxc.mount.entry = tmpfs run tmpfs mode=0755,create=dir"]
HELD = """\
export PATH=/bin:/usr/bin
bb() {{ /bin/busybox "$@"; }}
{script}
exec /bin/sh /counter.sh /
"""
# As a log that was rotated, a library that was replaced, a file in /run, whose folder is gone too, and a folder that
# somebody is in. Both names of the first file's folder are ordinary: /var/run is a link.
ORDINARY = """\
bb mkdir -p /var/log/app /srv/was/here /usr/lib/x /run/app /dev/shm
bb ln -sfn /run /var/run; bb ln -sfn usr/lib/x /lib-x
exec 5>/var/log/app/log; echo first >&5; bb rm /var/log/app/log; echo second >/var/log/app/log
echo old >/lib-x/so; exec 6</lib-x/so; bb rm /usr/lib/x/so
echo run >/var/run/app/pid; exec 7</var/run/app/pid; bb rm -r /run/app
echo shm >/dev/shm/sem; exec 8</dev/shm/sem; bb rm /dev/shm/sem
/bin/busybox sh -c 'cd /srv/was/here; exec tail -f /held.sh' &
while [ "$(bb readlink /proc/$!/cwd)" != /srv/was/here ]; do bb sleep 0.05; done
bb rm -r /srv/was
"""
# As any user can do it, in a folder of his own.
LED_ASTRAY = """\
bb mkdir -p /tmp/his/b/{name}; bb chmod 0777 /tmp/his/b/{name}; bb chown 33:33 /tmp/his/b/{name}
{held}
bb rm -rf /tmp/his/b; bb ln -s /srv/victim /tmp/his/b
"""
ATTACKS = {
    "a folder": LED_ASTRAY.format(name="priv", held="exec 5</tmp/his/b/priv"),
    "a file": LED_ASTRAY.format(name="priv", held="echo x >/tmp/his/b/file; exec 5</tmp/his/b/file"),
    "in a tmpfs": LED_ASTRAY.format(name="priv", held="exec 5</tmp/his/b/priv").replace("/tmp/his", "/run/his"),
}

LOOK = "cd /srv/victim && find . -printf '%p %m %U %G %T@ %C@\\n'"


def start(rig: Rig, script: str, *config: str) -> str:
    rig.guest("hosta", "c1", "tick", config=["lxc.start.auto = 0"])
    rig.exec("hosta", "lxc-stop", "-k", "-n", "c1")
    rig.sh("hosta", "cd /pool/c1/rootfs && rm -f count log starts && cp /bin/busybox bin/busybox")
    rig.put("hosta", "/pool/c1/rootfs/held.sh", HELD.format(script=script))
    before = rig.read("hosta", "/pool/c1/config").splitlines()
    kept = [line for line in before if not line.startswith("lxc.init.cmd")]
    rig.put("hosta", "/pool/c1/config", "\n".join([*kept, *CONFIG, *config, ""]))
    rig.exec("hosta", "lxc-start", "-n", "c1")
    wait_for(lambda: rig.probe("hosta", "c1", quick=True)["running"]
             and rig.sh("hosta", "ls /pool/c1/rootfs/count 2>/dev/null", check=False), "it counts")
    return str(rig.probe("hosta", "c1")["start"])


def held(rig: Rig, host: str) -> str:
    """What the first process has open and deleted, with its contents, and which folder the other one is in."""
    return rig.sh(host, """
        init=$(lxc-info -n c1 -pH)
        for fd in 5 6 7 8; do readlink /proc/$init/fd/$fd; cat /proc/$init/fd/$fd; done
        for pid in $(cat /sys/fs/cgroup/lxc.payload.c1/cgroup.procs); do readlink /proc/$pid/cwd; done | sort -u
        cd /proc/$init/root; ls -a var/log/app usr/lib/x run
        cat /pool/c1/rootfs/var/log/app/log""").replace(".cr_link", "")  # where the name is taken: rfi_remap of CRIU's


@pytest.mark.nightly
def test_what_is_open_though_deleted_moves_along(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    begun = start(rig, ORDINARY)
    before = held(rig, "hosta")
    assert before.count("(deleted)") == 5, before
    for source in ("hosta", "hostb"):
        migrate(rig, "c1", source).expect(0)
        assert held(rig, other(source)) == before
        runs_only_on(rig, other(source), begun)


@pytest.mark.nightly
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_no_name_of_what_was_deleted_leads_to_the_host(rig: Rig, clean_hosts: CleanHosts, attack: str) -> None:
    clean_hosts.allow("snapshot")
    begun = start(rig, attack)
    for host in ("hosta", "hostb"):
        rig.sh(host, "rm -rf /srv/victim; mkdir -p -m 0700 /srv/victim/priv; chmod 0700 /srv/victim/priv")
    before = rig.sh("hostb", LOOK)
    checked = rig.migrator("hosta", "check", "c1", "-d", DESTINATION, "--json")
    assert "deleted-file-astray" in [finding["code"] for finding in checked.json["findings"]]
    error = failed(migrate(rig, "c1", "hosta", "--ignore", "deleted-file-astray"), RUNS_AGAIN, "dump-failed")
    assert "/his/b is now a symbolic link" in str(error["message"])
    rig.migrator("hosta", "rollback", "c1").expect(0)  # it keeps what it has of the disk for the next attempt
    assert rig.sh("hostb", LOOK) == before
    runs_only_on(rig, "hosta", begun)


@pytest.mark.nightly
def test_nor_by_a_sender_who_lies(rig: Rig, clean_hosts: CleanHosts) -> None:
    """What he has sent has a link where there was none at the dump."""
    clean_hosts.allow("snapshot")
    begun = start(rig, ATTACKS["a folder"].replace("; bb ln -s /srv/victim /tmp/his/b", ""))
    rig.sh("hostb", "rm -rf /srv/victim; mkdir -p -m 0700 /srv/victim/priv; chmod 0700 /srv/victim/priv")
    before = rig.sh("hostb", LOOK)
    script = '#!/bin/sh\nln -sfn /srv/victim /pool/c1/rootfs/tmp/his/b 2>&-\nexec REAL "$@"\n'
    with instead_of(rig, "hostb", "criu", script):
        error = failed(migrate(rig, "c1", "hosta"), RUNS_AGAIN, "restore-failed")
    assert "/tmp/his/b is now a symbolic link" in str(error["message"])
    assert rig.sh("hostb", LOOK) == before
    runs_only_on(rig, "hosta", begun)


@pytest.mark.nightly
def test_what_is_mounted_of_a_deleted_folder(rig: Rig, clean_hosts: CleanHosts) -> None:
    """As root inside can do it: CRIU would make the folder again wherever the link leads."""
    clean_hosts.allow("snapshot")
    held = "bb mkdir -p /a/b/c /mnt; bb mount -o bind /a/b/c /mnt; bb rm -r /a/b; bb ln -s /srv/victim /a/b"
    begun = start(rig, held)
    rig.sh("hostb", "rm -rf /srv/victim; mkdir -p /srv/victim")
    before = rig.sh("hostb", LOOK)
    checked = rig.migrator("hosta", "check", "c1", "-d", DESTINATION, "--json")
    assert "mount-deleted" in [finding["code"] for finding in checked.json["findings"]]
    error = failed(migrate(rig, "c1", "hosta", "--ignore", "mount-deleted"), RUNS_AGAIN, "dump-failed")
    assert "/mnt in it is bound from what has been deleted" in str(error["message"])
    assert rig.sh("hostb", LOOK) == before
    rig.migrator("hosta", "rollback", "c1").expect(0)
    runs_only_on(rig, "hosta", begun)
