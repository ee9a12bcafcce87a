# SPDX-License-Identifier: GPL-2.0-or-later
"""Which paths in a container its users cannot make lead elsewhere: those that root may be told to type a command on."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.host import mountinfo, net_state
from migrator.host.mountinfo import Mount, parse_mountinfo
from migrator.preflight.facts import container_facts, fixed_paths, task_facts
from migrator.preflight.facts.container_facts import Rootfs
from migrator.preflight.facts.task_facts import Note, Tasks

HERS, HIS = 4242, 4243
MOUNTS = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
CHROOT = "import os, sys; os.chroot(sys.argv[1]); print(flush=True); sys.stdin.read()"


@pytest.fixture
def init(tmp_path: Path) -> Iterator[int]:
    """The first process of a container whose root is the test's folder."""
    if os.geteuid() != 0:
        pytest.skip("only root can have another root, and files of others")
    with subprocess.Popen([sys.executable, "-c", CHROOT, tmp_path], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == b"\n"
        yield process.pid
        process.stdin.close()


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def folder(path: Path, owner: int = 0, mode: int = 0o755) -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, owner, owner)
    path.chmod(mode)


def fixed(init: int, *names: str) -> list[str]:
    return list(fixed_paths.gather(init, MOUNTS, names, (), ())[0])


def test_a_folder_on_the_way(tmp_path: Path, init: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the user's own he can rename, or where anybody can write, be it sticky; not his own in root's."""
    for path, owner, mode in (("srv", 0, 0o755), ("home", 0, 0o755), ("home/u", HERS, 0o755), ("home/u/d", 0, 0o755),
                              ("tmp", 0, 0o1777), ("tmp/d", 0, 0o755), ("shared", 0, 0o775)):
        folder(tmp_path / path, owner, mode)
    names = ["/srv/m", "/home/u", "/m", "/home/u/m", "/home/u/d/m", "/tmp/m", "/tmp/d/m", "/shared/m", "/gone/m"]
    assert fixed(init, *names) == ["/srv/m", "/home/u", "/m"]
    os.chown(tmp_path, HERS, HERS)
    assert fixed(init, *names) == [], "the root is hers"
    os.chown(tmp_path, 0, 0)
    monkeypatch.setattr(fixed_paths, "read_text", lambda _: f"0 {HERS} 65536\n")
    assert fixed(init, *names) == ["/srv/m", "/home/u", "/m", "/home/u/m", "/home/u/d/m"], "she is root in there"


def test_a_link(tmp_path: Path, init: int) -> None:
    """And all that it leads over: what is copied from there would be what a user wants."""
    for path, owner in (("etc", 0), ("usr/share", 0), ("home/u", HERS)):
        folder(tmp_path / path, owner)
    for path in ("usr/share/zone", "home/u/file"):
        (tmp_path / path).touch()
    for name, to in (("etc/a", "/usr/share/zone"), ("etc/b", "a"), ("etc/c", "../home/u/file"), ("etc/d", "gone"),
                     ("home/u/e", "/usr/share/zone"), ("etc/f", "/home/u/../u/../../usr/share/zone")):
        (tmp_path / name).symlink_to(to)
    links = ["/etc/a", "/etc/b", "/etc/c", "/etc/d", "/home/u/e", "/etc/f"]
    assert fixed_paths.gather(init, MOUNTS, (), links, ()) == (("/etc/a", "/etc/b"), ())


def test_a_subvolume_of_a_user(tmp_path: Path, init: int) -> None:
    """Whose all is that is not root's; as him nobody is told to go through somebody else's."""
    for path, owner in (("srv/a", 0), ("srv/b", HERS), ("home", 0), ("home/u", HERS), ("home/u/c", HERS),
                        ("home/u/d", 0), ("home/u/e", HIS), ("home/u/e/f", HERS), ("home/u/g", HIS)):
        folder(tmp_path / path, owner)
    folder(tmp_path / "home/u/open", HERS, 0o777)
    names = ["/srv/a", "/srv/b", "/home/u/c", "/home/u/d", "/home/u/e/f", "/home/u/g", "/home/u/open", "/home/u/gone"]
    assert fixed_paths.gather(init, MOUNTS, (), (), names) == (("/srv/a", "/srv/b"), ("/home/u/c",))


def test_no_server_is_asked(tmp_path: Path, init: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for whose the root is; nor is anything told of who has ended, or of too many."""
    folder(tmp_path / "srv")
    servers = [dataclasses.replace(line, type="fuse.x") for line in MOUNTS]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", None)
        assert fixed_paths.gather(init, servers, ["/srv/m", "/m"], ["/srv"], ["/srv"]) == ((), ())
    assert fixed_paths.gather(2**22 + 1, MOUNTS, ["/srv/m"], (), ()) == ((), ())
    monkeypatch.setattr(fixed_paths, "WORDS_MAX", 2)
    assert fixed(init, "/srv/1", "/srv/2", "/srv/3") == ["/srv/1", "/srv/2"]


def test_those_that_cures_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is mounted, watched, and the first of the subvolumes; here the container is this host."""
    class Running:
        name, lxcpath, state, init_pid = "c1", tmp_path, "RUNNING", os.getpid()
        config_file, cgroup, is_ephemeral = tmp_path / "config", tmp_path / "no cgroup", False

    (tmp_path / "config").write_text("lxc.rootfs.path = dir:/\n")
    notes = (Note("watch-symlink", "/proc/self"), Note("watch-symlink", "/etc"), Note("watch-file", "/usr"))
    monkeypatch.setattr(net_state, "interfaces", lambda *_: ())
    monkeypatch.setattr(task_facts, "gather", lambda *_: Tasks(notes=notes))
    monkeypatch.setattr(mountinfo, "classify", lambda *_: (
        Mount("/", "btrfs", "root"), Mount("/etc/a", "tmpfs", "own"), Mount("/etc/b", "fuse.x", "unsupported"),
        Mount("/etc/c", "devpts", "external", "/dev/pts/0"), Mount("/tmp/d", "fuse.x", "unsupported")))
    monkeypatch.setattr(container_facts, "look_at_rootfs", lambda *_, **__: Rootfs("/", nested=("etc/e", "etc/f")))
    facts = container_facts.gather(Running(), full=False)  # type: ignore[arg-type]
    assert (facts.fixed, facts.owned) == (("/etc/b", "/etc/c", "/etc", "/etc/e"), ())
