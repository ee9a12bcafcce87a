# SPDX-License-Identifier: GPL-2.0-or-later
"""The limits of a container's cgroups, before and after."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from migrator.config import config_reader
from migrator.host import cgroup_limits

UNIT = "system.slice/redis.service"
FILES = {"memory.max": "max", "memory.oom.group": "0", "pids.max": "max", "cpu.max": "max 100000", "cpu.weight": "100",
         "cpuset.cpus": "", "memory.events": "low 0\noom_kill 0", "cgroup.procs": "7", "io.max": ""}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A hierarchy with a container in it as it is after its restore: every controller is there, nothing is limited."""
    for folder in ("", "lxc.payload.c1", "lxc.payload.c1/system.slice", f"lxc.payload.c1/{UNIT}"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "cgroup.controllers").write_text("cpu cpuset memory pids\n")
        (tmp_path / folder / "cgroup.subtree_control").write_text("cpu cpuset memory pids\n")
        for name, value in FILES.items() if folder else ():
            (tmp_path / folder / name).write_text(f"{value}\n")
    return tmp_path


@pytest.fixture
def top(root: Path) -> Path:
    return root / "lxc.payload.c1"


def plan(text: str) -> str:
    return cgroup_limits.plan(cgroup_limits.configured(config_reader.settings(text)))


CONFIG = "lxc.cgroup2.memory.max = 400M\nlxc.cgroup2.pids.max = 50\nlxc.cgroup2.cpu.max = 80000 100000\n"


def test_the_configurations_limits(top: Path, root: Path) -> None:
    """What was found gone after every live move."""
    cgroup_limits.apply(str(top), plan(CONFIG), "", str(root))
    assert (top / "memory.max").read_text().startswith("400M")
    assert (top / "pids.max").read_text().startswith("50")
    assert (top / "cpu.max").read_text().startswith("80000 100000")


def test_limits_below_are_as_they_were(top: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a systemd in there sets them for its units, and an administrator from outside."""
    (top / UNIT / "memory.max").write_text("1048576\n")
    (top / UNIT / "memory.oom.group").write_text("1\n")
    (top / "pids.max").write_text("50\n")
    record = cgroup_limits.record(str(top))
    assert len(record.splitlines()) == 3, "what nobody has set is not recorded"
    for folder in (top, top / UNIT):
        for name in ("memory.max", "memory.oom.group", "pids.max"):
            (folder / name).write_text(f"{FILES[name]}\n")
    cgroup_limits.apply(str(top), "", record, str(root))
    assert (top / UNIT / "memory.max").read_text().startswith("1048576")
    assert (top / UNIT / "memory.oom.group").read_text().startswith("1")
    assert (top / "pids.max").read_text().startswith("50")
    assert (top / "memory.max").read_text() == "max\n"


def test_the_weight_of_its_disk_accesses(top: Path, root: Path) -> None:
    """As IOWeight= sets it; for a single device it is by that one's number, which is another one's elsewhere."""
    recorded = {"io.weight": "default 20\n8:0 500", f"{UNIT}/io.weight": "default 10", f"{UNIT}/io.max": "8:0 rbps=1"}
    for name, value in {"io.weight": "default 100", "system.slice/io.weight": "default 100\n8:0 7", **recorded}.items():
        (top / name).write_text(f"{value}\n")
    record = cgroup_limits.record(str(top))
    assert record == f"io.weight default 10\t{UNIT}\nio.weight default 20\t.\n"
    for name in ("io.weight", f"{UNIT}/io.weight"):
        (top / name).write_text("default 100\n")
    planned = plan("lxc.cgroup2.io.weight = 8:0 30\nlxc.cgroup2.io.weight = 50\n")
    cgroup_limits.apply(str(top), planned, record, str(root))
    assert (top / "io.weight").read_text().startswith("default 20")
    assert (top / UNIT / "io.weight").read_text().startswith("default 10")


@pytest.mark.parametrize(("record", "weight"), [("", "50"), ("io.weight default 20\t.\n", "default 20")])
def test_the_weight_for_one_disk_is_the_configurations(record: str, weight: str) -> None:
    """Whatever comes before or behind it."""
    planned = plan("lxc.cgroup2.io.weight = 40\nlxc.cgroup2.io.weight = 8:0 30\nlxc.cgroup2.io.weight = 50\n")
    assert cgroup_limits.merged(planned, record) == [(".", "io.weight", "8:0 30"), (".", "io.weight", weight)]


def test_what_nobody_has_set(top: Path) -> None:
    """In hugetlb that is a number (seen on 6.18); and no weight can be set to what it reads beside cpu.idle."""
    (top / "hugetlb.2MB.max").write_text("9223372036854771712\n")
    (top / "cpu.idle").write_text("1\n")
    (top / "cpu.weight").write_text("0\n")
    assert cgroup_limits.record(str(top)) == "cpu.idle 1\t.\n"


def test_each_limit_is_set_once() -> None:
    """A memory.max that the next line raises would kill tasks before that."""
    planned = plan("lxc.cgroup2.memory.max = 100M\nlxc.cgroup2.io.max = 8:0 rbps=1\nlxc.cgroup2.io.max = 8:16 rbps=1\n"
                   "lxc.cgroup2.memory.max = 200M\nlxc.cgroup2.pids.max = 9\n")
    assert cgroup_limits.merged(planned, "") == [
        (".", "io.max", "8:0 rbps=1"), (".", "io.max", "8:16 rbps=1"), (".", "memory.max", "200M"),
        (".", "pids.max", "9")]
    assert cgroup_limits.merged(planned, "memory.max 1073741824\t.\npids.max 3\ta b\n")[2:] == [
        (".", "memory.max", "1073741824"), (".", "pids.max", "9"), ("a b", "pids.max", "3")]


@pytest.mark.parametrize(("text", "wanted"), [
    ("lxc.cgroup2.pids.max = 1\nlxc.cgroup2.pids.max =\n", []),
    ("lxc.cgroup2.pids.max = 1\nlxc.cgroup2.memory.max = 2\nlxc.cgroup2.pids.max =\n", [("memory.max", "2")]),
    ("lxc.cgroup2.pids.max = 1\nlxc.cgroup2.devices.deny = a\nlxc.cgroup2 =\n", []),
    ("lxc.cgroup.pids.max = 1\nlxc.cgroup.dir = x\nlxc.cgroup2.pids.max = 2\n", [("pids.max", "2")]),
    ("lxc.cgroup2.devices.deny = a\nlxc.cgroup2.devices.allow = c 1:3 rwm\nlxc.cgroup2.devices.deny = c 1:3 w\n",
     [("devices.deny", "a"), ("devices.allow", "c 1:3 rwm"), ("devices.deny", "c 1:3 w")]),
])
def test_settings_as_lxc_reads_them(text: str, wanted: list[tuple[str, str]]) -> None:
    assert cgroup_limits.configured(config_reader.settings(text)) == wanted


@pytest.mark.parametrize("key", ["../pids.max", "a/b", "memory.max x"])
def test_no_other_file_is_written(key: str) -> None:
    with pytest.raises(ValueError, match="is not a limit"):
        plan(f"lxc.cgroup2.{key} = 1\n")


@pytest.mark.parametrize("line", [
    "pids.max 1\t../other", "pids.max 1\t/sys", "cgroup.kill 1\t.", "cgroup.procs 1\t.", "io.max 8:0 rbps=1\t.",
    "pids.max 1", "../pids.max 1\t.", "io.weight 8:0 50\t."])
def test_a_record_that_is_not_to_be_trusted(top: Path, root: Path, line: str) -> None:
    with pytest.raises(ValueError):
        cgroup_limits.apply(str(top), "", f"{line}\n", str(root))


@pytest.mark.parametrize("entry", ["memory.min 1073741824", "memory.low 4096", "memory.min  0", "memory.min max",
                                   "cpu.weight 101", "cpu.weight 10000", "cpu.weight 1e9", "cpu.uclamp.min 0.01"])
@pytest.mark.parametrize("place", [".", "./", "./.", ".//."])
def test_who_may_not_favour_his_container_does_not(top: Path, root: Path, entry: str, place: str) -> None:
    """Memory that is kept for it, even from a host that dies of that."""
    limits = f"memory.max 1048576\t.\ncpu.weight 50\t.\ncpu.weight 10000\t{UNIT}\nmemory.low 4096\t{UNIT}\n"
    kept, dropped = cgroup_limits.taken(f"{entry}\t{place}\n{limits}")
    assert (kept, dropped) == (limits, [entry])


def test_what_is_taken_is_judged_as_what_was_recorded(top: Path, root: Path) -> None:
    for line in ("pids.max 1", "memory.min 1", "memory.min 1\t../x", "no.such 1\t."):
        kept, _ = cgroup_limits.taken(f"{line}\n")
        with pytest.raises(ValueError):
            cgroup_limits.apply(str(top), "", kept, str(root))


def test_a_name_with_other_lines_ends_changes_nothing_above(top: Path) -> None:
    """Whoever makes a cgroup in the container would lift the container's own limit."""
    for end in "\r\x0b\x0c\x1c\x85\u2028":
        evil = top / f"x{end}pids.max 1000000\t."
        evil.mkdir()
        (evil / "pids.max").write_text("3\n")
    found = cgroup_limits.merged("", cgroup_limits.record(str(top)))
    assert {value for _, _, value in found} == {"3"} and "." not in {folder for folder, _, _ in found}


# What was written and how the kernel says it (tried on 6.12 and 6.18).
HOLDS = [
    ("memory.max", "400M", "419430400"), ("memory.max", "400m", "419430400"), ("memory.max", "max", "max"),
    ("memory.max", "1000000", "999424"), ("pids.max", "50", "50"), ("pids.max", "max", "max"),
    ("cpu.max", "80000 100000", "80000 100000"), ("cpu.max", "80000", "80000 100000"), ("cpu.max", "max", "max 100000"),
    ("cpu.weight", "100", "100"), ("cpu.uclamp.max", "50", "50.00"), ("cpuset.cpus", "0,1,2", "0-2"),
    ("cpuset.cpus", "0-1", "0-1"), ("cpuset.cpus.partition", "root", "root"), ("io.weight", "200", "default 200"),
    ("io.weight", "8:0 50", "default 100\n8:0 50"), ("io.weight", "default 200", "default 200"),
    ("io.max", "8:0 rbps=2M", "8:16 rbps=1 wbps=max\n8:0 rbps=2097152 wbps=max riops=max wiops=max"),
    ("hugetlb.2MB.max", "3M", "2097152"), ("hugetlb.1GB.max", "1G", "1073741824"),
    ("cgroup.subtree_control", "+memory -pids", "cpu memory"), ("misc.max", "sev 10", "sev_es max\nsev 10"),
    ("cgroup.max.descendants", "64", "64"), ("hugetlb.2MB.max", "max", "9223372036854771712"),
]
HOLDS_NOT = [
    ("memory.max", "400M", "max"), ("memory.max", "400M", "419430401"), ("memory.max", "400M", "400000000"),
    ("pids.max", "50", "49"), ("pids.max", "50", "max"), ("cpu.max", "80000 100000", "max 100000"),
    ("cpu.max", "100000", "max 100000"), ("cpu.max", "80000 50000", "80000 100000"), ("cpuset.cpus", "0-1", "0"),
    ("cpuset.cpus", "0-1", ""), ("cpuset.cpus.partition", "root", "root invalid (no cpu)"), ("io.weight", "200", ""),
    ("io.max", "8:0 rbps=2M", "8:0 rbps=max wbps=2097152"), ("io.max", "8:0 rbps=2M", "8:16 rbps=2097152"),
    ("cgroup.subtree_control", "+memory", "cpu"), ("cgroup.subtree_control", "-cpu", "cpu"),
    ("hugetlb.2MB.max", "4M", "2097152"), ("memory.max", "many", "max"),
]


@pytest.mark.parametrize(("name", "written", "read"), HOLDS)
def test_what_was_written_is_read_back(name: str, written: str, read: str) -> None:
    assert cgroup_limits.holds(name, written, read)


@pytest.mark.parametrize(("name", "written", "read"), HOLDS_NOT)
def test_what_was_written_does_not_hold(name: str, written: str, read: str) -> None:
    assert not cgroup_limits.holds(name, written, read)


def test_what_holds_already_is_not_written(top: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer LXC has set it."""
    (top / "memory.max").write_text("419430400\n")
    monkeypatch.setattr(cgroup_limits, "_write", lambda *_: pytest.fail("it was written"))
    cgroup_limits.apply(str(top), plan("lxc.cgroup2.memory.max = 400M\n"), "", str(root))


def test_a_kernel_that_takes_it_and_does_not_do_it(top: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_limits, "_write", lambda *_: None)
    with pytest.raises(OSError, match=r"pids\.max was set to 50 but is max"):
        cgroup_limits.apply(str(top), plan("lxc.cgroup2.pids.max = 50\n"), "", str(root))


def test_a_controller_that_was_not_enabled(top: Path, root: Path) -> None:
    """LXC enables its own at the top; in a slice below nobody has."""
    (root / "cgroup.subtree_control").write_text("cpu\n")
    (top / "pids.max").unlink()
    with pytest.raises(OSError, match=r"pids\.max is not something"):  # this tree makes no file when one is enabled
        cgroup_limits.apply(str(top), plan("lxc.cgroup2.pids.max = 50\n"), "", str(root))
    assert (root / "cgroup.subtree_control").read_text().startswith("+pids")


def test_a_controller_that_this_host_lacks(top: Path, root: Path) -> None:
    (root / "cgroup.controllers").write_text("cpu\n")
    (root / "cgroup.subtree_control").write_text("cpu\n")
    (top / "pids.max").unlink()
    with pytest.raises(OSError, match="no cgroup controller pids"):
        cgroup_limits.apply(str(top), plan("lxc.cgroup2.pids.max = 50\n"), "", str(root))


def test_who_was_killed_by_the_limit(top: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restored container has to be whole."""
    monkeypatch.setattr(cgroup_limits, "_write",
                        lambda path, text: [Path(path).write_text(text),
                                            (top / "memory.events").write_text("low 0\noom_kill 1\n")])
    with pytest.raises(OSError, match="does not fit"):
        cgroup_limits.apply(str(top), plan("lxc.cgroup2.memory.max = 1M\n"), "", str(root))


def test_cgroups_that_are_not_there_have_no_limit(top: Path, root: Path) -> None:
    cgroup_limits.apply(str(top), "", "pids.max 1\tuser.slice/gone\n", str(root))
    cgroup_limits.enable(str(top), "pids\tuser.slice/gone\n", str(root))


def test_controllers_are_enabled_from_the_top_down(top: Path, root: Path) -> None:
    record = cgroup_limits.controllers(str(top))
    assert record.splitlines()[0].partition("\t")[2] == "."
    for path in root.rglob("cgroup.subtree_control"):
        path.write_text("\n")
    written: list[str] = []
    shutil.rmtree(top / "system.slice/redis.service")
    cgroup_limits.enable(str(top), record, str(root))
    for path in (root, top, top / "system.slice"):
        written.append((path / "cgroup.subtree_control").read_text())
    assert all(text.startswith("+") for text in written)
