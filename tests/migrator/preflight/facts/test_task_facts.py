# SPDX-License-Identifier: GPL-2.0-or-later
"""What processes hold, from /proc: of processes that the tests start themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.host import inner_paths, inode_paths, proc, roots
from migrator.host.mountinfo import parse_mountinfo
from migrator.host.proc import parse_status, read_text
from migrator.preflight.facts import mounts_seen, task_facts, unix_facts, watch_facts
from migrator.preflight.facts.task_facts import Tasks

STATUS = """\
Name:\tnginx: worker
State:\tS (sleeping)
Tgid:\t4712
Pid:\t4712
PPid:\t4711
TracerPid:\t0
Uid:\t100033\t100033\t100033\t100033
NSpid:\t4712\t7
NSsid:\t0\t0
Threads:\t4
RssAnon:\t    1024 kB
RssShmem:\t       8 kB
VmSwap:\t     100 kB
"""


def test_status() -> None:
    status = parse_status(STATUS)
    assert status is not None
    assert (status.name, status.state, status.parent, status.uids) == ("nginx: worker", "S", 4711, (100033,) * 4)
    assert (status.pid, status.inside) == (4712, 7)
    assert (status.session_inside, status.levels, status.threads, status.memory) == (0, 2, 4, 1132 * 1024)
    assert parse_status("") is None
    assert parse_status(STATUS.replace("4711", "x")) is None


@pytest.mark.parametrize("first", [
    STATUS.replace("S (sleeping)", "Z (zombie)"),
    STATUS.replace("PPid:\t4711", "PPid:\t0").replace("S (sleeping)", "X (dead)"),
    STATUS.replace("NSsid:\t0\t0", "NSsid:\t1\t1").replace("NSpid:\t4712\t7", "NSpid:\t0"),
])
def test_who_is_just_being_waited_for_has_ended(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen with a process that starts others, which end at once, and a reader beside it."""
    seen = iter([first, ""])
    monkeypatch.setattr(proc, "read_text", lambda path: next(seen))
    assert proc.status_of(4712) is None
    monkeypatch.setattr(proc, "read_text", lambda path: STATUS)
    found = proc.status_of(4712)
    assert found and found.session_inside == 0, "it is so"


@pytest.mark.parametrize(("states", "noted"), [("SSSS", False), ("DDDSDDDDDDDDDDDD", False), ("D" * 100, True)])
def test_who_waits_for_a_busy_disk_is_not_stuck(states: str, noted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter(states)
    status = parse_status(STATUS)
    assert status is not None
    monkeypatch.setattr(task_facts, "WAIT", 0.0)
    monkeypatch.setattr(proc, "read_text", lambda path: STATUS.replace("S (", f"{next(seen)} ("))
    look = task_facts._Look(os.getpid())
    look.waiting = [status]
    look.still_waiting()
    assert [kind for kind, _ in look.notes] == ["uninterruptible"] * noted


def test_a_socket_that_is_closed_meanwhile_is_not_one_of_an_unknown_protocol() -> None:
    with pytest.raises(FileNotFoundError):  # which `descriptors` takes for what it is
        proc.socket_protocol("/proc/self/fd/1000000")


@given(st.text(), st.integers(0, 20))
def test_any_status(text: str, cut: int) -> None:
    parse_status(text)
    parse_status("\n".join([*STATUS.splitlines()[:cut], text]))


# A first process that waits for nobody, and a session below it: a leader, and a process whose parent has ended.
NEGLIGENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become its own
leader = os.fork()
if not leader:
    os.setsid()
    if not os.fork():
        orphan = os.fork()
        if orphan:
            os.write(1, b"%d\\n" % orphan)  # both write at the same time: each line in one piece
            os._exit(0)
    signal.pause()
os.write(1, b"%d\\n" % leader)
signal.pause()
"""


def test_a_zombie_whose_leader_is_one() -> None:
    with subprocess.Popen([sys.executable, "-c", NEGLIGENT], stdout=subprocess.PIPE) as process:
        assert process.stdout
        pids: set[int] = set()
        try:
            pids |= {int(process.stdout.readline()) for _ in range(2)}
            leader, orphan = sorted(pids)
            while (status := parse_status(read_text(f"/proc/{orphan}/status"))) and status.parent != process.pid:
                time.sleep(0.01)  # its parent is about to end
            for victim, expected in ((orphan, []), (leader, [2])):  # the orphan's parent is one too
                os.kill(victim, signal.SIGKILL)
                while read_text(f"/proc/{victim}/stat").rpartition(")")[2].split()[0] != "Z":
                    time.sleep(0.01)
                notes = task_facts.gather(process.pid, [*pids, process.pid]).notes
                assert [note.count for note in notes if note.kind == "zombie-session"] == expected
        finally:
            process.kill()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


WATCHER = r"""
import ctypes, os, socket, sys, tempfile
libc = ctypes.CDLL(None)
folder = sys.argv[1]
watch = libc.inotify_init1(0); libc.inotify_add_watch(watch, folder.encode(), 2)
timer = libc.timerfd_create(1, 0)
gone = open(folder + "/gone", "w"); gone.write("x" * 10000); gone.flush(); os.unlink(gone.name)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
pair = socket.socketpair()
zero = open("/dev/zero")
master, slave = os.openpty()
own = os.pipe()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all kinds of descriptors; its stdin and stdout are pipes to us."""
    with subprocess.Popen([sys.executable, "-c", WATCHER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()


def look_at(process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Tasks:
    monkeypatch.setattr(task_facts, "_members", lambda *_: [process.pid, 2**22 + 1])  # the second has just ended
    return task_facts.gather(process.pid, [process.pid])


def test_descriptors(watcher: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = look_at(watcher, monkeypatch)
    found = {(note.kind, note.detail) for note in tasks.notes}
    assert (tasks.count, tasks.threads, tasks.complete) == (1, 1, True)
    assert found >= {
        ("anon-inode", "inotify"), ("anon-inode", "timerfd"), ("socket", "UDP"), ("deleted-file", f"{tmp_path}/gone"),
        ("device", "char 1:5 /dev/zero"),
    }
    kinds = [note.kind for note in tasks.notes]
    assert kinds.count("pipe-outside") == 2  # its stdin and stdout, and not the one that it has both ends of
    assert not {"attached", "terminal-outside", "outside-file", "unix-outside", "traced"} & set(kinds)
    (gone,) = [note for note in tasks.notes if note.kind == "deleted-file"]
    assert gone.size >= 10000 and gone.pid == watcher.pid


HOLDER = """
import os, sys
os.chdir(sys.argv[1])
os.makedirs("link/folder"), os.makedirs("again"), os.makedirs("plain/gone")
held = [open("link/file", "w"), os.open("link/folder", os.O_RDONLY), open("plain/file", "w"), open("again/file", "w")]
os.chdir("again")
for name in ("link/file", "plain/file", "again/file"): os.remove(f"{sys.argv[1]}/{name}")
for name in ("link/folder", "link", "again", "plain/gone", "plain"): os.rmdir(f"{sys.argv[1]}/{name}")
os.symlink("/srv", f"{sys.argv[1]}/link")
os.mkdir(f"{sys.argv[1]}/again")
print("ready", flush=True)
sys.stdin.read()
"""


def test_deleted_files_that_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link is on the way to two of them, and the process is in a folder whose name another one has by now."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == b"ready\n"
        tasks = look_at(process, monkeypatch)
        monkeypatch.setattr(mounts_seen.Mounted, "may_wait", lambda *_: True)
        waits = look_at(process, monkeypatch)
        process.stdin.close()
    link = f"{tmp_path}/link is now a symbolic link"
    assert {note.detail for note in tasks.notes if note.kind == "deleted-astray"} == {
        f"{tmp_path}/link/file: {link}", f"{tmp_path}/link/folder: {link}",
        f"{tmp_path}/again: another one now has its name"}
    assert {note.detail for note in tasks.notes if note.kind == "deleted-file"} == {
        f"{tmp_path}/{name}" for name in ("link/file", "link/folder", "plain/file", "again/file", "again")}
    assert "deleted-astray" not in [note.kind for note in waits.notes], "a look there could wait for its server"


def test_deleted_files_of_another_mount_namespace(tmp_path: Path) -> None:
    """Of a sandbox: its paths are none of the first process's."""
    with subprocess.Popen(["unshare", "--mount", sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == b"ready\n"
        status = parse_status(read_text(f"/proc/{process.pid}/status"))
        look = task_facts._Look(os.getpid())
        assert status
        look.mounts.by(process.pid)
        look.descriptors(status)
        process.stdin.close()
    assert {kind for kind, detail in look.notes if str(tmp_path) in detail} == {"deleted-file"}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are looked at with stat(2), or opened."""
    found: list[str] = []

    def told(honest: Callable[..., Any]) -> Callable[..., Any]:
        def look(path: Any, *given: Any, **more: Any) -> Any:
            found.append(os.fspath(path))
            return honest(path, *given, **more)

        return look

    for name in ("open", "stat"):
        monkeypatch.setattr(os, name, told(getattr(os, name)))
    opened = inner_paths._open
    monkeypatch.setattr(inner_paths, "_open", lambda above, path, *how: told(
        lambda _: opened(above, path, *how))(path))
    return found


def test_no_file_that_is_open_is_asked_for(watcher: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch,
                                           looks: list[str]) -> None:
    """stat(2) of one on NFS or FUSE waits for its server, and no limit ends that."""
    assert "deleted-file" in [note.kind for note in look_at(watcher, monkeypatch).notes]
    assert not [path for path in looks if path.startswith(f"/proc/{watcher.pid}/fd/")]


def test_a_file_of_which_nothing_is_told(watcher: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the root of a host is not let ask a user's FUSE; a file that is closed meanwhile is none."""
    def refuse(path: str) -> roots.Opened:
        raise PermissionError(13, "Permission denied", path)

    def gone(path: str) -> roots.Opened:
        raise FileNotFoundError(2, "No such file or directory", path)

    for told, kinds in ((refuse, {"file-unknown"}), (gone, set())):
        monkeypatch.setattr(roots, "opened", told)
        notes = [note for note in look_at(watcher, monkeypatch).notes if note.detail.startswith("/")]
        assert {note.kind for note in notes} - {"watch-file"} == kinds


@pytest.mark.parametrize("kind", ["fuse.sshfs", "fuseblk", "nfs4", "cifs", "9p", "autofs", "ceph", "made-up", "btrfs"])
@pytest.mark.parametrize("above", [True, False])
def test_no_file_server_is_asked_for_what_is_watched(watcher: subprocess.Popen[bytes], tmp_path: Path, kind: str,
                                                     above: bool, looks: list[str]) -> None:
    """Neither the one that has it, nor one that the way there leads through."""
    folder = Path(f"/proc/{watcher.pid}/fd")
    fd = next(str(path) for path in folder.iterdir() if str(path.readlink()) == "anon_inode:inotify")
    device = next(watch[0] for line in watch_facts.fdinfo_lines(fd) if (watch := watch_facts.parse_watch(line)))
    mounts = [line for line in parse_mountinfo(read_text("/proc/self/mountinfo"))
              if line.device == device and tmp_path.is_relative_to(line.target)]  # and not what is bound elsewhere
    if above:
        mounts += [dataclasses.replace(mounts[0], device="0:0", type=kind, target=str(tmp_path.parent))]
    else:
        mounts = [dataclasses.replace(line, type=kind) for line in mounts]
    looks.clear()
    found = list(watch_facts.watches(fd, watcher.pid, mounts_seen.Mounted(mounts)))
    into = [path for path in looks if not above or str(tmp_path.parent) in path]
    if kind == "btrfs":
        assert found == [("file", str(tmp_path))] and into
    else:
        assert [kind for kind, _ in found] == ["unknown"] and not into


def test_no_link_is_followed_to_what_is_watched(watcher: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """A mount can be hidden by another one with a symlink there, which leads to the host's files or never answers."""
    folder = Path(f"/proc/{watcher.pid}/fd")
    fd = next(str(path) for path in folder.iterdir() if str(path.readlink()) == "anon_inode:inotify")
    device = next(watch[0] for line in watch_facts.fdinfo_lines(fd) if (watch := watch_facts.parse_watch(line)))
    (tmp_path / "link").symlink_to(tmp_path)
    for name, kind in ((tmp_path, "file"), (tmp_path / "link", "unknown"), (tmp_path / "link/gone", "unknown")):
        mounts = mounts_seen.Mounted(parse_mountinfo(f"2 1 {device} / {name} rw - btrfs x rw\n"))
        assert {found for found, _ in watch_facts.watches(fd, watcher.pid, mounts)} == {kind}


def test_what_has_many_names_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60,000 links btrfs tells in half a second, and somebody may have a thousand watches of that file."""
    asked: list[int] = []

    def paths(_: int, inode: int) -> list[str]:
        asked.append(inode)
        return ["gone"]

    monkeypatch.setattr(inode_paths, "paths", paths)
    mounted, folder = mounts_seen.Mounted(), os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for inode in (7, 7, 8):
            watch_facts._look_up("/", mounted, inode, folder, folder)
    finally:
        os.close(folder)
    assert asked == [7, 8]


def test_what_is_watched_is_not_looked_for_on_each_of_many_mounts(watcher: subprocess.Popen[bytes],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A container can have its file system mounted 100,000 times, and watch as many files that none of them shows."""
    asked: list[str] = []
    monkeypatch.setattr(watch_facts, "_resolve", lambda _pid, target, *_: asked.append(target))
    folder = Path(f"/proc/{watcher.pid}/fd")
    fd = next(str(path) for path in folder.iterdir() if str(path.readlink()) == "anon_inode:inotify")
    device = next(watch[0] for line in watch_facts.fdinfo_lines(fd) if (watch := watch_facts.parse_watch(line)))
    lines = parse_mountinfo("".join(f"{number} 1 {device} / /{number} rw - btrfs x rw\n" for number in range(2, 5000)))
    assert {kind for kind, _ in watch_facts.watches(fd, watcher.pid, mounts_seen.Mounted(lines))} == {"unknown"}
    watched = sum(watch_facts.parse_watch(line) is not None for line in watch_facts.fdinfo_lines(fd))
    assert len(asked) == watch_facts.MOUNTS_MAX * watched


def test_pipes_name_the_process_outside(watcher: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = [note.detail for note in look_at(watcher, monkeypatch).notes if note.kind == "pipe-outside"]
    assert all(f"(process {os.getpid()})" in detail for detail in pipes)


def test_terminal_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    try:
        with subprocess.Popen(["sleep", "infinity"], stdin=slave) as process:
            found = [(note.kind, note.detail) for note in look_at(process, monkeypatch).notes]
            process.kill()
        assert ("terminal-outside", os.ttyname(slave)) in found
    finally:
        os.close(master)
        os.close(slave)


def test_a_process_that_is_no_descendant(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "infinity"]) as init, subprocess.Popen(["sleep", "infinity"]) as other:
        monkeypatch.setattr(task_facts, "_members", lambda *_: [init.pid, other.pid])
        for process in (init, other):
            while not read_text(f"/proc/{process.pid}/cmdline").startswith("sleep"):
                time.sleep(0.01)
        # One that is in no list of the cgroup yet, but in the cgroup: it was born a moment ago.
        young = {note.kind: note.pid for note in task_facts.gather(init.pid, [init.pid]).notes}
        elsewhere = f"/proc/{other.pid}/cgroup"
        monkeypatch.setattr(task_facts, "read_text", lambda path: "0::/x\n" if path == elsewhere else read_text(path))
        notes = {note.kind: note.pid for note in task_facts.gather(init.pid, [init.pid]).notes}
        init.kill()
        other.kill()
    assert young["attached"] == notes["attached"] == notes["outside-cgroup"] == other.pid
    assert "outside-cgroup" not in young


def test_limits(watcher: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_facts, "DESCRIPTORS_MAX", 3)
    assert not look_at(watcher, monkeypatch).complete
    monkeypatch.setattr(task_facts, "DESCRIPTORS_MAX", 1000)
    monkeypatch.setattr(task_facts, "NOTES_MAX", 2)
    tasks = look_at(watcher, monkeypatch)
    assert not tasks.complete and len(tasks.notes) == 2


BINDER = """
import os, socket, sys
os.chdir(sys.argv[1])
os.makedirs("his/a")
os.symlink("his", "link")
held = [socket.socket(socket.AF_UNIX) for _ in range(4)]
for its, name in zip(held, ("his/s", "link/t", "his/a/u", "his/a/v")):
    its.bind(name if name == "his/s" else f"{sys.argv[1]}/{name}")
os.rename("his/a", "was")
os.symlink("/proc/self/fd/121/1/root", "his/a")
os.unlink("was/v")
print("ready", flush=True)
sys.stdin.read()
"""


def test_sockets_whose_names_lead_through_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted or not; what else leads elsewhere the dump looks at."""
    with subprocess.Popen([sys.executable, "-c", BINDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == b"ready\n"
        notes = look_at(process, monkeypatch).notes
        process.stdin.close()
    assert sorted(note.detail.partition(",")[0] for note in notes if note.kind == "socket-astray") == [
        f"{tmp_path}/his/a/{name} leads through /proc" for name in "uv"]


def test_own_unix_sockets_are_known(watcher: subprocess.Popen[bytes]) -> None:
    """Asked of the kernel: the two ends of its socket pair, and one that has its peer elsewhere."""
    links = [os.readlink(f"/proc/{watcher.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{watcher.pid}/fd")]  # noqa: PTH115, PTH208
    inodes = {int(link[8:-1]) for link in links if link.startswith("socket:")}
    if os.geteuid() != 0:  # nobody else may enter a network namespace
        assert unix_facts.outside(watcher.pid, frozenset([max(inodes)])) == frozenset()
        return
    assert unix_facts.outside(watcher.pid, frozenset(inodes)) == frozenset()
    assert len(unix_facts.outside(watcher.pid, frozenset([max(inodes)]))) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_an_overlay_in_a_mount_namespace_in_the_container(tmp_path: Path) -> None:
    """As of a container engine's inside; what the host has mounted too is bound, and that it may be."""
    for name in ("below", "under", "own", "host"):
        (tmp_path / name).mkdir()
    script = """
        mount -t overlay o -o lowerdir="$1/below:$1/under" "$1/host"
        PYTHONPATH=$3 "$2" -c "$4" "$1" "$2"
    """
    look = """
import subprocess, sys
from migrator.preflight.facts import task_facts
inside = 'mount -t overlay o -o lowerdir="$1/below:$1/under" "$1/own"; echo; read x'
with subprocess.Popen(["sh", "-c", 'unshare --mount sh -c "$0" sh "$1"; :', inside, sys.argv[1]],
                      stdin=subprocess.PIPE, stdout=subprocess.PIPE) as init:
    init.stdout.readline()
    print([note.detail for note in task_facts.gather(init.pid, []).notes if note.kind == "sandbox-unsupported"])
    init.stdin.close()
"""
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(tmp_path),
                           sys.executable, str(Path(__file__).parents[4]), look], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.stdout == f"['overlay {tmp_path}/own']\n", done.stderr


@pytest.mark.parametrize(("cgroup", "unit"), [
    ("9:name=systemd:/\n0::/lxc.payload.s1/system.slice/redis-server.service\n", "redis-server.service"),
    ("0::/host.slice/a.service/lxc.payload.s1-1/system.slice/system-container\\x2dgetty.slice/container-getty@1.service",
     "container-getty@1.service"),
    ("0::/lxc.payload.s1/user.slice/user-0.slice/user@0.service/app.slice/x.service\n", "user@0.service"),
    ("0::/lxc.payload.s1/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
    ("0::/lxc.payload.s1/init.scope\n", ""),
    ("0::/lxc.payload.s1/system.slice/a b.service\n", ""),
    ("0::/lxc.payload.s1/-Hx.service\n", ""),  # an option
    ("0::/lxc.payload.s1/" + "x" * 300 + ".service\n", ""),
    ("0::/system.slice/ssh.service\n", ""),  # of the host
    ("0::/lxc.payload.s1\n", ""), ("", ""),
])
def test_the_unit_of_a_process(cgroup: str, unit: str) -> None:
    assert proc.unit_of(cgroup) == unit
