# SPDX-License-Identifier: GPL-2.0-or-later
"""The program that CRIU starts at each stage of a restore."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migrator.base import boot_clock
from migrator.criu import at_restore, ghost_paths, pressure_triggers, ran_mark
from migrator.host import cgroup_limits, cgroups


def start(folder: Path, stage: str, *commands: list[str], end: float = math.inf) -> subprocess.CompletedProcess[str]:
    """As CRIU does: with the stage and the container's first process in the environment, and nothing else to go by."""
    script = folder / "at-restore"
    script.write_text(at_restore.script(str(folder), str(folder / ran_mark.NAME), end, commands))
    script.chmod(0o700)
    environment = {"CRTOOLS_SCRIPT_ACTION": stage, "CRTOOLS_INIT_PID": str(os.getpid()), "PATH": "/usr/bin:/bin"}
    return subprocess.run([str(script)], env=environment, cwd="/", capture_output=True, text=True, check=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "an images' folder"
    folder.mkdir()
    return folder


def test_other_stages_are_none_of_its_business(images: Path) -> None:
    (images / cgroups.RECORD).write_text("nonsense")
    for stage in ("pre-restore", "setup-namespaces", "network-unlock", "pre-resume", "post-resume"):
        assert not at_restore.has_let_go(images) or stage == "post-resume"
        assert start(images, stage).returncode == 0
    assert at_restore.reason(images) == ""
    assert not ran_mark.was(images / ran_mark.NAME), "it does not run yet"


def test_that_criu_lets_go_is_noted_or_not_and_it_runs_all_the_same(images: Path) -> None:
    """On a full disk, say."""
    assert start(images, at_restore.STAGE).returncode == 0
    assert not at_restore.has_let_go(images), "its tasks wait for each other yet"
    (images / at_restore.LET_GO).mkdir()
    done = start(images, at_restore.LAST)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (images / at_restore.LET_GO).rmdir()
    assert start(images, at_restore.LAST).returncode == 0
    assert at_restore.has_let_go(images) and (images / at_restore.LET_GO).read_text() == ""


def test_the_mark_is_made_before_it_runs_or_it_does_not_run(images: Path) -> None:
    assert start(images, at_restore.STAGE).returncode == 0
    assert ran_mark.boot(images / ran_mark.NAME) == boot_clock.BOOT_ID.read_text().strip()
    ran_mark.drop(images / ran_mark.NAME)
    (images / ran_mark.NAME).mkdir()  # it cannot be made
    assert start(images, at_restore.STAGE).returncode == 1
    assert "it may run" in at_restore.reason(images)


def test_what_comes_too_late_does_not_run(images: Path) -> None:
    """Whatever stood still since the source's word was heard, this program or the whole host: it is looked at last."""
    slow = ["sh", "-c", "sleep 0.3"]
    done = start(images, at_restore.STAGE, slow, end=boot_clock.now() + 0.2)
    assert done.returncode == 1
    assert not ran_mark.was(images / ran_mark.NAME)
    assert "permission had expired" in at_restore.reason(images)
    assert start(images, at_restore.STAGE, slow, end=boot_clock.now() + 3600).returncode == 0
    assert ran_mark.was(images / ran_mark.NAME)


def test_the_clock_is_looked_at_when_the_mark_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write it takes as long as the disk does."""
    order: list[str] = []
    record, clock_gettime = ran_mark.record, time.clock_gettime

    def marks(path: str) -> None:
        order.append("mark")
        record(path)

    def looks(which: int) -> float:
        order.append("clock")
        return clock_gettime(which)

    monkeypatch.setattr(ran_mark, "record", marks)
    monkeypatch.setattr(time, "clock_gettime", looks)
    mark = tmp_path / ran_mark.NAME
    ran_mark.record_in_time(str(mark), math.inf)
    assert order == ["mark", "clock"] and ran_mark.was(mark)
    with pytest.raises(TimeoutError):
        ran_mark.record_in_time(str(mark), 0.0)
    assert not ran_mark.was(mark)


def test_nothing_to_do(images: Path) -> None:
    assert start(images, at_restore.STAGE).returncode == 0, "an older source made no record"
    (images / cgroups.RECORD).write_text("")
    assert start(images, at_restore.STAGE).returncode == 0
    (images / cgroups.RECORD).write_text("0 0 644 this/cgroup/is/not/here\n")
    done = start(images, at_restore.STAGE)
    assert (done.returncode, done.stderr) == (0, "")


def test_controllers_are_enabled_before_files_are_opened(images: Path) -> None:
    """And only of a container whose cgroups control anything, as each start of a Python takes its time."""
    assert start(images, at_restore.EARLY).returncode == 0, "an older source made no record"
    (images / cgroup_limits.CONTROLLERS).write_text("none-such\t.\n")
    done = start(images, at_restore.EARLY)
    assert done.returncode == 1 and "no cgroup controller none-such" in at_restore.reason(images)


def test_devices_are_denied_before_files_are_opened(images: Path) -> None:
    (images / at_restore.FILTER).write_text("ff" * 8)
    assert start(images, at_restore.EARLY).returncode == 0, "not where its sender is trusted"
    (images / at_restore.EARLY_FILTER).write_text("ff" * 8)
    done = start(images, at_restore.EARLY)
    assert done.returncode == 1
    assert at_restore.reason(images).startswith("which devices it may have open: ")


def test_deleted_files_are_looked_at_before_they_are_made_again(images: Path) -> None:
    (images / at_restore.GHOSTS).write_text("")
    assert start(images, at_restore.EARLY).returncode == 0
    (images / at_restore.GHOSTS).write_text(ghost_paths.line(7, ghost_paths.FILE, 0, "/a b/gone"))
    assert start(images, at_restore.EARLY).returncode == 1
    assert at_restore.reason(images) == (
        "what is open but deleted: the mount of /a b/gone, a deleted file that is open, cannot be found")
    assert start(images, at_restore.STAGE).returncode == 0, "it has been looked at"


def test_who_waits_for_pressure_may_open_the_file(images: Path) -> None:
    """Before CRIU opens it. Nobody else has its owners set that early, as each start of a Python takes its time."""
    (images / cgroups.RECORD).write_text("0 0 644 ../memory.pressure\n")
    assert start(images, at_restore.EARLY).returncode == 0
    (images / pressure_triggers.RECORD).write_text("1 32 some 200000 2000000\n")
    assert start(images, at_restore.EARLY).returncode == 1
    assert at_restore.reason(images) == (
        "the owners of its cgroup's pressure files: '../memory.pressure' is not a path in a cgroup")


def test_triggers_of_pressure_are_written_before_it_runs(images: Path) -> None:
    (images / pressure_triggers.RECORD).write_text("1 32 echo nonsense\n")
    assert start(images, at_restore.EARLY).returncode == 0
    assert start(images, at_restore.STAGE).returncode == 1
    assert at_restore.reason(images) == (
        "what it wants to be told of pressure: 'echo nonsense' is not a pressure trigger")
    assert not ran_mark.was(images / ran_mark.NAME)


@pytest.mark.parametrize("stage", [at_restore.EARLY, at_restore.STAGE])
def test_no_filter_for_what_is_not_in_a_cgroup_of_its_own(images: Path, stage: str) -> None:
    """It would hold for CRIU, and for whatever else of the host is in there. Here that is this test."""
    for name in (at_restore.FILTER, at_restore.EARLY_FILTER):
        (images / name).write_text("ff" * 8)
    assert start(images, stage).returncode == 1
    assert "is not a container's cgroup" in at_restore.reason(images)


@pytest.mark.parametrize(("name", "text", "said"), [
    (cgroup_limits.PLAN, "none.such 1\n", "no cgroup controller none"),
    (cgroup_limits.TAKEN, "pids.max 1\t../x\n", "is not a path in a cgroup"),
    (at_restore.FILTER, "no program", "which devices it may use: "),
])
def test_confinement_that_cannot_be_had(images: Path, name: str, text: str, said: str) -> None:
    (images / name).write_text(text)
    assert start(images, at_restore.STAGE).returncode == 1
    assert said in at_restore.reason(images)


def test_commands_of_the_host(images: Path) -> None:
    """At that stage alone, in their order, and before what Python does; the first that fails ends the restore."""
    done = images / "it's done"
    note = ["sh", "-c", 'echo "$1" >>"$0"', str(done)]
    assert start(images, "pre-resume", [*note, "no"]).returncode == 0
    assert not done.exists()
    assert start(images, at_restore.STAGE, [*note, "a b"], [*note, "$c"]).returncode == 0
    assert done.read_text() == "a b\n$c\n"
    failed = start(images, at_restore.STAGE, ["sh", "-c", "echo 'no such port' >&2; exit 3"], [*note, "never"])
    assert failed.returncode == 1 and at_restore.reason(images).endswith(": no such port\n")
    assert done.read_text() == "a b\n$c\n"


def test_a_failure_ends_the_restore_and_says_why(images: Path) -> None:
    (images / cgroups.RECORD).write_text("0 4294967295 644 cgroup.procs\n")
    done = start(images, at_restore.STAGE)
    assert done.returncode == 1
    assert not ran_mark.was(images / ran_mark.NAME)
    reason = at_restore.reason(images)
    assert "cgroup" in reason and "4294967295" in reason
    assert reason in done.stderr, "it is in CRIU's log as well"


def test_it_imports_next_to_nothing() -> None:
    """The container stands still while it starts."""
    code = ("import os, sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
            "from migrator.criu import at_restore; print(*set(sys.modules) - before)")
    root = Path(at_restore.__file__).parents[2]
    found = subprocess.run([sys.executable, "-I", "-S", "-c", code, root], capture_output=True, text=True,
                           check=True).stdout
    assert set(found.split()) == {
        "__future__", "errno", "migrator",
        *(f"migrator.{name}" for name in (
            "base", "base.deep_folders", "base.durable", "base.folder_set", "criu", "criu.at_restore",
            "criu.mount_flags", "criu.mount_sources", "criu.pressure_triggers", "criu.ran_mark", "criu.slave_mounts",
            "criu.systemd_managers", "host", "host.cgroup_limits", "host.cgroups", "host.mount_tables"))}


def test_a_record_is_read_whole_or_not_at_all(images: Path) -> None:
    """What is cut off its end would not be seen to: a mount that was read-only could be written to."""
    (images / cgroups.RECORD).write_text("x" * 100)
    assert at_restore.noted(str(images), cgroups.RECORD, 100) == "x" * 100
    with pytest.raises(ValueError, match="larger than 99 bytes"):
        at_restore.noted(str(images), cgroups.RECORD, 99)
