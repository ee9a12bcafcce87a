# SPDX-License-Identifier: GPL-2.0-or-later
"""A key that may bring containers and nothing else, with a real sshd; and what a stream of a liar's may touch."""

from __future__ import annotations

import base64
import shlex
import struct
import uuid
from collections.abc import Callable

import pytest

from tests.rig.conftest import CleanHosts
from tests.rig.harness import DESTINATION, Rig, wait_for
from tests.rig.held import instead_of
from tests.rig.test_failures import RUNS_AGAIN, failed
from tests.rig.test_migrate import runs_only_on

THERE = ("-d", DESTINATION, "--json")


def test_a_key_that_may_bring_containers(rig: Rig, clean_hosts: CleanHosts, limited: Callable[[str], None]) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    limited("receive,lxcpath=/pool,as=hosta")
    # Nothing but containers: no shell, no other command of migrator's, no pairing.
    for command in ("id", "migrator serve; id", "migrator status", "sh"):
        refused = rig.exec("hosta", "ssh", "-T", "root@hostb", command, check=False)
        assert refused.status == 41
        assert "for `migrator serve` alone" in refused.stderr
        assert refused.stdout == ""
    assert rig.exec("hosta", "ssh", "-T", "root@hostb", check=False).status == 41
    rig.migrator("hosta", "peer", "add", "root@hostb").expect(48)
    assert rig.exec("hostb", "test", "-e", "/var/lib/migrator/peers", check=False).status != 0
    # Not to elsewhere.
    for command in ("check", "prepare-data", "migrate"):
        refused = rig.migrator("hosta", command, "c1", *THERE, "--destination-lxcpath", "/srv").expect(41)
        assert "/pool only" in refused.error["message"]
    rig.migrator("hosta", "check", "c1", *THERE).expect(0)
    rig.migrator("hosta", "migrate", "c1", *THERE).expect(0)
    assert rig.probe("hostb", "c1")["intact"]
    # There and back and there again: what stands there fenced is known to be the same container's.
    rig.migrator("hostb", "migrate", "c1", "-d", "root@hosta").expect(0)
    rig.migrator("hosta", "migrate", "c1", *THERE).expect(0)
    assert rig.probe("hostb", "c1")["intact"]


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


# --- A stream that a liar has made (fs/btrfs/send.h) ---

SUBVOL, SNAPSHOT, MKFILE, MKDIR, SYMLINK, RENAME, CLONE, END = 1, 2, 3, 4, 8, 9, 16, 21
UUID, CTRANSID, INO, PATH, PATH_TO, PATH_LINK = 1, 2, 3, 15, 16, 17


def crc32c(data: bytes) -> int:
    """As the kernel's, without the inversions at begin and end."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def command(kind: int, **attributes: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("<HH", number, len(value)) + value for number, value in attributes.values())
    header = struct.pack("<IHI", len(body), kind, 0)
    return struct.pack("<IHI", len(body), kind, crc32c(header + body)) + body


def stream(outside: str) -> bytes:
    """A subvolume with a link that leads out of it, and a file that is made behind that link."""
    number = struct.pack("<Q", 1)
    return b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join([
        command(SUBVOL, path=(PATH, b"evil"), uuid=(UUID, b"u" * 16), ctransid=(CTRANSID, number)),
        command(SYMLINK, path=(PATH, b"link"), ino=(INO, number), to=(PATH_LINK, outside.encode())),
        command(MKFILE, path=(PATH, b"link/planted"), ino=(INO, number)),
        command(END),
    ])


def wider_stream(name: str) -> bytes:
    """The subvolume `name`, and beside it another one and a folder."""
    number = struct.pack("<Q", 1)
    return b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join([
        command(SUBVOL, path=(PATH, name.encode()), uuid=(UUID, b"u" * 16), ctransid=(CTRANSID, number)),
        command(MKDIR, path=(PATH, b"../0badc0de.spool"), ino=(INO, number)),
        command(MKFILE, path=(PATH, b"../0badc0de.spool/config.json"), ino=(INO, number)),
        command(SUBVOL, path=(PATH, b"deadbeef.1"), uuid=(UUID, b"v" * 16), ctransid=(CTRANSID, number)),
        command(MKFILE, path=(PATH, b"blob"), ino=(INO, number)),
        command(END),
    ])


def test_a_stream_leaves_nothing_but_its_snapshot(rig: Rig) -> None:
    made = base64.b64encode(wider_stream("0badc0de.1")).decode()
    rig.sh("hostb", "mkdir -p /pool/inside /pool/spool")
    python = "/opt/migrator/venv/bin/python"
    try:
        script = ("import base64, sys\nfrom pathlib import Path\nfrom migrator import incoming\n"
                  "target, spool = Path('/pool/inside/0badc0de.1'), Path('/pool/spool')\n"
                  "incoming.receive([base64.b64decode(sys.argv[1])], target, spool)\n")
        refused = rig.exec("hostb", python, "-c", script, made, check=False)
        assert "brings more than that: '0badc0de.spool', 'deadbeef.1'" in refused.stderr, refused
        assert rig.sh("hostb", "ls -A /pool/inside").split() == ["0badc0de.1"]
        assert rig.sh("hostb", "ls -A /pool/spool").strip() == ""
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/*.1; rm -rf /pool/inside /pool/spool")


def renaming_stream(name: str, *pairs: tuple[str, str]) -> bytes:
    """The subvolume `name`, and another one in the place of one that was there, which gets another name."""
    number = struct.pack("<Q", 1)
    return b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join([
        command(SUBVOL, path=(PATH, name.encode()), uuid=(UUID, b"u" * 16), ctransid=(CTRANSID, number)),
        *(command(RENAME, path=(PATH, old.encode()), to=(PATH_TO, new.encode())) for old, new in pairs),
        command(SUBVOL, path=(PATH, b"00000001.1"), uuid=(UUID, b"v" * 16), ctransid=(CTRANSID, number)),
        command(MKFILE, path=(PATH, b"planted"), ino=(INO, number)),
        command(END),
    ])


def test_a_stream_renames_nothing_that_was_there(rig: Rig) -> None:
    """Neither a snapshot beside its own, nor what can be moved right into that."""
    pairs = ("../00000001.1", "../junk"), ("../partial", "inside")
    made = base64.b64encode(renaming_stream("0badc0de.1", *pairs)).decode()
    rig.sh("hostb", "mkdir -p /pool/inside /pool/spool && cd /pool/inside && btrfs -q subvolume create 00000001.1 &&"
                    " touch 00000001.1/ours && btrfs property set 00000001.1 ro true &&"
                    " btrfs -q subvolume create partial && touch partial/too")
    script = ("import base64, sys\nfrom pathlib import Path\nfrom migrator import incoming\n"
              "target, spool = Path('/pool/inside/0badc0de.1'), Path('/pool/spool')\n"
              "incoming.receive([base64.b64decode(sys.argv[1])], target, spool)\n")
    try:
        refused = rig.exec("hostb", "/opt/migrator/venv/bin/python", "-c", script, made, check=False)
        assert "brings more than that" in refused.stderr, refused
        found = rig.sh("hostb", "cd /pool/inside; ls -A; ls -A 00000001.1 partial").split()
        assert found == ["00000001.1", "0badc0de.1", "partial", "00000001.1:", "ours", "partial:", "too"], refused
    finally:
        rig.sh("hostb", "cd /pool/inside; for each in */ */*/; do btrfs property set $each ro false; done;"
                        " btrfs -q subvolume delete */*/ */; rm -rf /pool/inside /pool/spool", check=False)


def test_a_stream_reaches_nothing_but_its_folder(rig: Rig) -> None:
    """`btrfs receive` follows a link in what it has received; as root, and to wherever that leads."""
    made = base64.b64encode(stream("/root/outside")).decode()
    rig.sh("hostb", "mkdir -p /root/outside /pool/inside")
    try:
        script = ("import base64, sys\nfrom pathlib import Path\nfrom migrator import btrfs\n"
                  "btrfs.receive([base64.b64decode(sys.argv[1])], Path('/pool/inside'))\n")
        python = "/opt/migrator/venv/bin/python"
        rig.exec("hostb", python, "-c", script, made, check=False)  # it may well fail
        assert rig.sh("hostb", "ls -A /root/outside").strip() == ""
        assert rig.exec("hostb", "test", "-L", "/pool/inside/evil/link", check=False).status == 0, "it was read"
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/evil; rmdir /pool/inside; rm -r /root/outside")


RECEIVE = ("import base64, sys\nfrom pathlib import Path\nfrom migrator import btrfs, incoming\n"
           "stream, target, spool = sys.stdin.buffer.read(), Path('/pool/inside', sys.argv[1]), Path('/pool/spool')\n")
CHECKED, UNCHECKED = "incoming.receive([stream], target, spool)\n", "btrfs.receive([stream], target.parent)\n"


def received(rig: Rig, how: str, file: str, target: str) -> str:
    """What is said when a stream in a file of hostb's is received there."""
    python = shlex.join(["/opt/migrator/venv/bin/python", "-c", RECEIVE + how, target])
    return rig.exec("hostb", "sh", "-c", f"{python} <{file}", check=False).stderr


@pytest.mark.parametrize("kind", ["clone", "snapshot"])
def test_a_stream_takes_from_nobody_else(rig: Rig, kind: str) -> None:
    """`btrfs receive` looks for what a stream names on the whole file system."""
    rig.sh("hostb", "mkdir -p /pool/inside /pool/spool && btrfs -q subvolume create /pool/victim && "
                    "yes secret | head -c 8192 >/pool/victim/file && sync")
    try:
        victim = uuid.UUID(rig.sh("hostb", "btrfs subvolume show /pool/victim | sed -n 's/.*\tUUID:[ \t]*//p'").strip())
        made = base64.b64encode(taking_stream(victim.bytes, kind)).decode()
        rig.sh("hostb", f"echo {made} | base64 -d >/pool/spool/stream")
        assert received(rig, UNCHECKED, "/pool/spool/stream", "evil") == ""
        assert "secret" in rig.sh("hostb", "head -n 1 /pool/inside/evil/file"), "btrfs does as it is told"
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/evil")
        assert f"takes from subvolume {victim}" in received(rig, CHECKED, "/pool/spool/stream", "evil")
        assert rig.sh("hostb", "ls -A /pool/inside").strip() == ""
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/* /pool/victim; rm -rf /pool/inside /pool/spool",
               check=False)


def test_a_stream_climbs_nowhere(rig: Rig) -> None:
    """From what it may name, by its paths and links."""
    number = struct.pack("<Q", 1)
    base = b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join([
        command(SUBVOL, path=(PATH, b"base"), uuid=(UUID, b"b" * 16), ctransid=(CTRANSID, number)),
        command(SYMLINK, path=(PATH, b"link"), ino=(INO, number), to=(PATH_LINK, b"/pool/victim/file")),
        command(SYMLINK, path=(PATH, b"up"), ino=(INO, number), to=(PATH_LINK, b"../../victim/file")),
        command(END),
    ])
    rig.sh("hostb", "mkdir -p /pool/inside /pool/spool && btrfs -q subvolume create /pool/victim && "
                    "yes secret | head -c 8192 >/pool/victim/file && sync")
    try:
        rig.sh("hostb", f"echo {base64.b64encode(base).decode()} | base64 -d >/pool/spool/stream")
        assert received(rig, CHECKED, "/pool/spool/stream", "base") == ""
        for of, source in ((b"u", b"../../victim/file"), (b"u", b"../base/link"), (b"b", b"../../victim/file"),
                           (b"b", b"link"), (b"b", b"up"), (b"b", b"../../../pool/victim/file")):
            made = base64.b64encode(taking_stream(of * 16, "clone", source)).decode()
            rig.sh("hostb", f"echo {made} | base64 -d >/pool/spool/stream")
            assert "cannot open" in received(rig, CHECKED, "/pool/spool/stream", "evil"), source
            assert rig.sh("hostb", "cat /pool/inside/evil/file") == "", source
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/* /pool/victim; rm -rf /pool/inside /pool/spool",
               check=False)


def taking_stream(of: bytes, kind: str, source: bytes = b"file") -> bytes:
    """The subvolume `evil` with the file of another one: all of that, or the extents."""
    path, name, number = (PATH, b"evil"), (UUID, b"u" * 16), struct.pack("<Q", 1)
    begin = [command(SNAPSHOT, path=path, uuid=name, ctransid=(CTRANSID, number), of=(20, of), since=(21, number))]
    if kind == "clone":
        begin = [
            command(SUBVOL, path=path, uuid=name, ctransid=(CTRANSID, number)),
            command(MKFILE, path=(PATH, b"file"), ino=(INO, number)),
            command(CLONE, path=(PATH, b"file"), at=(18, bytes(8)), length=(24, struct.pack("<Q", 8192)), of=(20, of),
                    since=(21, number), source=(22, source), begin=(23, bytes(8))),
        ]
    return b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join([*begin, command(END)])


def test_a_stream_takes_from_what_came_before_it(rig: Rig) -> None:
    """As `btrfs send` makes it where a file was copied by reference."""
    send = "btrfs send -q {} | ssh root@hostb 'cat >/pool/spool/{}'"
    rig.sh("hostb", "mkdir -p /pool/inside /pool/spool")
    try:
        rig.sh("hosta", "btrfs -q subvolume create /pool/c && cd /pool/c && head -c 1M /dev/urandom >first && "
                        "cp --reflink=always first second && btrfs -q subvolume snapshot -r . /pool/0badc0de.1 && "
                        "cp --reflink=always first third && btrfs -q subvolume snapshot -r . /pool/0badc0de.2")
        rig.sh("hosta", send.format("/pool/0badc0de.1", "full"))
        rig.sh("hosta", send.format("-p /pool/0badc0de.1 /pool/0badc0de.2", "more"))
        assert int(rig.sh("hostb", "stat -c %s /pool/spool/more")) < 1 << 19, "it takes from the first one"
        assert received(rig, CHECKED, "/pool/spool/full", "0badc0de.1") == ""
        assert received(rig, CHECKED, "/pool/spool/more", "0badc0de.2") == ""
        rig.sh("hostb", "cd /pool/inside/0badc0de.2 && cmp first second && cmp first third")
    finally:
        rig.sh("hosta", "btrfs -q subvolume delete /pool/0badc0de.* /pool/c", check=False)
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/*; rm -rf /pool/inside /pool/spool", check=False)
