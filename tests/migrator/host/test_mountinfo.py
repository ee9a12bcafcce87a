# SPDX-License-Identifier: GPL-2.0-or-later
"""What each mount of a container is to CRIU."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.host.mountinfo import MountLine, classify, parse_mountinfo
from tests.effort import tries
from tests.migrator.made_up import anything

INSIDE = """\
128 68 0:267 /redis/rootfs / rw,noatime shared:22 - btrfs /dev/loop4 rw,subvol=/redis/rootfs
129 128 0:278 / /dev rw,relatime - tmpfs none rw
78 132 0:278 /.lxc-boot-id /proc/sys/kernel/random/boot_id ro - tmpfs none rw
130 128 0:279 / /proc rw - proc proc rw
140 128 8:1 /srv/my\\040data /srv/data ro - ext4 /dev/sda1 rw
141 128 0:5 /fuse /dev/fuse rw - devtmpfs udev rw
142 128 0:252 /3 /dev/console rw - devpts devpts rw
143 128 0:300 / /dev/pts rw - devpts devpts rw
144 128 0:301 / /mnt rw - nfs4 server:/x rw
145 128 0:302 /sub /lost rw - xfs /dev/sdb rw
146 128 0:267 /redis/rootfs/etc /etc2 rw - btrfs /dev/loop4 rw
147 128 0:400 / /tmp rw - tmpfs none rw
149 128 0:500 / /var rw - overlay o rw,lowerdir=/bin,upperdir=/srv,workdir=/w
150 149 0:500 /lib /var2 rw - overlay o rw,lowerdir=/bin,upperdir=/srv,workdir=/w
151 128 0:501 / / rw - overlay o rw,lowerdir=/bin
152 128 0:267 /redis/rootfs/a/b//deleted /etc3 rw - btrfs /dev/loop4 rw
153 128 0:400 /a//deleted /tmp2 rw - tmpfs none rw
156 128 8:1 /etc/resolv.conf//deleted /etc/resolv.conf rw - ext4 /dev/sda1 rw
154 128 0:502 / /union rw - aufs none rw,si=1
155 128 0:31 /usr /usr rw - overlay o rw
148 128 0:30 /lxc.payload.redis /sys/fs/cgroup rw - cgroup2 none rw
"""
OUTSIDE = """\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:5 / /dev rw - devtmpfs udev rw
22 21 0:252 / /dev/pts rw - devpts devpts rw
23 20 0:267 / /pool rw - btrfs /dev/loop4 rw
24 20 0:30 / /sys/fs/cgroup rw - cgroup2 none rw
25 20 0:31 / /live rw - overlay o rw
"""


def test_mounts() -> None:
    mounts = classify(parse_mountinfo(INSIDE), parse_mountinfo(OUTSIDE))
    assert [(mount.target, mount.kind, mount.host_path) for mount in mounts] == [
        ("/", "root", ""),
        ("/dev", "own", ""),
        ("/proc/sys/kernel/random/boot_id", "own", ""),
        ("/proc", "own", ""),
        ("/srv/data", "external", "/srv/my data"),
        ("/dev/fuse", "external", "/dev/fuse"),
        ("/dev/console", "external", "/dev/pts/3"),
        ("/dev/pts", "own", ""),
        ("/mnt", "unsupported", ""),
        ("/lost", "unreachable", ""),
        ("/etc2", "own", ""),
        ("/tmp", "own", ""),
        ("/var", "unsupported", ""),
        ("/var2", "own", ""),
        ("/", "unsupported", ""),
        ("/etc3", "deleted", ""),
        ("/tmp2", "deleted", ""),
        ("/etc/resolv.conf", "deleted", ""),
        ("/union", "unsupported", ""),
        ("/usr", "external", "/live/usr"),
        ("/sys/fs/cgroup", "own", ""),
    ]
    assert mounts[4].read_only and not mounts[5].read_only


def test_on_which_disk_a_mount_is_the_kernel_says() -> None:
    """The source of a mount is the word of who has mounted it."""
    inside = parse_mountinfo("1 0 0:9 / / rw - btrfs x rw\n2 1 253:5 / /srv rw - ext4 /dev/mapper/a\\040b rw\n"
                             "3 1 0:50 / /t rw - nfs4 /dev/sda rw\n4 1 0:51 / /b rw - btrfs /dev/sdb rw\n"
                             "5 1 8:1 /sub /x rw - xfs /dev/sda1 rw\n6 1 7:3 / /snap/a ro - squashfs /dev/sdc ro")
    assert [(mount.kind, mount.disk) for mount in classify(inside, [])] == [
        ("root", ""), ("unsupported", "/dev/mapper/a b"), ("unsupported", ""), ("unsupported", "/dev/sdb"),
        ("unreachable", "/dev/sda1"), ("unsupported", "/dev/sdc")]
    assert [mount.loop for mount in classify(inside, [])] == [""] * 5 + ["7:3"]


def test_a_configured_bind_mount_is_external_whatever_it_is() -> None:
    inside = parse_mountinfo("1 0 0:9 / / rw - btrfs x rw\n2 1 0:8 /x /etc2 rw - overlay o rw")
    assert [mount.kind for mount in classify(inside, [], ["etc2"])] == ["root", "external"]


def test_what_is_mounted_of_a_deleted_file_is_not_mounted_again() -> None:
    inside = parse_mountinfo(INSIDE + "99 1 0:50 /web/rootfs/a//deleted /mnt rw - btrfs /dev/sda rw\n")
    assert [mount.kind for mount in classify(inside, parse_mountinfo(OUTSIDE), ["mnt"])][-1] == "deleted"


@given(st.text())
def test_any_mountinfo(text: str) -> None:
    classify(parse_mountinfo(text), parse_mountinfo(text))


@settings(max_examples=tries(40, 500))
@given(st.lists(anything(MountLine), max_size=6), st.lists(anything(MountLine), max_size=3))
def test_any_mounts(inside: list[MountLine], outside: list[MountLine]) -> None:
    assert len(classify(inside, outside)) == len(inside)
