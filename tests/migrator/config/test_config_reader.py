# SPDX-License-Identifier: GPL-2.0-or-later
"""Configurations are read as LXC reads them, by `check` and by what carries them alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.config import config_reader, container_config, lxc_settings
from migrator.errors.containers import ConfigInvalid
from migrator.preflight import survey
from migrator.preflight.findings import Severity
from tests.migrator.lxc_configs import CASES, Case
from tests.migrator.made_up import CONTAINER, DESTINATION, SOURCE, change

# What LXC takes and cannot be carried all the same.
OURS = {
    "not UTF-8": (b"# gr\xfc\xdfe\nlxc.tty.max = 1\n", "UTF-8"),
    "too large": (b"#" * (config_reader.SIZE_LIMIT + 1), "larger"),
    "a zero byte": (b"lxc.tty.max = 1\n\0\nlxc.tty.max = 2\n", "has a zero byte, after which LXC ignores"),
    "no end": (b"lxc.include = /dev/zero\n", "larger"),
    **{f"{key} = {value}": (f"lxc.net.0.{key} = {value}\n".encode(), "not a valid interface name")
       for key in ("link", "name", "veth.pair")
       for value in ("/srv/x", "..", ".", "../../../srv", "br0/x", "br0:1", "br 0", "b\u00a0r")},
}


@pytest.mark.parametrize("name", ["lxcbr0", "br0.100", "eth%d", "eth+", "br\u00e9", "lan-side-bridge", '"br\\', "",
                                  "longer-than-ifna", "LXC-ends-before/this"])
def test_what_the_kernel_may_call_an_interface(name: str) -> None:
    text = "\n".join(f"lxc.net.7.{key} = {name}" for key in ("link", "name", "veth.pair"))
    assert config_reader.read("config", text).faults == ()


def carried(config: Path) -> str:
    """Why `prepare-data` refuses the configuration; "" when it carries it."""
    try:
        container_config.read(config, "web")
    except ConfigInvalid as error:
        return str(error)
    return ""


def blocked(config: Path) -> str:
    """What `check` says of the configuration; "" when nothing of it hinders a move."""
    facts = change(CONTAINER, {"config.faults": lxc_settings.read(config).faults})
    found = [finding for finding in survey.find(SOURCE, DESTINATION, facts) if finding.severity is Severity.ERROR]
    assert {finding.code for finding in found} <= {"include-unreadable"}
    return " ".join(finding.message for finding in found)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_check_and_migrate_agree_with_lxc(tmp_path: Path, case: Case) -> None:
    config = case.make(tmp_path)
    accepted = case.terminals is not None
    assert (carried(config) == "") is accepted, carried(config)
    assert (blocked(config) == "") is accepted, blocked(config)
    if accepted:
        assert lxc_settings.read(config).ttys == case.terminals


@pytest.mark.parametrize("name", OURS)
def test_check_and_migrate_agree_on_what_only_we_refuse(tmp_path: Path, name: str) -> None:
    content, words = OURS[name]
    (tmp_path / "config").write_bytes(content)
    assert words in carried(tmp_path / "config")
    assert words in blocked(tmp_path / "config")


def test_nothing_is_read_behind_a_zero_byte(tmp_path: Path) -> None:
    """Nor of a file that is included, and then it goes on behind that."""
    (tmp_path / "other").write_text("lxc.tty.max = 3\n\0lxc.tty.max = 4\n")
    text = f"lxc.tty.max = 1\nlxc.include = {tmp_path}/other\nlxc.tty.dir = a\0\nlxc.tty.max = 2\n"
    read = config_reader.read("config", text)
    assert read.settings == (("lxc.tty.max", "1"), ("lxc.tty.max", "3"), ("lxc.tty.dir", "a"))
    assert [path for path, what in read.faults if "zero byte" in what] == ["config", f"{tmp_path}/other"]


@pytest.mark.parametrize("levels", [10, 60])
def test_includes_may_be_nested_deeply(tmp_path: Path, levels: int) -> None:
    for number in range(levels):
        (tmp_path / str(number)).write_text(f"lxc.include = {tmp_path}/{number + 1}\n")
    (tmp_path / str(levels)).write_text("lxc.tty.max = 5\n")
    assert carried(tmp_path / "0") == blocked(tmp_path / "0") == ""
    assert lxc_settings.read(tmp_path / "0").ttys == 5


def test_there_is_an_end_to_includes(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}").write_text(f"lxc.include = {tmp_path}/{number + 1}\n")
    assert "more than 64 files" in carried(tmp_path / "0")
    assert "more than 64 files" in blocked(tmp_path / "0")
    for number in range(40):  # each twice as often as the one before
        (tmp_path / f"{number}").write_text(f"lxc.include = {tmp_path}/{number + 1}\n" * 2)
    (tmp_path / "40").write_text("")
    assert "times" in carried(tmp_path / "0")
    assert "times" in blocked(tmp_path / "0")


def test_all_files_together_have_a_size(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("#" * (config_reader.SIZE_LIMIT // 2))
    (tmp_path / "config").write_text(f"lxc.include = {tmp_path}/a\nlxc.include = {tmp_path}/b\n")
    assert "larger" in carried(tmp_path / "config")


def test_a_folder_is_read_in_its_own_order(tmp_path: Path) -> None:
    """readdir(3) does not sort, and neither does LXC."""
    listed = [f"{tmp_path}/b.conf", f"{tmp_path}/a.conf"]
    texts = {listed[0]: "lxc.tty.max = 2", listed[1]: "lxc.tty.max = 1"}
    reading = config_reader.read("config", f"lxc.include = {tmp_path}/", texts.__getitem__, lambda _: listed)
    assert reading.settings == (("lxc.tty.max", "2"), ("lxc.tty.max", "1"))
    assert list(reading.includes) == listed
    assert set(reading.by.values()) == {f"{tmp_path}/"}


def test_a_folder_that_cannot_be_read_is_a_fault() -> None:
    def refuse(_path: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    reading = config_reader.read("config", "lxc.include = /secret/", list_folder=refuse)
    assert reading.faults == (("/secret/", "cannot be read: Permission denied"),)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "config").write_text(f"lxc.include = {tmp_path}/fifo\n")
    assert carried(tmp_path / "config") == ""


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    def gone(_path: str) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    reading = config_reader.read("config", text, gone, lambda _: None)
    assert len(reading.settings) <= len(config_reader.lines(text))
