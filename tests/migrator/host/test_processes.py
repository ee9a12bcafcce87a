# SPDX-License-Identifier: GPL-2.0-or-later
"""Root's own programs are told from whatever calls itself like them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.base import process_id
from migrator.criu import tty_image
from migrator.host.proc import parse_status, read_text
from migrator.host.processes import running, status

WAIT = "echo up; read x"


@contextlib.contextmanager
def started(*command: str | bytes | Path) -> Iterator[int]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"up\n"
        try:
            yield process.pid
        finally:
            process.stdin.close()  # type: ignore[union-attr]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name in $PATH: a file of its own, not a script."""
    path = tmp_path / "bin" / "criu-of-tests"
    path.parent.mkdir()
    shutil.copy(Path("/bin/sh").resolve(), path)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path


def pids(name: str, owner: int | None = None, root: Path | None = None) -> list[int]:
    return [pid for pid, _ in running(name, owner=owner, root=root)]


def test_a_program_is_known_by_the_file_that_it_executes(program: Path) -> None:
    with started(program, "-c", WAIT, "word") as pid:
        ((found, words),) = running(program.name)
        assert (found, words[3]) == (pid, b"word")
        assert pids(program.name, owner=os.getuid() + 1) == []
    assert pids(program.name) == []


def test_what_it_says_of_itself_does_not_count(program: Path) -> None:
    """Another program with the same name and arguments, of another user or not."""
    with started("bash", "-c", f"exec -a {program} sleep infinity & echo up; read x; kill $!"):
        while not (named := [pid for pid, words in running("sleep") if os.fsencode(program) in words]):
            time.sleep(0.01)  # it is still bash
        assert len(named) == 1
        # Its first word names ours, and it lives in our mount namespace: as good as a script of that name, and root's.
        assert pids(program.name) == named
        assert pids(program.name, owner=os.getuid() + 1) == []


def test_a_script_counts_only_in_our_own_mount_namespace(program: Path) -> None:
    program.unlink()
    program.write_text(WAIT)
    with started("sh", program) as pid:
        assert pids(program.name) == [pid]
    with started("unshare", "--user", "--map-root-user", "--mount", "sh", program) as pid:
        assert program.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert pids(program.name) == [], "a container's root can have a file of that name too"
        assert pids(program.name, root=program.parent) == pids(program.name, root=program / "gone") == []


def test_no_container_is_asked_for_its_arguments(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its root can have who reads them wait for ever, with a file system that he serves."""
    with started("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", WAIT, program) as pid:
        honest = Path.read_bytes

        def read_bytes(path: Path) -> bytes:
            assert path != Path(f"/proc/{pid}/cmdline")
            return honest(path)

        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        assert pids(program.name) == pids(program.name, root=program.parent) == []


def test_it_counts_where_it_has_our_folder_for_its_root(program: Path) -> None:
    """As `btrfs receive` has that was started apart, and in a chroot; by now an upgrade has replaced its file."""
    apart = "unshare", "--user", "--map-root-user", "--mount"
    for folder in ("lib", "lib64", "usr"):
        if Path("/", folder).exists():
            (program.parent / folder).mkdir()
    script = ('for each in lib lib64 usr; do [ ! -d "$1/$each" ] || mount --rbind "/$each" "$1/$each"; done; '
              'exec chroot "$1" "/$2" -c "echo up; read x"')
    with started(*apart, "sh", "-ec", script, "sh", program.parent, program.name) as pid:
        assert pids(program.name) == [pid], "by its file"
        program.rename(program.with_name("before"))
        shutil.copy(program.with_name("before"), program)
        assert pids(program.name) == pids(program.name, root=program) == []
        assert pids(program.name, root=program.parent) == [pid]


NAMES = [b"\rUid:\t4242", b"x\nUid:\t4242", b"\x1cUid:\t4242", b"\xff\xfe"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_line_of_its_own(program: Path, name: bytes) -> None:
    """Whose it is says the kernel; what a process is called says whoever starts it, through a link for example."""
    link = os.path.join(os.fsencode(program.parent), name)  # noqa: PTH118  # bytes
    os.symlink(program, link)  # noqa: PTH211
    with started(link, "-c", WAIT) as pid:
        assert pids(program.name, owner=4242) == []
        assert pids(program.name, owner=os.getuid()) == [pid]
        assert status(pid, b"NSpid")[0] == str(pid).encode()
        assert process_id.start_time(pid) > 0
        assert tty_image._inside(pid) == int(status(pid, b"NSpid")[-1])
        assert process_id.stat_fields(pid)[:6][1] == str(os.getpid()).encode()
        seen = parse_status(read_text(f"/proc/{pid}/status"))
        assert seen and seen.uids[0] == os.getuid()


def test_no_server_is_waited_for(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That some other program's file is on, such as a daemon's of root's on NFS: a thaw waits for this look."""
    with started("/bin/sh", "-c", WAIT) as other, started(program, "-c", WAIT) as pid:
        honest = Path.stat

        def stat(path: Path, **how: bool) -> os.stat_result:
            assert not path.is_relative_to(f"/proc/{other}")
            return honest(path, **how)

        monkeypatch.setattr(Path, "stat", stat)
        assert pids(program.name) == [pid]
