# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream that names a device of this host: its node is made, and nothing is read or written there."""

from __future__ import annotations

import base64
import os
import stat
import struct
from collections.abc import Callable, Iterator

import pytest

from harness.rig import DESTINATION, Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import instead_of
from tests.rig.moves import runs_only_on
from tests.rig.outcomes import RUNS_AGAIN, failed
from tests.rig.send_streams import CHECKED, CLONE, CTRANSID, END, INO, MKFILE, PATH, SUBVOL, UUID, command, received

THERE = ("-d", DESTINATION, "--json")
MKNOD, MKFIFO, WRITE = 5, 6, 15
MODE, RDEV, OFFSET, DATA = 5, 8, 18, 19
CLONE_UUID, CLONE_CTRANSID, CLONE_PATH, CLONE_OFFSET, CLONE_LEN = 20, 21, 22, 23, 24
# A loop device shows the path that its file has in there: this one tells who looks for leftovers that it is not his.
FILE, HELD = "/root/migrator-rig-streams", "what was there"
# A `btrfs send` that has commands of its own before the end of what it sends, which has no body.
LIES = """#!/usr/bin/python3
import base64, os, subprocess, sys
if sys.argv[1:2] != ["send"] or ("-p" in sys.argv) != INCREMENT:
    os.execv("REAL", ["btrfs", *sys.argv[1:]])
said = subprocess.run(["REAL", *sys.argv[1:]], stdout=subprocess.PIPE, check=True).stdout
sys.stdout.buffer.write(said[:-10] + base64.b64decode("MADE") + said[-10:])
"""


@pytest.fixture
def device(rig: Rig, clean_hosts: CleanHosts) -> Iterator[str]:
    """A device of hostb's, of a file there."""
    made = rig.sh("hostb", f"""
        for number in $(seq 0 63); do  # a host of the rig has few of them in its own /dev
            [ -e /dev/loop$number ] || {{ mknod /dev/loop$number b 7 $number && echo /dev/loop$number; }}
        done >/root/nodes
        printf %s '{HELD}' >{FILE} && truncate -s 1M {FILE} && losetup -f --show {FILE}""").strip()
    yield made
    rig.sh("hostb", f"losetup -d {made}; rm {FILE} $(cat /root/nodes) /root/nodes")


def held(rig: Rig, device: str) -> str:
    """What is on it, and how much else."""
    return rig.sh("hostb", f"blockdev --flushbufs {device}; sync {FILE}; tr -d '\\0' <{FILE}")


def number(rig: Rig, device: str) -> int:
    major, minor = rig.sh("hostb", f"stat -c '%Hr %Lr' {device}").split()
    return os.makedev(int(major), int(minor))


def eight(value: int) -> bytes:
    return struct.pack("<Q", value)


def node(name: bytes, device: int) -> bytes:
    return command(MKNOD, path=(PATH, name), ino=(INO, eight(1)), dev=(RDEV, eight(device)),
                   mode=(MODE, eight(stat.S_IFBLK | 0o600)))


def write(name: bytes) -> bytes:
    return command(WRITE, path=(PATH, name), at=(OFFSET, eight(0)), data=(DATA, b"written by a liar"))


def lies(made: bytes, *, increment: bool) -> str:
    return LIES.replace("MADE", base64.b64encode(made).decode()).replace("INCREMENT", repr(increment))


def test_what_a_stream_makes_it_does_not_write_to(rig: Rig, device: str, limited: Callable[[str], None],
                                                      clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot", "spool")
    rig.guest("hosta", "c1", "tick")
    limited("receive,lxcpath=/pool,as=hosta")
    with instead_of(rig, "hosta", "btrfs", lies(node(b"x", number(rig, device)) + write(b"x"), increment=False)):
        error = rig.migrator("hosta", "migrate", "c1", *THERE).expect(54).error
    assert "Permission denied" in str(error["message"]), error
    assert held(rig, device) == HELD
    assert rig.probe("hosta", "c1")["intact"]


def test_nor_opens_to_take_from(rig: Rig, device: str) -> None:
    """As if it were a file that another one has its extents from: it is enough to open a tape, or a watchdog."""
    made = b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join([
        command(SUBVOL, path=(PATH, b"evil"), uuid=(UUID, b"u" * 16), ctransid=(CTRANSID, eight(1))),
        node(b"x", number(rig, device)),
        command(MKFILE, path=(PATH, b"y"), ino=(INO, eight(2))),
        command(CLONE, path=(PATH, b"y"), at=(OFFSET, eight(0)), length=(CLONE_LEN, eight(4096)),
                of=(CLONE_UUID, b"u" * 16), since=(CLONE_CTRANSID, eight(1)), source=(CLONE_PATH, b"x"),
                begin=(CLONE_OFFSET, eight(0))),
        command(END),
    ])
    rig.sh("hostb", "mkdir -p /pool/inside /pool/spool;"
                    f" echo {base64.b64encode(made).decode()} | base64 -d >/pool/spool/1")
    try:
        said = received(rig, CHECKED, "/pool/spool/1", "evil")
        assert "cannot open" in said and "Permission denied" in said, said
        assert rig.sh("hostb", "stat -c %F /pool/inside/evil/x").strip() == "block special file"
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/*; rm -rf /pool/inside /pool/spool", check=False)


@pytest.mark.parametrize("more", [0, 4096])
def test_nor_waits_for_ever_at_a_fifo(rig: Rig, more: int) -> None:
    """With as many pages behind it: its pipe holds 256."""
    made = b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join([
        command(SUBVOL, path=(PATH, b"evil"), uuid=(UUID, b"u" * 16), ctransid=(CTRANSID, eight(1))),
        command(MKFIFO, path=(PATH, b"x"), ino=(INO, eight(1))),
        command(MKFILE, path=(PATH, b"y"), ino=(INO, eight(2))),
        command(CLONE, path=(PATH, b"y"), at=(OFFSET, eight(0)), length=(CLONE_LEN, eight(4096)),
                of=(CLONE_UUID, b"u" * 16), since=(CLONE_CTRANSID, eight(1)), source=(CLONE_PATH, b"x"),
                begin=(CLONE_OFFSET, eight(0))),
        *[command(WRITE, path=(PATH, b"y"), at=(OFFSET, eight(0)), data=(DATA, bytes(4096)))] * more,
        command(END),
    ])
    rig.sh("hostb", "mkdir -p /pool/inside /pool/spool")
    rig.put("hostb", "/pool/spool/1.b64", base64.b64encode(made).decode())
    rig.sh("hostb", "base64 -d /pool/spool/1.b64 >/pool/spool/1")
    try:
        said = received(rig, "btrfs.DRAIN_LIMIT = 3.0\n" + CHECKED, "/pool/spool/1", "evil")
        assert "did not end within 3 seconds and was killed" in said, said
        assert rig.sh("hostb", "stat -c %F /pool/inside/evil/x").strip() == "fifo"
        assert rig.sh("hostb", "pgrep -x btrfs", check=False).strip() == ""
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/*; rm -rf /pool/inside /pool/spool", check=False)


def test_nor_to_what_came_before_it(rig: Rig, device: str, limited: Callable[[str], None],
                                    clean_hosts: CleanHosts) -> None:
    """A node that a container has goes along, and is not followed by what is sent of its changes."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    begun = rig.probe("hosta", "c1")["start"]
    known = rig.sh("hostb", f"stat -c '%Hr %Lr' {device}").strip()
    rig.sh("hosta", f"cd /pool/c1/rootfs && mknod -m 640 disk b {known} && mknod null c 1 3")
    limited("receive,lxcpath=/pool,as=hosta")
    with instead_of(rig, "hosta", "btrfs", lies(write(b"disk"), increment=True)):  # the dump: no round precedes it
        moved = rig.migrator("hosta", "migrate", "c1", *THERE, "--max-rounds", "1")
        error = failed(moved, RUNS_AGAIN, "receive-failed")
    assert "Permission denied" in str(error["message"]), error
    assert held(rig, device) == HELD
    runs_only_on(rig, "hosta", begun)
    rig.migrator("hosta", "migrate", "c1", *THERE).expect(0)
    runs_only_on(rig, "hostb", begun)
    assert rig.sh("hostb", "cd /pool/c1/rootfs && stat -c '%F %a %Hr %Lr' disk null").splitlines() == [
        f"block special file 640 {known}", "character special file 644 1 3"]
    assert held(rig, device) == HELD
