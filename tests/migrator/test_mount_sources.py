# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the mounts of a restored container may lead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from migrator.mount_sources import Host, Mount, elsewhere, is_below, joined, terminals

TREE = Path(__file__).parents[2]
# Host's: its root, /data (another file system) with /data/disk on it, /proc, /dev, and a cover over what was /old/deep.
HOST = """\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 /@data /data rw - btrfs /dev/sdb1 rw
22 21 8:3 / /data/disk rw - ext4 /dev/sdc1 rw
23 20 0:5 / /proc rw - proc proc rw
24 20 0:6 / /dev rw - devtmpfs udev rw
25 24 0:7 / /dev/pts rw - devpts devpts rw
26 20 8:4 / /old/deep rw - ext4 /dev/sdd1 rw
27 20 8:5 / /old rw - ext4 /dev/sde1 rw
"""


def mounted(device: str, root: str, target: str = "/mnt", flags: str = "rw", type_: str = "ext4") -> Mount:
    return Mount(f"90 80 {device} {root} {target} {flags} shared:7 - {type_} source rw")


def may(plan: str, *mount: str, **how: str) -> bool:
    return Host(HOST, f"{plan}\n").may_have(mounted(*mount, **how))


def test_what_a_plan_names() -> None:
    assert may("below rw /srv/data", "8:1", "/srv/data") and may("below rw /srv/data", "8:1", "/srv/data/a/secret")
    assert not may("below rw /srv/data", "8:1", "/srv/secret"), "where a link in it led"
    assert not may("below rw /srv/data", "8:1", "/srv/data2") and not may("below rw /srv/data", "8:1", "/")
    assert not may("below rw /srv/data", "8:2", "/srv/data"), "that is another file system"
    assert may("just rw /srv/data/a", "8:1", "/srv/data/a") and not may("just rw /srv/data/a", "8:1", "/srv/data/a/b")
    assert may("below rw /", "8:1", "/etc") and not may("below rw /", "8:2", "/@data")


def test_a_file_system_that_is_mounted_in_part() -> None:
    assert may("below rw /data/share", "8:2", "/@data/share/x") and not may("below rw /data/share", "8:2", "/share/x")
    assert not may("below rw /data", "8:3", "/"), "bound without what is mounted in it"
    assert may("all rw /data", "8:3", "/") and may("all rw /data", "8:2", "/@data")
    assert not may("all rw /data", "8:1", "/")


def test_what_covers_a_path_is_what_it_leads_to() -> None:
    assert may("below rw /old/deep", "8:5", "/deep") and not may("below rw /old/deep", "8:4", "/")


def test_what_is_to_be_read_only() -> None:
    assert may("below ro /srv", "8:1", "/srv/x", flags="ro,relatime") and not may("below ro /srv", "8:1", "/srv/x")
    assert may("below rw /srv", "8:1", "/srv/x", flags="ro")
    assert may("below ro /srv\njust rw /srv/x", "8:1", "/srv/x")


def test_what_is_the_containers_own() -> None:
    assert may("new tmpfs -", "0:99", "/", type_="tmpfs"), "this host has not mounted it"
    assert not may("new tmpfs -", "0:4", "net:[4026531840]", type_="nsfs"), "a link to /proc/1/ns/net"
    assert not may("new tmpfs -\nnew proc -", "0:5", "/", type_="proc")
    assert may("own devpts /mnt", "0:7", "/sys", type_="devpts")
    assert not may("own devpts /dev/pts", "0:7", "/", type_="devpts"), "the host's"
    assert not may("own proc /mnt", "0:5", "/", type_="proc"), "the host's, as each pid namespace has one of its own"
    assert not may("own sysfs /mnt", "0:5", "/", type_="proc"), "CRIU has made something else there"


def test_names_with_a_space() -> None:
    assert may(r"below rw /a\040b", "8:1", r"/a\040b/c") and not may(r"below rw /a\040b", "8:1", "/a")


def test_what_is_said_of_it() -> None:
    host = Host(HOST, "")
    assert host.path(mounted("8:1", "/srv/secret")) == "/srv/secret"
    assert host.path(mounted("8:2", "/@data")) == "/data" and host.path(mounted("8:2", "/@data/x")) == "/data/x"
    assert host.path(mounted("8:2", "/elsewhere")) == "/elsewhere"
    assert joined("/", "") == "/" and joined("/", "a") == "/a" and is_below("/a", "/a") and not is_below("/ab", "/a")


def test_terminals_of_the_monitor(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b) S 5 7 7 0")
    for folder in ("fd", "fdinfo"):
        (tmp_path / "5" / folder).mkdir(parents=True)
    for name, target in {"0": "/dev/null", "3": "/dev/pts/ptmx", "4": "/dev/pts/12", "5": "/dev/ptmx"}.items():
        (tmp_path / "5" / "fd" / name).symlink_to(target)
        (tmp_path / "5" / "fdinfo" / name).write_text(f"pos:\t0\nmnt_id:\t9\ntty-index:\t{name}0\n")
    (tmp_path / "5" / "fdinfo" / "5").unlink()
    assert terminals(7, str(tmp_path)) == {12, 30}


# In a mount namespace of its own, as the host's. A child is the container: it binds a folder through a link, in a
# namespace of its own, and in there another child covers all from view.
SCRIPT = '''
import ctypes, os, sys
from migrator import mount_sources
libc, top = ctypes.CDLL(None, use_errno=True), sys.argv[1]
def must(result): assert result == 0, os.strerror(ctypes.get_errno())
def bind(source, target): must(libc.mount(f"{top}/{source}".encode(), f"{top}/{target}".encode(), None, 4096, None))
for name in ("share", "secret", "root/mnt", "empty"):
    os.makedirs(f"{top}/{name}")
os.symlink("..", f"{top}/share/a")
(ready, is_ready), (lives, is_alive) = os.pipe(), os.pipe()
if not (child := os.fork()):
    os.close(is_alive)
    must(libc.unshare(0x20000))
    bind("share/a/secret", "root/mnt")
    if sys.argv[2] == "hidden":
        os.chroot(f"{top}/empty")
    os.write(is_ready, b".")
    os.read(lives, 1)
    os._exit(0)
os.read(ready, 1)
def look(plan):
    here = mount_sources.parsed(open("/proc/self/mountinfo").read())
    everything = "".join(f"own {mount.type} {mount.target}\\n" for mount in here) + "all rw /proc\\n"
    before = os.readlink("/proc/self/ns/mnt")
    try:
        mount_sources.require(everything + plan, [child, 2 ** 22 + 1], [])
        print("fine")
    except PermissionError as error:
        print(error)
    assert os.readlink("/proc/self/ns/mnt") == before and os.path.isdir(f"{top}/share")
look(f"below rw {top}/share\\n")
look(f"below rw {top}/secret\\n")
'''


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("how", ["plain", "hidden"])
def test_what_is_mounted_counts(tmp_path: Path, how: str) -> None:
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", sys.executable, "-c", SCRIPT,
                           str(tmp_path), how], cwd=TREE, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == [
        f"{tmp_path}/root/mnt would be {tmp_path}/secret of this host, writable, which its configuration does not bind"
        " here", "fine"], done.stderr


def test_what_other_mount_namespaces_have_is_not_its_own(tmp_path: Path) -> None:
    """CRIU, 20, has begun us, 21, the container, 30, and a helper, 22; 31 is in the container, 40 and 41 are not.

    Nor is 11, which the shell that all was typed in, 10, has begun in yet another namespace.
    """
    tree = {1: (0, "host"), 10: (1, "host"), 11: (10, "entered"), 20: (10, "host"), 21: (20, "host"), 22: (20, "criu"),
            30: (20, "its"), 31: (1, "its"), 40: (1, "service"), 41: (40, "service")}
    for pid, (parent, namespace) in tree.items():
        (tmp_path / f"{pid}/ns").mkdir(parents=True)
        (tmp_path / f"{pid}/stat").write_text(f"{pid} ({'criu' if pid == 20 else 'a) b'}) S {parent} 7 7 0")
        (tmp_path / f"{pid}/ns/mnt").symlink_to(f"mnt:[{namespace}]")
        (tmp_path / f"{pid}/mountinfo").write_text(f"20 1 {namespace} / / rw - tmpfs tmpfs rw\n")
    assert elsewhere([30], str(tmp_path), 21) == {"service", "entered"}
    assert elsewhere([], str(tmp_path), 41) == {"host", "criu", "its", "entered"}, "as seen by the service"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_link_to_what_another_namespace_has_mounted(tmp_path: Path) -> None:
    script = 'unshare --mount sh -c "mount -t tmpfs x \\"$1\\" && stat -c %Hd:%Ld \\"$1\\" && read x"; :'
    with subprocess.Popen(["sh", "-c", script, "sh", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as there:
        assert there.stdin and there.stdout
        device = there.stdout.readline().strip()
        assert device in elsewhere([]) and device not in Host(Path("/proc/self/mountinfo").read_text(), "").devices
        there.stdin.close()
    assert device not in elsewhere([])
