# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has the lock on a container: found out without disturbing it, and stopped only if it is the right process."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.base import names, process_id
from migrator.base.process_id import Process
from migrator.errors.this_host import Busy, HolderUnknown
from migrator.host import processes, roots
from migrator.record import container_lock
from migrator.record.migration_paths import locked

POOL = Path("/pool")
# The third argument says whether it listens to `migrator abort`.
WORKER = """
import signal, sys, time
from pathlib import Path
from migrator.record import container_lock
from migrator.record.migration_paths import locked
if sys.argv[3] == "listens":
    signal.signal(container_lock.ABORT, lambda *_: sys.exit(7))
with locked("web", Path(sys.argv[2]), lxcpath=Path("/pool")):
    container_lock.publish("disk", 5, 9)
    container_lock.publish("disk", 1234567, 0)
    print("locked", flush=True)
    while True:  # a signal that comes just before a sleep is noticed after it
        time.sleep(0.05)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture(params=["listens"])
def worker(folder: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKER, "migrate", str(folder), request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_who_it_is_and_how_far(worker: subprocess.Popen[str], folder: Path) -> None:
    found = container_lock.of("web", POOL, folder)
    assert found and (found.pid, found.command) == (worker.pid, "migrate")
    assert found.progress == {"what": "disk", "bytes": 1234567, "total": None}
    assert container_lock.of("db", POOL, folder) is None
    worker.kill()
    worker.wait()
    assert container_lock.of("web", POOL, folder) is None, "it says so only while it lives"
    with locked("web", folder, lxcpath=POOL):
        assert container_lock.holds()
        container_lock.publish("disk", 1, 2)
        assert (mine := container_lock.of("web", POOL, folder)) and mine.pid == os.getpid() and mine.progress
        container_lock.publish_end()
        assert (mine := container_lock.of("web", POOL, folder)) and not mine.progress
    assert container_lock.of("web", POOL, folder) is None and not container_lock.holds()


def test_it_is_asked_to_stop(worker: subprocess.Popen[str], folder: Path) -> None:
    found = container_lock.of("web", POOL, folder)
    assert found and not container_lock.has_ended(found, 0)
    container_lock.ask_to_stop("web", found)
    assert container_lock.has_ended(found, 600)
    assert worker.wait() == 7
    container_lock.ask_to_stop("web", found)  # it has ended: nothing happens


def test_who_was_stopped_is_asked_too(worker: subprocess.Popen[str], folder: Path) -> None:
    """Ctrl-Z, or a `kill -STOP`: what is sent then waits for a SIGCONT."""
    worker.send_signal(signal.SIGSTOP)
    assert os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)
    found = container_lock.of("web", POOL, folder)
    assert found
    container_lock.ask_to_stop("web", found)
    assert container_lock.has_ended(found, 60) and worker.wait() == 7


def test_another_process_of_that_id_is_left_alone(worker: subprocess.Popen[str], folder: Path) -> None:
    found = container_lock.of("web", POOL, folder)
    assert found
    earlier = dataclasses.replace(found, started=found.started - 1)
    container_lock.ask_to_stop("web", earlier)
    assert container_lock.has_ended(earlier, 0), "the one that was meant has ended"
    assert not container_lock.has_ended(found, 0.05)
    with subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL) as strange:  # which would die of it
        container_lock.ask_to_stop("web", dataclasses.replace(found, pid=strange.pid))
        assert strange.poll() is None
        strange.kill()


@pytest.mark.parametrize("worker", ["is deaf"], indirect=True)
def test_who_would_die_of_it_is_not_asked(worker: subprocess.Popen[str], folder: Path) -> None:
    found = container_lock.of("web", POOL, folder)
    assert found
    with pytest.raises(HolderUnknown, match=f"process {worker.pid}"):
        container_lock.ask_to_stop("web", found)
    assert not container_lock.has_ended(found, 0.05)


# Two file systems whose first files have the same inode number; a stranger locks his, on the other one.
SAME_INODE = """
import fcntl, os, subprocess, sys
from pathlib import Path
from migrator.record import container_lock
from migrator.record.migration_paths import locked
ours, other = Path(sys.argv[1], "ours"), Path(sys.argv[1], "other")
for folder in (ours, other):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    for file in ("web", *container_lock.files("web", Path("/"))):
        (folder / file).touch()
for file in container_lock.files("web", Path("/")):
    assert (ours / file).stat().st_ino == (other / file).stat().st_ino
    stranger = os.open(other / file, os.O_RDWR)
    fcntl.flock(stranger, fcntl.LOCK_EX)
print(container_lock.of("web", Path("/"), ours))
with locked("web", ours, lxcpath=Path("/")):
    print(container_lock.of("web", Path("/"), ours).command)
"""


def test_a_lock_on_another_device_is_somebody_elses(tmp_path: Path) -> None:
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run([*apart, sys.executable, "-c", SAME_INODE, tmp_path], capture_output=True, text=True,
                          check=False, stdin=subprocess.DEVNULL)
    assert (done.stdout.splitlines(), done.stderr) == (["None", str(tmp_path)], "")


@pytest.mark.parametrize(("real", "found"), [("our own", True), ("a stranger", False)])
def test_no_stranger_is_looked_into(worker: subprocess.Popen[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
                                    real: str, found: bool) -> None:
    """Whose process it is tells its real user id: to look at what he has open may be refused, or never end."""
    ours, other = (str(number).encode() for number in (os.geteuid(), os.geteuid() + 1))
    ids = [ours, other, other, other] if real == "our own" else [other, ours, ours, ours]
    monkeypatch.setattr(processes, "status", lambda _, key: ids if key == b"Uid" else [])
    honest = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        assert found or path != Path(f"/proc/{worker.pid}/fd")
        return honest(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert (container_lock.of("web", POOL, folder) is not None) is found


def test_no_file_system_is_asked(worker: subprocess.Popen[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a container's root serves, who has locked a file of that number there, may refuse or never answer."""
    honest, stat, refused = roots.at, Path.stat, []

    def at(path: Path) -> roots.Root:
        found = honest(path)
        if path.is_relative_to(f"/proc/{worker.pid}/fd") and found != honest(folder / names.in_path("web", POOL)):
            refused.append(path)
            raise PermissionError
        return found

    def plain(path: Path, **how: bool) -> os.stat_result:
        assert not path.is_relative_to(f"/proc/{worker.pid}/fd")
        return stat(path, **how)

    monkeypatch.setattr(roots, "at", at)
    monkeypatch.setattr(Path, "stat", plain)
    assert (found := container_lock.of("web", POOL, folder)) and found.pid == worker.pid
    assert refused, "its standard input comes first"


def test_it_is_told_as_json() -> None:
    assert container_lock.Holder(7, 9, "migrate").to_json() == {"pid": 7, "command": "migrate", "progress": None}
    told = container_lock.Holder(7, 9, "migrate", {"what": "disk"}).to_json()
    assert told == {"pid": 7, "command": "migrate", "progress": {"what": "disk"}}


@pytest.mark.parametrize("number", [signal.SIGHUP, container_lock.ABORT, signal.SIGTERM, signal.SIGRTMAX])
def test_which_signals_are_caught(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    for mask, catches in ((1 << number - 1, True), (~(1 << number - 1) & (1 << 64) - 1, False), (0, False)):
        monkeypatch.setattr(processes, "status", lambda pid, key, mask=mask: [f"{mask:016x}".encode()])
        assert container_lock._catches(1, number) is catches


def test_who_is_gone_has_ended(worker: subprocess.Popen[str], folder: Path) -> None:
    found = container_lock.of("web", POOL, folder)
    assert found
    worker.kill()
    worker.wait()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert container_lock.has_ended(found, 0)
    container_lock.ask_to_stop("web", found)
    mine = container_lock.Holder(*Process.current(), "?")
    assert not container_lock.has_ended(mine, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "no descriptor is left open"


@pytest.mark.parametrize(("text", "command", "progress"), [
    (b"{pid} {started} migrate\n", "migrate", {}), (b'{pid} {started} migrate\n{"what": "disk"}\n', "migrate",
                                                   {"what": "disk"}),
    (b"{pid} {started} migrate\n{torn", "migrate", {}), (b"{pid} {started}\n", "?", {}), (b"", "?", {}),
    (b"{pid} 7 migrate\n", "?", {}), (b"7 {started} migrate\n", "?", {}), (b"{pid} {started} \xff\n", "\ufffd", {}),
])
def test_what_it_says_of_itself_is_believed_only_of_itself(folder: Path, text: bytes, command: str,
                                                           progress: dict[str, str]) -> None:
    """What another one has left in the file, or what was cut off, is not."""
    pid, started = Process.current()
    with locked("web", folder, lxcpath=POOL):
        (folder / names.in_path("web", POOL)).write_bytes(text.replace(b"{pid}", str(pid).encode())
                                                          .replace(b"{started}", str(started).encode()))
        found = container_lock.of("web", POOL, folder)
        assert found == container_lock.Holder(pid, started, command, progress)
        assert found and found.file == folder / names.in_path("web", POOL), "by which it is told when it has ended"


def test_a_program_has_any_name() -> None:
    """Brackets and blanks in it do not move the field in which the kernel tells when it began."""
    script = "import ctypes; ctypes.CDLL(None).prctl(15, b') S 1 (x'); print(flush=True); input()"  # PR_SET_NAME
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        assert Path(f"/proc/{process.pid}/comm").read_text() == ") S 1 (x\n"
        began = process_id.start_time(process.pid)
        ps = subprocess.run(["ps", "-o", "etimes=", "-p", str(process.pid)], capture_output=True, text=True, check=True)
        up = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert abs(up - began / os.sysconf("SC_CLK_TCK") - int(ps.stdout)) < 60, "in ticks since the machine's start"
        assert process.stdin
        process.stdin.close()


@pytest.mark.parametrize("path", ["/pool", "/pool of  mine ", "/p\udcffl", "/a\nb"])
def test_which_container_of_that_name_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Another one, in another LXC path, waits for nobody who works on this one."""
    monkeypatch.setattr(sys, "argv", ["migrator", "migrate", "web"])
    with locked("web", folder, lxcpath=Path(path)) as last:
        found = container_lock.of("web", Path(path), folder)
        assert found and found.pid == os.getpid() and last == {None}
        assert (found.command, found.lxcpath) == ("migrate", "" if "\n" in path else path)
        assert container_lock.of("web", Path("/second"), folder) is None
        with locked("web", folder, lxcpath=Path("/second")):
            container_lock.publish("disk", 5, 9)
        again = container_lock.of("web", Path(path), folder)
        assert again and again.progress["bytes"] == 5 and again.lxcpath == found.lxcpath
    with locked("web", folder, lxcpath=Path(path)) as last:
        assert last == {Process.current()}


def test_what_is_called_without_a_command_says_nothing_of_who_had_it(folder: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["migrator"])
    with locked("web", folder, lxcpath=POOL):
        container_lock.publish("disk", 5, 9)
    with locked("web", folder, lxcpath=POOL):
        found = container_lock.of("web", POOL, folder)
    assert found and (found.command, found.progress) == ("-", {})


@pytest.mark.parametrize("first", ["pool", "link", "another"])
def test_one_lxc_path_by_two_names(folder: Path, tmp_path: Path, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`another` is as a bind mount: no link, and the same folder."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "link").symlink_to("pool")
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **how: stat(
        self.with_name("pool") if self.name == "another" else self, **how))
    with locked("web", folder, lxcpath=tmp_path / first):
        for second in ("pool", "link", "another"):
            with pytest.raises(Busy, match=str(os.getpid())), locked("web", folder, lxcpath=tmp_path / second):
                pass
            assert (found := container_lock.of("web", tmp_path / second, folder)) and found.pid == os.getpid()


def test_one_lxc_path_before_and_after_its_disk_is_mounted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    with locked("web", folder, lxcpath=tmp_path / "pool"):
        (tmp_path / "pool").rename(tmp_path / "covered")
        (tmp_path / "pool").mkdir()
        with pytest.raises(Busy), locked("web", folder, lxcpath=tmp_path / "pool"):
            pass
    with locked("web", folder, lxcpath=tmp_path / "pool") as last:
        assert last == {Process.current(), None}, "who has spelled it otherwise is not known"


OLDER = """
import fcntl, os, sys
from migrator.base.process_id import Process
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
pid, started = Process.current()
os.write(fd, f"{pid} {started} migrate /pool\\n".encode())
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_command_of_an_older_version_is_waited_for(folder: Path) -> None:
    """It may be at work while the program is upgraded; it has locked all of that name, and told which one it is."""
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", OLDER, str(folder / "web")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as older:
        assert older.stdout and older.stdin and older.stdout.readline() == "locked\n"
        for path in (POOL, Path("/second")):
            with pytest.raises(Busy, match=f"process {older.pid}"), locked("web", folder, lxcpath=path):
                pass
        found = container_lock.of("web", POOL, folder)
        assert found and found.pid == older.pid and container_lock.of("web", Path("/second"), folder) is None
        older.stdin.close()
        older.wait()
    with locked("web", folder, lxcpath=POOL), (folder / "web").open("r+") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nor does that one begin meanwhile
