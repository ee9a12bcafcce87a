# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the mounts of a restored container may lead."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from migrator.criu import mount_flags, mount_sources
from migrator.criu.mount_sources import Host, Mount, is_below, joined, terminals
from migrator.host import mount_tables

TREE = Path(__file__).parents[3]
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
    for just in ("just ro /srv/x\njust rw /srv/x", "just rw /srv/x\njust ro /srv/x"):
        assert may(just, "8:1", "/srv/x") and may(just, "8:1", "/srv/x", flags="ro")
    assert not may("just ro /srv/x", "8:1", "/srv/x") and may("just ro /srv/x", "8:1", "/srv/x", flags="ro")
    assert may("just ro /srv/x\nbelow rw /srv", "8:1", "/srv/x")


def test_as_many_as_a_container_can_have() -> None:
    """Each in the plan by itself, and not compared with all of it: its root binds a folder's folders, say."""
    many = [f"/srv/{number}" for number in range(30_000)]
    begun = time.process_time()
    host = Host(HOST, "".join(f"just rw {path}\n" for path in many))
    assert all(host.may_have(mounted("8:1", path)) for path in many)
    assert not host.may_have(mounted("8:1", "/srv"))
    assert time.process_time() - begun < 5


def test_what_is_the_containers_own() -> None:
    assert may("new tmpfs /mnt", "0:99", "/", type_="tmpfs"), "this host has not mounted it"
    assert not may("new tmpfs /tmp", "0:99", "/", type_="tmpfs"), "bound through a link to another container's"
    assert not may("new tmpfs /mnt", "0:99", "/", type_="ext4"), "CRIU has made something else there"
    assert not may("new tmpfs /mnt", "0:4", "net:[4026531840]", type_="nsfs"), "a link to /proc/1/ns/net"
    assert not may("new devtmpfs /mnt\nnew devpts /mnt", "0:6", "/", type_="devtmpfs"), "the host's"
    assert may("own sysfs /mnt", "0:99", "/", type_="sysfs") and may("own proc /mnt", "0:99", "/", type_="proc")
    assert may("own devpts /mnt", "0:7", "/sys", type_="devpts")
    assert not may("own devpts /dev/pts", "0:7", "/", type_="devpts"), "the host's"
    assert not may("own proc /mnt", "0:5", "/", type_="proc"), "the host's, as each pid namespace has one of its own"
    assert not may("own sysfs /mnt", "0:5", "/", type_="proc"), "CRIU has made something else there"


def test_names_with_a_space() -> None:
    assert may(r"below rw /a\040b", "8:1", r"/a\040b/c") and not may(r"below rw /a\040b", "8:1", "/a")


def test_names_with_what_mountinfo_does_not_escape() -> None:
    """A container names its folders: with white space that parts no fields, and line ends that end no line."""
    assert may("below rw /a\rb", "8:1", "/a\rb/c") and not may("below rw /a\rb", "8:1", "/a")
    mount = mounted("8:1", "/a\x0b0", "/m\r\u2003rw", "ro")
    assert (mount.root, mount.target, mount.read_only) == ("/a\x0b0", "/m\r\u2003rw", True)
    assert [each.root for each in mount_sources.parsed("90 80 8:1 /a\rb /m rw - ext4 x rw\n")] == ["/a\rb"]
    options = "90 80 0:99 / /mnt rw - fuse x rw,name=a - tmpfs"
    assert not Host(HOST, "new tmpfs /mnt\n").may_have(Mount(options)), "its type is not what its options say"


def test_a_host_whose_root_is_mounted_on_itself() -> None:
    """As the first of all, which no other is below."""
    host = Host(HOST.replace("20 1 8:1", "20 20 8:1"), "below rw /srv/data\nbelow rw /data\n")
    assert host.may_have(mounted("8:1", "/srv/data/a")) and host.may_have(mounted("8:2", "/@data"))


def test_what_is_said_of_it() -> None:
    host = Host(HOST, "")
    assert host.path(mounted("8:1", "/srv/secret")) == "/srv/secret of this host"
    assert host.path(mounted("8:2", "/@data")) == "/data of this host"
    assert host.path(mounted("8:2", "/@data/x")) == "/data/x of this host"
    assert host.path(mounted("8:2", "/elsewhere")) == "/elsewhere of this host"
    assert host.path(mounted("9:1", "/", type_="tmpfs")) == "/ of a tmpfs that was not made for it"
    assert joined("/", "") == "/" and joined("/", "a") == "/a" and is_below("/a", "/a") and not is_below("/ab", "/a")
    assert joined("/X", "/X") == "/X/X" and joined("/a/", "/") == "/a" and joined("/a", "\r") == "/a/\r"


def test_its_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each for itself: nothing that would lie below one."""
    monkeypatch.setattr(mount_sources, "_read", lambda _: HOST)
    for root, fine in {"/3": True, "/4": True, "/5": False, "/3/a": False, "/4/a": False, "/": False}.items():
        monkeypatch.setattr(mount_sources, "_seen", lambda _, root=root: [f"90 80 0:7 {root} /tty1 rw - devpts x rw"])
        try:
            mount_sources.require("just rw /dev/null\n", [1], [3, 4])
            allowed = True
        except PermissionError:
            allowed = False
        assert allowed == fine, root


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES])
def test_a_process_that_is_not_to_be_read(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """One that has gone hides none behind it; and what is not known to be gone is not passed over."""
    def read(path: str, _: int) -> bytes:
        if path == "/proc/0/mountinfo":
            raise OSError(number, os.strerror(number), path)
        return f"of {path}".encode()

    us = os.getpid()
    monkeypatch.setattr(mount_tables, "read", read)
    monkeypatch.setattr(mount_flags, "sees", lambda pid: (pid,))
    monkeypatch.setattr(mount_sources, "_from_the_top", lambda pid: f"top of {pid}")
    if number == errno.EACCES:
        for pids in ([0, us], [us, 0]):
            with pytest.raises(PermissionError):
                list(mount_sources._seen(pids))
    else:
        assert list(mount_sources._seen([0, us])) == [f"top of {us}", f"of /proc/{us}/mountinfo"]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_mount_namespace_that_cannot_be_entered() -> None:
    """Ours is not taken for it. The kernel lets nobody enter one who is not root, or not the only thread (setns(2))."""
    ctypes.set_errno(0)  # of who has asked libc before
    done, before = threading.Event(), descriptors()
    beside = threading.Thread(target=done.wait)
    beside.start()
    try:
        with pytest.raises(OSError, match=f"mount namespace of process {os.getpid()}") as failed:
            mount_sources._from_the_top(os.getpid())
    finally:
        done.set()
        beside.join()
    assert failed.value.errno in (errno.EPERM, errno.EINVAL)
    assert descriptors() == before


def test_a_mount_namespace_that_cannot_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be done next would be done in the container's."""
    class Libc:
        def __init__(self) -> None:
            self.answers = [0, -1]

        def setns(self, _fd: int, _kind: int) -> int:
            ctypes.set_errno(errno.EPERM)
            return self.answers.pop(0)

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    before = descriptors()
    with pytest.raises(PermissionError, match="our own mount namespace"):
        mount_sources._from_the_top(os.getpid())
    assert descriptors() == before


def test_terminals_of_the_monitor(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b) S 5 7 7 0")
    for folder in ("fd", "fdinfo"):
        (tmp_path / "5" / folder).mkdir(parents=True)
    for name, target in {"0": "/dev/null", "3": "/dev/pts/ptmx", "4": "/dev/pts/12", "5": "/dev/ptmx"}.items():
        (tmp_path / "5" / "fd" / name).symlink_to(target)
        (tmp_path / "5" / "fdinfo" / name).write_text(
            f"pos:\t0\nmnt_id:\t9\ntty-index:\t{name}0\nmore:\t1\n")
    (tmp_path / "5" / "fdinfo" / "5").unlink()
    assert terminals(7, str(tmp_path)) == {12, 30}


def test_a_terminal_of_which_its_other_side_is_open() -> None:
    """As the kernel tells it of the one that a child's parent has, as LXC's monitor does."""
    ours, other = os.openpty()
    try:
        number = int(os.ttyname(other).removeprefix("/dev/pts/"))
        os.close(other)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
            assert number in terminals(child.pid)
    finally:
        os.close(ours)


# In a mount namespace of its own, as the host's. A child is the container: it binds a folder through a link, in a
# namespace of its own, and may hide it: from itself by a root of its own, or by what it mounts over all, below which it
# stays. The folder's name has in it what a line's end is elsewhere, and what is no UTF-8.
SCRIPT = '''
import ctypes, os, sys
from migrator.criu import mount_sources
libc, top = ctypes.CDLL(None, use_errno=True), sys.argv[1]
def must(result): assert result == 0, os.strerror(ctypes.get_errno())
def bind(*names): must(libc.mount(*(os.fsencode(f"{top}/{name}") for name in names), None, 4096, None))
for name in ("share", "secret", "root/m\\r\\udcff", "empty"):
    os.makedirs(f"{top}/{name}")
os.symlink("..", f"{top}/share/a")
(ready, is_ready), (lives, is_alive) = os.pipe(), os.pipe()
if not (child := os.fork()):
    os.close(is_alive)
    must(libc.unshare(0x20000))
    bind("share/a/secret", "root/m\\r\\udcff")
    if sys.argv[2] == "hidden":
        os.chroot(f"{top}/empty")
    if sys.argv[2] == "covered":
        must(libc.mount(b"none", b"/", b"tmpfs", 0, None))
    os.write(is_ready, b".")
    os.read(lives, 1)
    os._exit(0)
os.read(ready, 1)
def look(plan):
    here = mount_sources.parsed(open("/proc/self/mountinfo").read())
    everything = "".join(f"own {mount.type} {mount.target}\\n" for mount in here) + "all rw /proc\\nnew tmpfs /\\n"
    before = os.readlink("/proc/self/ns/mnt")
    try:
        mount_sources.require(everything + plan, [child, 2 ** 22 + 1], [])
        print("fine")
    except PermissionError as error:
        print(ascii(str(error)))
    assert os.readlink("/proc/self/ns/mnt") == before and os.path.isdir(f"{top}/share")
look(f"below rw {top}/share\\n")
look(f"below rw {top}/secret\\n")
'''


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("how", ["plain", "hidden", "covered"])
def test_what_is_mounted_counts(tmp_path: Path, how: str) -> None:
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", sys.executable, "-c", SCRIPT,
                           str(tmp_path), how], cwd=TREE, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == [
        ascii(f"{tmp_path}/root/m\r\udcff would be {tmp_path}/secret of this host, writable, which its configuration"
              " does not bind here"), "fine"], done.stderr


# The container, in a mount namespace and with a root of its own, has two file systems that this host has not mounted:
# one that CRIU has made anew, and one that it has bound through a link, say. Somebody else has a namespace too.
ELSEWHERE = '''
import ctypes, os, sys
from migrator.criu import mount_sources
from migrator.host import mount_tables
libc, top = ctypes.CDLL(None, use_errno=True), sys.argv[1]
def must(result): assert result == 0, os.strerror(ctypes.get_errno())
for name in ("run", "mnt"):
    os.makedirs(f"{top}/jail/{name}")
alive, lives = os.pipe()
def beside(folders):
    is_there, there = os.pipe()
    if not (child := os.fork()):
        try:
            os.close(lives)
            must(libc.unshare(0x20000))
            for name in folders:
                must(libc.mount(b"none", f"{top}/jail/{name}".encode(), b"tmpfs", 0, None))
            os.chroot(f"{top}/jail")
            os.write(there, b".")
            os.read(alive, 1)
        finally:
            os._exit(0)
    os.close(there)
    assert os.read(is_there, 1)
    return child
container, other = beside(("run", "mnt")), beside(("run",))
here = mount_sources.parsed(open("/proc/self/mountinfo").read())
plan = "".join(f"own {mount.type} {mount.target}\\n" for mount in here) + "all rw /proc\\n"
asked, honest, tables = [], mount_sources._read, mount_tables.read
mount_sources._read = lambda path: asked.append(path) or honest(path)
mount_tables.read = lambda file, limit: isinstance(file, str) and asked.append(file) or tables(file, limit)
for target in ("run", "mnt"):
    plan += f"new tmpfs {top}/jail/{target}\\n"
    try:
        mount_sources.require(plan, [container], [])
        print("fine")
    except PermissionError as error:
        print(error)
print(*sorted(set(asked) - {"/proc/self/mountinfo", f"/proc/{container}/mountinfo"}))
'''


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_what_this_host_has_not_mounted_is_not_its_own_for_that(tmp_path: Path) -> None:
    """Nor is it looked for among what others have mounted, who would hold up each restore by that."""
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", sys.executable, "-c", ELSEWHERE,
                           str(tmp_path)], cwd=TREE, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == [
        f"{tmp_path}/jail/mnt would be / of a tmpfs that was not made for it, writable, which its configuration does"
        " not bind here", "fine", ""], done.stderr
