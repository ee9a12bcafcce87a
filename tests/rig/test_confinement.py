# SPDX-License-Identifier: GPL-2.0-or-later
"""What a container may use is after a move what it was before, from the first instruction on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harness.rig import Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import instead_of
from tests.rig.moves import migrate, other, runs_only_on
from tests.rig.outcomes import RUNS_AGAIN, failed

# Beside the guest's counter: tries all the time to open a disk of the host.
TRY = """\
while :; do
    if (: </disk) 2>/dev/null; then echo opened >>/opened; fi
    echo >/tries
    sleep 0.01
done &
exec /bin/sh /counter.sh /
"""
STOCK = ["lxc.include = /usr/share/lxc/config/common.conf", "lxc.init.cmd = /bin/sh /try.sh"]
ALLOWED, DENIED = ("null", "zero", "full", "urandom"), ("disk", "kmsg")


def looked(rig: Rig, host: str) -> dict[str, str]:
    """What opening each node of the container's comes to."""
    script = "".join(f"(: </{name}) 2>/dev/null && echo {name} yes || echo {name} no\n" for name in (*ALLOWED, *DENIED))
    made = "mknod /made b 7 1 && echo mknod yes || echo mknod no; rm -f /made\n"
    text = rig.sh(host, f"lxc-attach -n c1 -- /bin/busybox sh -c '{script}{made}' 2>/dev/null")
    return dict(line.split() for line in text.splitlines())


def tried(rig: Rig, host: str) -> None:
    """Wait until the container has tried once more."""
    rig.sh(host, "rm -f /pool/c1/rootfs/tries")
    wait_for(lambda: rig.sh(host, "ls /pool/c1/rootfs/tries 2>/dev/null", check=False), "it has tried")


def start(rig: Rig, script: str = TRY, config: Sequence[str] = ()) -> None:
    """A guest with LXC's own device rules; its disk has a node of each device."""
    rig.guest("hosta", "c1", "tick", config=["lxc.start.auto = 0", *config])
    rig.exec("hosta", "lxc-stop", "-k", "-n", "c1")
    rig.sh("hosta", """
        cd /pool/c1/rootfs && rm -f count log starts && cp /bin/busybox bin/ && ln -sf busybox bin/mknod
        mknod null c 1 3; mknod zero c 1 5; mknod full c 1 7; mknod urandom c 1 9; mknod kmsg c 1 11
        mknod disk b $(stat -c '0x%t 0x%T' "$(findmnt -no SOURCE /pool)")""")
    rig.put("hosta", "/pool/c1/rootfs/try.sh", script)
    before = rig.read("hosta", "/pool/c1/config")
    kept = [line for line in before.splitlines() if not line.startswith("lxc.init.cmd")]
    rig.put("hosta", "/pool/c1/config", "\n".join([*STOCK, *kept, ""]))
    rig.exec("hosta", "lxc-start", "-n", "c1")
    wait_for(lambda: rig.probe("hosta", "c1", quick=True)["running"], "it runs")


def test_devices_that_are_denied(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    start(rig)
    expected = {**dict.fromkeys(ALLOWED, "yes"), **dict.fromkeys(DENIED, "no"), "mknod": "yes"}
    begun = rig.probe("hosta", "c1")["start"]
    tried(rig, "hosta")
    assert looked(rig, "hosta") == expected
    for source in ("hosta", "hostb"):
        there = other(source)
        migrate(rig, "c1", source).expect(0)
        tried(rig, there)
        assert looked(rig, there) == expected, f"on {there}"
        assert rig.sh(there, "ls /pool/c1/rootfs/opened 2>/dev/null", check=False) == "", "it has never opened the disk"
        runs_only_on(rig, there, begun)


def test_groups_of_who_restores_it(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Root of the destination is in one more group, and no task of the container is, as it was not before."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    groups = ("for pid in $(cat /sys/fs/cgroup/lxc.payload.c1/cgroup.procs); do"
              " sed -n 's/^Groups:[[:space:]]*//p' /proc/$pid/status; done | sort -u")
    assert rig.sh("hosta", groups).strip() == ""
    rig.sh("hostb", "usermod -a -G disk root")
    try:
        migrate(rig, "c1", "hosta").expect(0)
        assert rig.sh("hostb", groups).strip() == ""
    finally:
        rig.sh("hostb", "gpasswd -d root disk")


def test_a_link_on_the_way_to_what_is_bound(rig: Rig, clean_hosts: CleanHosts) -> None:
    """The container has left it in its folder of hostb's when it was there. It gets no folder of hostb's by it."""
    clean_hosts.allow("snapshot")
    for host in ("hosta", "hostb"):
        rig.sh(host, "rm -rf /srv/data /srv/secret; mkdir -p /srv/data /srv/secret")
    rig.sh("hostb", "ln -s /srv /srv/data/a")
    rig.guest("hosta", "c1", "tick", config=["lxc.mount.entry = /srv/data srv none bind,create=dir"])
    rig.sh("hosta", "mkdir -p /pool/c1/rootfs/mnt")
    for words in ("mkdir -p /srv/a/secret", "mount -o bind /srv/a/secret /mnt", "umount /srv"):
        rig.exec("hosta", "lxc-attach", "-n", "c1", "--", "/bin/busybox", *words.split())
    begun = rig.probe("hosta", "c1")["start"]
    error = failed(migrate(rig, "c1", "hosta"), RUNS_AGAIN, "restore-failed")
    assert "where its mounts lead: /mnt would be /srv/secret of this host, writable" in str(error["message"])
    runs_only_on(rig, "hosta", begun)
    rig.sh("hostb", "rm /srv/data/a && mkdir -p /srv/data/a/secret")
    migrate(rig, "c1", "hosta").expect(0)
    runs_only_on(rig, "hostb", begun)
    found = rig.sh("hostb", "awk '$5 == \"/mnt\" { print $4 }' /proc/$(lxc-info -n c1 -pH)/mountinfo")
    assert found.strip() == "/srv/data/a/secret"


# A file that one user may read and its own group may not, and a folder in which that is so by default.
GIVEN = '''cd /proc/$(lxc-info -n c1 -pH)/root/srv && mkdir d && python3 -c "
import os, struct
acl = struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in (
    (1, 6, 0xffffffff), (2, 4, 1), (4, 0, 0xffffffff), (16, 4, 0xffffffff), (32, 0, 0xffffffff)))
open('f', 'w').write('secret')
os.setxattr('f', 'system.posix_acl_access', acl)
os.setxattr('f', 'user.a', b'1')
os.setxattr('d', 'system.posix_acl_default', acl)
"'''
ATTRIBUTES = '''cd /proc/$(lxc-info -n c1 -pH)/root/srv && python3 -c "
import os
for path in '.', 'f', 'd':
    print(path, oct(os.stat(path).st_mode), {name: os.getxattr(path, name).hex() for name in os.listxattr(path)})
"'''


@pytest.mark.nightly
def test_mounts_of_a_file_of_their_own(rig: Rig, clean_hosts: CleanHosts) -> None:
    """They come along, and it can be started again there, where no such file is."""
    clean_hosts.allow("snapshot")
    rig.sh("hosta", "mkdir -p /srv/old; echo 'tmpfs srv tmpfs create=dir,size=64k 0 0' >/srv/old/fstab")
    rig.guest("hosta", "c1", "tick", config=["lxc.mount.fstab = /srv/old/fstab"])
    begun = rig.probe("hosta", "c1")["start"]
    mounted = "awk '$5 == \"/srv\" { print $(NF - 2) }' /proc/$(lxc-info -n c1 -pH)/mountinfo"
    assert rig.sh("hosta", mounted).strip() == "tmpfs"
    rig.sh("hosta", GIVEN)
    given = rig.sh("hosta", ATTRIBUTES)
    assert "system.posix_acl_access" in given and "system.posix_acl_default" in given and "user.a" in given
    migrate(rig, "c1", "hosta").expect(0)
    runs_only_on(rig, "hostb", begun)
    assert rig.sh("hostb", mounted).strip() == "tmpfs"
    assert rig.sh("hostb", ATTRIBUTES) == given
    rig.sh("hostb", "test ! -e /srv/old && lxc-stop -k -n c1 && lxc-start -n c1")
    assert rig.sh("hostb", mounted).strip() == "tmpfs"


# One process lives in a folder of its own, another in a mount namespace of its own; both have mounted something there.
MOUNTS = """\
b=/bin/busybox
$b mkdir -p /jail/bin /jail/run /tmp /mnt; $b cp $b /jail/bin/
for folder in /tmp /jail/run; do $b mount -t tmpfs none $folder; echo $folder >$folder/is; done
$b mkdir -p /tmp/part; $b mount -o bind /tmp/part /mnt
$b chroot /jail $b tail -f /run/is &
$b unshare -m $b sh -c 'busybox mount -t tmpfs none /mnt; echo deep >/mnt/is; exec busybox tail -f /mnt/is' &
exec /bin/sh /counter.sh /
"""


@pytest.mark.nightly
def test_what_it_has_mounted_itself(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    start(rig, MOUNTS)
    begun = rig.probe("hosta", "c1")["start"]
    pids = "p=$(lxc-info -n c1 -pH); j=$(pgrep -f 'tail -f /run/is$'); n=$(pgrep -f 'tail -f /mnt/is$'); "
    seen = pids + "cat /proc/$p/root/tmp/is /proc/$j/root/run/is /proc/$n/root/mnt/is"
    wait_for(lambda: rig.exec("hosta", "sh", "-ec", seen, check=False).status == 0, "all is mounted")
    for source in ("hosta", "hostb"):
        migrate(rig, "c1", source).expect(0)
        runs_only_on(rig, other(source), begun)
        assert rig.sh(other(source), seen).split() == ["/tmp", "/jail/run", "deep"]


# Its mounts are shared, as systemd makes them; one process lives in a mount namespace that is their slave, as that of a
# service in a sandbox, another has a tmpfs of its own where the configuration binds.
SLAVE = """\
b=/bin/busybox
$b mount --make-rshared /
$b unshare -m --propagation slave $b tail -f /srv/is &
$b unshare -m $b sh -c 'busybox mount -t tmpfs none /srv; echo own >/srv/own; exec busybox tail -f /srv/own' &
exec /bin/sh /counter.sh /
"""


@pytest.mark.nightly
def test_what_is_bound_in_a_mount_namespace_that_is_a_slave(rig: Rig, clean_hosts: CleanHosts) -> None:
    """An overlay of the host's, to which CRIU gives no key there."""
    clean_hosts.allow("snapshot")
    for host in ("hosta", "hostb"):
        rig.sh(host, """
            mkdir -p /srv/live && mount -t tmpfs none /srv/live && cd /srv/live && mkdir below above work all
            mount -t overlay o -o lowerdir=below,upperdir=above,workdir=work all && echo live >all/is""")
    try:
        start(rig, SLAVE, ["lxc.mount.entry = /srv/live/all srv none bind,create=dir"])
        begun = rig.probe("hosta", "c1")["start"]
        pids = "s=$(pgrep -f 'tail -f /srv/is$'); o=$(pgrep -f 'tail -f /srv/own$'); "
        seen = pids + "cat /proc/$s/root/srv/is /proc/$o/root/srv/own; findmnt -n -N $s -o FSTYPE /srv"
        wait_for(lambda: rig.exec("hosta", "sh", "-ec", seen, check=False).status == 0, "all is mounted")
        for source in ("hosta", "hostb"):
            migrate(rig, "c1", source).expect(0)
            runs_only_on(rig, other(source), begun)
            assert rig.sh(other(source), seen).split() == ["live", "own", "overlay"]
    finally:
        for host in ("hosta", "hostb"):
            rig.sh(host, "lxc-stop -k -n c1; umount /srv/live/all /srv/live; rmdir /srv/live", check=False)


def test_an_overlay_of_what_the_destination_has(rig: Rig, clean_hosts: CleanHosts) -> None:
    """The container's root has mounted it, of folders of its own that are called as hostb's: it is told, and where that
    is not heeded, or it was mounted after that, the container stays where it was."""
    clean_hosts.allow("snapshot")
    for folder in ("hosta:/pool/c1/rootfs", "hostb:"):
        host, _, top = folder.partition(":")
        if top:
            rig.guest(host, "c1", "tick")
        rig.sh(host, f"mkdir -p {top}/srv/secret {top}/srv/w/work {top}/mnt && touch {top}/srv/w/work/kept")
    mount = "mount -t overlay o -o lowerdir=/bin,upperdir=/srv/secret,workdir=/srv/w /mnt"
    rig.exec("hosta", "lxc-attach", "-n", "c1", "--", "/bin/busybox", *mount.split())
    begun = rig.probe("hosta", "c1")["start"]
    blocked = migrate(rig, "c1", "hosta").expect(30)
    assert "/mnt in c1 is a file system of type overlay" in str(blocked.json)
    error = failed(migrate(rig, "c1", "hosta", "--ignore", "mount-unsupported"), RUNS_AGAIN, "dump-failed")
    assert "/mnt in it is a mount of the type overlay" in str(error["message"])
    rig.migrator("hosta", "rollback", "c1").expect(0)
    runs_only_on(rig, "hosta", begun)
    assert rig.sh("hostb", "ls /srv/w/work /srv/secret; rm -r /srv/w /srv/secret").split() == [
        "/srv/secret:", "/srv/w/work:", "kept"]


def test_confinement_that_cannot_be_had(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Nothing runs without it: the restore fails, and the source goes on."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    begun = rig.probe("hosta", "c1")["start"]
    script = """#!/bin/sh
REAL "$@" || exit
for word; do [ ! -e "$word/cgroup-limits" ] || printf 'pids.max 50\\t.\\n' >>"$word/cgroup-limits"; done
"""
    with instead_of(rig, "hosta", "criu", script):
        error = failed(migrate(rig, "c1", "hosta"), RUNS_AGAIN, "restore-failed")
    assert "the limits of its cgroups: this host has no cgroup controller pids" in str(error["message"])
    runs_only_on(rig, "hosta", begun)
    migrate(rig, "c1", "hosta").expect(0)
    runs_only_on(rig, "hostb", begun)


@pytest.mark.nightly
def test_the_command_of_a_network(rig: Rig, clean_hosts: CleanHosts) -> None:
    """It runs on the destination as at a start, when the veth is on its bridge; where it fails the source goes on."""
    clean_hosts.allow("snapshot")
    for host in ("hosta", "hostb"):
        rig.put(host, "/run/up", '#!/bin/sh\necho "$* $(cat /sys/class/net/$6/master/ifindex)" >>/run/up.told\n')
        rig.sh(host, "chmod 700 /run/up; rm -f /run/up.told")
    rig.guest("hosta", "c1", "talk", ip="10.0.3.131", config=["lxc.net.0.script.up = /bin/sh /run/up"])
    begun = rig.probe("hosta", "c1")["start"]
    rig.put("hostb", "/run/up.fails", "#!/bin/sh\necho 'not today' >&2; exit 1\n")
    rig.sh("hostb", "cp /run/up /run/up.works; cp /run/up.fails /run/up")
    error = failed(migrate(rig, "c1", "hosta"), RUNS_AGAIN, "restore-failed")
    assert "not today" in str(error["message"])
    runs_only_on(rig, "hosta", begun)
    rig.sh("hostb", "cp /run/up.works /run/up")
    migrate(rig, "c1", "hosta").expect(0)
    runs_only_on(rig, "hostb", begun)
    *words, bridge = rig.read("hostb", "/run/up.told").split()
    assert words[:5] == ["c1", "net", "up", "veth", "lxcbr0"] and len(words) == 6
    assert bridge == rig.read("hostb", "/sys/class/net/lxcbr0/ifindex").strip()
