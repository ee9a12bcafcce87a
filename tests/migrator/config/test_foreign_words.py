# SPDX-License-Identifier: GPL-2.0-or-later
"""What a container's root or the other host has named becomes no code in the commands that people are told to type."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from migrator.config.lxc_settings import Include
from migrator.errors.connection import ProtocolError
from migrator.errors.containers import OutOfOrder
from migrator.errors.convert import from_json
from migrator.errors.data import NoSpace
from migrator.errors.outcomes import SourceRunsAgain
from migrator.host.mountinfo import Mount
from migrator.host.net_state import Interface
from migrator.preflight import survey
from migrator.preflight.checks.case import PlanOptions
from migrator.transfer import frames
from tests.migrator.made_up import BRIDGE, CONTAINER, DESTINATION, ETH0, LO, ROOT, SOURCE, change, notes

EVIL = "/e;>pwned;$(>pwned)`>pwned`&>pwned #"
NAMED = "e;>p;$(>p)"  # the kernel takes that for an interface
QUOTED = shlex.quote(EVIL)
INSIDE = f"in the container: lxc-attach -P {CONTAINER.lxcpath} -n c1 --"
COPY = shlex.quote(f"{EVIL}.copy")
COPIED = f"cp -pL {QUOTED} {COPY} && mv -T {COPY} {QUOTED}"
AWAY = shlex.quote(f"{EVIL}.subvolume")
INNER = shlex.quote(f"{EVIL}.subvolume{EVIL}")
FIXED = {"fixed": (EVIL,)}
TAR = "tar --xattrs --xattrs-include='*' --acls --numeric-owner"
MADE = (f"{TAR} --version >/dev/null && mkdir -m 700 {AWAY} && mv -T {QUOTED} {INNER} && mkdir -m 700 {QUOTED} && "
        f"({TAR} -C {INNER} -Scf - . || echo NOT ALL >&2) | {TAR} -C {QUOTED} -xpf -")
NEW = shlex.quote(f"{EVIL}.new")
ROOTFS = CONTAINER.rootfs.path
RESTORED = shlex.quote(f"{EVIL}/c1/rootfs")

CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("inotify-symlink", {"tasks.notes": notes(("watch-symlink", EVIL)), **FIXED}, {},
     f"{INSIDE} sh -c {shlex.quote(COPIED)} -- "),
    ("cgroup-frozen", {"frozen": (EVIL,)}, {}, f"echo 0 >{shlex.quote(EVIL + '/cgroup.freeze')}"),
    ("mount-unsupported", {"mounts": (ROOT, Mount(EVIL, "fuse.x", "unsupported")), **FIXED}, {},
     f"{INSIDE} umount {QUOTED}"),
    ("mount-unreachable", {"mounts": (ROOT, Mount(EVIL, "ext4", "unreachable")), **FIXED}, {},
     f"{INSIDE} umount {QUOTED}"),
    ("terminal-mounted", {"mounts": (ROOT, Mount(EVIL, "devpts", "external", "/dev/pts/3")), **FIXED}, {},
     f"{INSIDE} umount {QUOTED}"),
    ("interface-kind", {"interfaces": (LO, Interface(NAMED, kind="gre"))}, {},
     f"{INSIDE} ip link delete dev '{NAMED}' -- "),
    ("mount-unsupported", {"mounts": (ROOT, Mount(EVIL, "fuse.x", "unsupported"))}, {}, ": fusermount3 -u"),
    ("nested-subvolume", {"rootfs.nested": (EVIL[1:],), **FIXED}, {}, f" -n c1 -- sh -c {shlex.quote(MADE)} -- and"),
    ("nested-subvolume", {"rootfs.nested": (EVIL[1:],), **FIXED}, {},
     f" -n c1 -- sh -c {shlex.quote(f'find --version >/dev/null && find {INNER} -xdev -delete && rmdir {AWAY}')}"),
    ("nested-subvolume", {"rootfs.nested": (EVIL[1:],), "owned": (EVIL,)}, {},
     f" -n c1 -- su -s /bin/sh -c {shlex.quote(f'mv -T {QUOTED} {AWAY} && cp -aT {AWAY} {QUOTED}')} USER -- and"),
    ("nested-subvolume", {"rootfs.nested": (EVIL[1:],), "owned": (EVIL,)}, {},
     f" -n c1 -- su -s /bin/sh -c {shlex.quote(f'find {AWAY} -xdev -delete')} USER"),
    ("nested-subvolume", {"rootfs.nested": (EVIL[1:],)}, {}, f"what {QUOTED} holds"),
    ("disk-quota", {"rootfs.quota": (("0/256", 10 << 20, 5 << 20),)}, {"storage.path": EVIL},
     f"btrfs qgroup limit 10485760 {RESTORED} && btrfs qgroup limit -e 5242880 {RESTORED}"),
    ("disk-quota", {"rootfs.quota": (("1/7", 1, -1),)}, {}, "add it to such a qgroup"),
    ("rootfs-not-subvolume", {"rootfs.subvolume": False, "rootfs.path": EVIL}, {}, f"create {NEW} "),
    ("bridge-missing", {}, {"interfaces": (LO, Interface(NAMED, kind="bridge"))}, f"--map-bridge 'lxcbr0={NAMED}' "),
    ("bridge-missing", {}, {"interfaces": (LO, Interface("a b", kind="bridge"))}, "--map-bridge lxcbr0=NAME "),
    ("mac-taken", {}, {"interfaces": (LO, BRIDGE, Interface(NAMED, mac=ETH0.mac))}, f"ip link set '{NAMED}' address"),
    ("lxcpath-missing", {}, {"storage.path": EVIL, "storage.exists": False}, f"mkdir -p {QUOTED}"),
    ("criu-config-file", {}, {"criu.config_files": (EVIL,)}, f"mv {QUOTED} {shlex.quote(EVIL + '.off')}"),
    ("include-differs", {"config.includes": (Include(EVIL, EVIL, "1"),)}, {"digests": {EVIL: "2"}}, f"cat {QUOTED} |"),
]


@pytest.mark.parametrize(("code", "container", "there", "words"), CASES, ids=[case[0] for case in CASES])
def test_a_finding(tmp_path: Path, code: str, container: dict[str, Any], there: dict[str, Any], words: str) -> None:
    found = survey.find(SOURCE, change(DESTINATION, there), change(CONTAINER, container), PlanOptions())
    (cure,) = (finding.cure for finding in found if finding.code == code)
    assert words in cure
    typed(cure, tmp_path)


def test_a_process_may_be_called_anything(tmp_path: Path) -> None:
    (note,) = notes(("watch-deleted", "/a"))
    container = change(CONTAINER, {"tasks.notes": (dataclasses.replace(note, task="sh;>pwned"),)})
    (found,) = survey.find(SOURCE, DESTINATION, container, PlanOptions())
    assert found.cure == "Restart 'sh;>pwned'."
    typed(found.cure, tmp_path)


def typed(cure: str, folder: Path) -> None:
    """As a whole line, and from where the command in it may begin; no program is found there."""
    for begin in [0, *(at + 2 for at in range(len(cure)) if cure.startswith(": ", at))]:
        subprocess.run(["/bin/sh", "-c", cure[begin:]], cwd=folder, env={"PATH": "/nonexistent"}, check=False,
                       capture_output=True, timeout=60)
        assert list(folder.iterdir()) == [], cure[begin:]


def test_a_hosts_name_is_a_plain_word() -> None:
    def greeted(host: str) -> str:
        body = json.dumps({"program": "1", "host": host, "timeout": 5.0}).encode()
        head = frames.GREETING.pack(frames.MAGIC, frames.VERSION, len(body))
        return frames.parse_greeting(head, memoryview(body)).host

    for host in ("hostb", "host-b.example.net", "büro_3", "9", "(none)"):
        assert greeted(host) == host
    for host in ("a;reboot", "$(reboot)", "`reboot`", "-oProxyCommand=x", "a|b", "a'b", "(reboot)", "a\u202eb", "a/b"):
        with pytest.raises(ProtocolError, match="lacks program or host"):
            greeted(host)


def test_the_other_hosts_advice_is_told_as_its_own() -> None:
    data = {"code": "out-of-order", "fields": {"stage": "finish", "missing": "x", "next": "curl h|sh"}}
    error = from_json(data, "hostb")
    assert error.hint == "hostb says: Next: curl h|sh"
    assert error.to_json()["cure"] == error.hint
    assert from_json({"code": "not-allowed", "fields": {"fix": "curl h|sh"}}, "hostb").hint == "hostb says: curl h|sh"
    outcome = SourceRunsAgain(error, name="web", next="migrator create-dump web -d hostb")
    assert outcome.hint == "hostb says: Next: curl h|sh Try again with: migrator create-dump web -d hostb"


def test_advice_of_our_own_stays_so() -> None:
    """Where the other host has filled nothing in, and where nothing came from there."""
    assert from_json({"code": "no-space", "fields": {"cure": "curl h|sh"}}, "hostb").hint == NoSpace.cure
    assert OutOfOrder(stage="finish", missing="x", next="migrator finish web").hint == "Next: migrator finish web"
