# SPDX-License-Identifier: GPL-2.0-or-later
"""What nothing ends that ends a whole session or unit; and what it may take of memory where that cannot be."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from migrator.criu import apart


def test_it_stands_apart(tmp_path: Path) -> None:
    """Where that cannot be done it says so, makes nothing, and goes on all the same."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        own = tmp_path / str(process.pid)
        own.mkdir()
        assert len(apart.stand(process.pid, tmp_path, tmp_path)) == 2 and list(own.iterdir()) == []
        (tmp_path / "cgroup.procs").touch()
        (said,) = apart.stand(process.pid, tmp_path, tmp_path)
        assert said == f"{own}/oom_score_adj: No such file or directory"
        (own / "oom_score_adj").touch()
        assert apart.stand(process.pid, tmp_path, tmp_path) == []
        assert (tmp_path / "cgroup.procs").read_text() == str(process.pid)
        assert (own / "oom_score_adj").read_text() == "-1000"


def test_no_limit_ends_it(tmp_path: Path) -> None:
    endless = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
            resource.prlimit(process.pid, limit, (1 << 20, resource.RLIM_INFINITY))
        apart.stand(process.pid, tmp_path, tmp_path)
        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
            assert resource.prlimit(process.pid, limit) == endless


@pytest.mark.parametrize(("files", "room"), [
    ({"cgroup.procs": "", "cgroup.subtree_control": "memory"}, None),  # the root of all
    ({"cgroup.procs": "", "cgroup.type": "domain", "cgroup.subtree_control": "\n"}, None),
    ({"cgroup.procs": "", "cgroup.type": "domain", "cgroup.subtree_control": "memory pids\n"}, 40),  # a container's
    ({}, 40),  # of cgroup v1
])
@pytest.mark.parametrize("inner", ["max", "1000"])
def test_its_images_have_room(tmp_path: Path, files: dict[str, str], room: int | None, inner: str) -> None:
    """Beyond the limits of who calls it, if it stands there; else what the tightest of these has left.

    What was read from files is given up for others.
    """
    own = tmp_path / "system.slice" / "backup.service"
    own.mkdir(parents=True)
    for folder, limit, used in ((own, inner, "17"), (own.parent, "100", "67")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 3\nfile 9\ninactive_file 5\nactive_file 2\nunevictable 4\n")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "cgroup").write_text("4:pids:/\n0::/system.slice/backup.service\n")
    assert apart.room(tmp_path, tmp_path) == room


@pytest.mark.parametrize("said", ["", "4:pids:/\n", "0::/\n", "0::/gone\n"])
def test_where_no_limit_is_known_there_is_none(tmp_path: Path, said: str) -> None:
    (tmp_path / "cgroup").write_text(said)
    assert apart.room(tmp_path, tmp_path) is None
    assert apart.room(tmp_path, tmp_path / "nowhere") is None
