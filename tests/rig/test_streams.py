# SPDX-License-Identifier: GPL-2.0-or-later
"""What a stream of `btrfs send` may touch that a liar has made (fs/btrfs/send.h), and what one brings that none has."""

from __future__ import annotations

import base64
import shlex
import struct
import uuid

import pytest

from harness.rig import Rig
from tests.rig.send_streams import (
    CHECKED,
    CHMOD,
    CLONE,
    CTRANSID,
    END,
    INO,
    MKDIR,
    MKFILE,
    MODE,
    PATH,
    PATH_LINK,
    PATH_TO,
    RENAME,
    SET_XATTR,
    SNAPSHOT,
    SUBVOL,
    SYMLINK,
    UNCHECKED,
    UUID,
    XATTR_DATA,
    XATTR_NAME,
    command,
    received,
)

UP = command(SYMLINK, path=(PATH, b"up"), ino=(INO, struct.pack("<Q", 1)), to=(PATH_LINK, b".."))


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
    """The subvolume `name`, and beside it another one and a folder, by a link; and all may write there."""
    number = struct.pack("<Q", 1)
    return b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join([
        command(SUBVOL, path=(PATH, name.encode()), uuid=(UUID, b"u" * 16), ctransid=(CTRANSID, number)),
        UP,
        command(MKDIR, path=(PATH, b"up/0badc0de.spool"), ino=(INO, number)),
        command(MKFILE, path=(PATH, b"up/0badc0de.spool/config.json"), ino=(INO, number)),
        command(CHMOD, path=(PATH, b"up"), mode=(MODE, struct.pack("<Q", 0o777))),
        command(SUBVOL, path=(PATH, b"deadbeef.1"), uuid=(UUID, b"v" * 16), ctransid=(CTRANSID, number)),
        command(MKFILE, path=(PATH, b"blob"), ino=(INO, number)),
        command(END),
    ])


def test_a_stream_leaves_nothing_but_its_snapshot(rig: Rig) -> None:
    made = base64.b64encode(wider_stream("0badc0de.1")).decode()
    rig.sh("hostb", "mkdir -p -m 700 /pool/inside /pool/spool")
    python = "/opt/migrator/venv/bin/python"
    try:
        script = ("import base64, sys\nfrom pathlib import Path\nfrom migrator.transfer import received_snapshot\n"
                  "target, spool = Path('/pool/inside/0badc0de.1'), Path('/pool/spool')\n"
                  "received_snapshot.receive([base64.b64decode(sys.argv[1])], target, spool)\n")
        refused = rig.exec("hostb", python, "-c", script, made, check=False)
        assert "brings more than that: '.', '0badc0de.spool', 'deadbeef.1'" in refused.stderr, refused
        assert rig.sh("hostb", "stat -c %a /pool/inside").strip() == "700"
        assert rig.sh("hostb", "ls -A /pool/inside").split() == ["0badc0de.1"]
        assert rig.sh("hostb", "ls -A /pool/spool").strip() == ""
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/*.1; rm -rf /pool/inside /pool/spool")


def renaming_stream(name: str, *pairs: tuple[str, str]) -> bytes:
    """The subvolume `name`, and another one in the place of one that was there, which gets another name."""
    number = struct.pack("<Q", 1)
    return b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join([
        command(SUBVOL, path=(PATH, name.encode()), uuid=(UUID, b"u" * 16), ctransid=(CTRANSID, number)),
        UP,
        *(command(RENAME, path=(PATH, old.encode()), to=(PATH_TO, new.encode())) for old, new in pairs),
        command(SUBVOL, path=(PATH, b"00000001.1"), uuid=(UUID, b"v" * 16), ctransid=(CTRANSID, number)),
        command(MKFILE, path=(PATH, b"planted"), ino=(INO, number)),
        command(END),
    ])


def test_a_stream_renames_nothing_that_was_there(rig: Rig) -> None:
    """Neither a snapshot beside its own, nor what can be moved right into that."""
    pairs = ("up/00000001.1", "up/junk"), ("up/partial", "inside")
    made = base64.b64encode(renaming_stream("0badc0de.1", *pairs)).decode()
    rig.sh("hostb", "mkdir -p /pool/inside /pool/spool && cd /pool/inside && btrfs -q subvolume create 00000001.1 &&"
                    " touch 00000001.1/ours && btrfs property set 00000001.1 ro true &&"
                    " btrfs -q subvolume create partial && touch partial/too")
    script = ("import base64, sys\nfrom pathlib import Path\nfrom migrator.transfer import received_snapshot\n"
              "target, spool = Path('/pool/inside/0badc0de.1'), Path('/pool/spool')\n"
              "received_snapshot.receive([base64.b64decode(sys.argv[1])], target, spool)\n")
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
        script = ("import base64, sys\nfrom pathlib import Path\nfrom migrator.host import btrfs\n"
                  "btrfs.receive([base64.b64decode(sys.argv[1])], Path('/pool/inside'))\n")
        python = "/opt/migrator/venv/bin/python"
        rig.exec("hostb", python, "-c", script, made, check=False)  # it may well fail
        assert rig.sh("hostb", "ls -A /root/outside").strip() == ""
        assert rig.exec("hostb", "test", "-L", "/pool/inside/evil/link", check=False).status == 0, "it was read"
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/evil; rmdir /pool/inside; rm -r /root/outside")


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
        assert f"refers to subvolume {victim}" in received(rig, CHECKED, "/pool/spool/stream", "evil")
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
            rig.sh("hostb", "[ ! -d /pool/inside/evil ] || btrfs -q subvolume delete /pool/inside/evil;"
                            f" echo {made} | base64 -d >/pool/spool/stream")
            how = UNCHECKED if b".." in source else CHECKED  # which refuses such a path: btrfs does without that
            assert "cannot open" in received(rig, how, "/pool/spool/stream", "evil"), source
            assert rig.sh("hostb", "cat /pool/inside/evil/file") == "", source
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/* /pool/victim; rm -rf /pool/inside /pool/spool",
               check=False)


@pytest.mark.parametrize("before", [True, False])
def test_a_stream_gives_its_folder_no_attributes(rig: Rig, before: bool) -> None:
    """A default ACL there is what the next snapshot has everywhere. By `..`, or before there is a subvolume."""
    number = struct.pack("<Q", 1)
    path = b"" if before else b".."
    everybody = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in (
        (1, 7, (1 << 32) - 1), (2, 7, 1234), (4, 0, (1 << 32) - 1), (16, 7, (1 << 32) - 1), (32, 0, (1 << 32) - 1)))
    wanted = [
        command(SUBVOL, path=(PATH, b"evil"), uuid=(UUID, b"u" * 16), ctransid=(CTRANSID, number)),
        command(SET_XATTR, path=(PATH, path), name=(XATTR_NAME, b"system.posix_acl_default"),
                data=(XATTR_DATA, everybody)),
        command(CHMOD, path=(PATH, path), mode=(MODE, struct.pack("<Q", 0o777))),
    ]
    made = b"btrfs-stream\0" + struct.pack("<I", 1) + b"".join(
        [*(wanted[1:] + wanted[:1] if before else wanted), command(END)])
    rig.sh("hostb", "mkdir -p -m 700 /pool/inside /pool/spool;"
                    f" echo {base64.b64encode(made).decode()} | base64 -d >/pool/spool/stream")
    look = shlex.join(["/opt/migrator/venv/bin/python", "-c",
                       "import os; print(oct(os.stat('/pool/inside').st_mode), os.listxattr('/pool/inside'))"])
    try:
        said = received(rig, CHECKED, "/pool/spool/stream", "evil")
        assert ("comes before its subvolume" if before else "has the path b'..'") in said, said
        assert rig.sh("hostb", look) == "0o40700 []\n"
        assert received(rig, UNCHECKED, "/pool/spool/stream", "evil") == ""
        assert rig.sh("hostb", look) == "0o40777 ['system.posix_acl_default']\n", "btrfs does as it is told"
    finally:
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/*; rm -rf /pool/inside /pool/spool", check=False)


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


# All that is in a folder, its own too, but what a receive does not keep.
LISTED = """
import os
for folder, folders, files in os.walk("."):
    folders.sort()
    for path in (folder, *(f"{folder}/{name}" for name in sorted(files) + folders)):
        found = os.lstat(path)
        print(path, oct(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, found.st_mtime_ns,
              os.path.islink(path) and os.readlink(path),
              [(name, os.getxattr(path, name, follow_symlinks=False))
               for name in os.listxattr(path, follow_symlinks=False)])
"""


def test_a_stream_takes_from_what_came_before_it(rig: Rig) -> None:
    """As `btrfs send` makes it where a file was copied by reference, and much else was done."""
    send = "btrfs send -q {} | ssh root@hostb 'cat >/pool/spool/{}'"
    python = "/opt/migrator/venv/bin/python"
    rig.sh("hostb", "mkdir -p /pool/inside /pool/spool")
    try:
        rig.sh("hosta", f"""btrfs -q subvolume create /pool/c; cd /pool/c
            head -c 1M /dev/urandom >first; cp --reflink=always first second; ln first ..first
            mkdir -p a/b/c/d ...; ln -s ../../.. a/link; mkfifo a/fifo
            {python} -c 'import os; os.setxattr(".", "user.x", b"y"); os.setxattr("a", "user.x", b"y")'
            chown 7:8 . a; chmod 2751 .; btrfs -q subvolume snapshot -r . /pool/0badc0de.1
            cp --reflink=always first third; ln third a/b/.x; rm -r second ...; ln -sf /.. a/link
            mv a/b/c/d d; mv a/b/c d/cc; mv a d/cc/aa; mkdir a
            {python} -c 'import os; os.removexattr(".", "user.x"); os.setxattr(".", "user.z", b"")'
            chown 9:10 .; chmod 1711 .; touch -d 2020-01-01 .; btrfs -q subvolume snapshot -r . /pool/0badc0de.2""")
        rig.sh("hosta", send.format("/pool/0badc0de.1", "full"))
        rig.sh("hosta", send.format("-p /pool/0badc0de.1 /pool/0badc0de.2", "more"))
        assert int(rig.sh("hostb", "stat -c %s /pool/spool/more")) < 1 << 19, "it takes from the first one"
        for name, file in (("0badc0de.1", "full"), ("0badc0de.2", "more")):
            assert received(rig, CHECKED, f"/pool/spool/{file}", name) == ""
            sent, there = (rig.sh(host, f"cd {folder}/{name} && {shlex.join([python, '-c', LISTED])}")
                           for host, folder in (("hosta", "/pool"), ("hostb", "/pool/inside")))
            assert sent == there and "user." in sent
        rig.sh("hostb", "cd /pool/inside && cmp 0badc0de.1/first 0badc0de.1/second && cd 0badc0de.2 && cmp first third")
    finally:
        rig.sh("hosta", "btrfs -q subvolume delete /pool/0badc0de.* /pool/c", check=False)
        rig.sh("hostb", "btrfs -q subvolume delete /pool/inside/*; rm -rf /pool/inside /pool/spool", check=False)
