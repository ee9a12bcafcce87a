# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of stages that can be looked at without two hosts."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pytest

import stages
from migrator.copies import bases
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from stages import cleanup
from stages.steps import examine, move_arguments
from stages.steps.cleaner import Cleaner


def test_a_stage_is_a_module_with_these_names() -> None:
    for stage in stages.load_all():
        assert isinstance(stage.NAME, str) and isinstance(stage.HELP, str)
        assert callable(stage.add_arguments) and callable(stage.run)
        assert Path(str(stage.__file__)).stem == stage.NAME.replace("-", "_")
    names = {path.stem for path in Path(str(stages.__file__)).parent.glob("*.py")} - {"__init__"}
    assert names == {command.replace("-", "_") for command in stages.COMMANDS}, "a module is missing in stages.COMMANDS"
    assert [stage.NAME for stage in stages.load_all()] == list(stages.COMMANDS)


def test_a_command_reads_no_other_commands_module() -> None:
    """Most of a start is reading modules: `status` needs no preflight, and pays for none."""
    code = "import sys; from migrator import cli; cli.parse(['status']); print(*sorted(sys.modules))"
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "stages.status" in read.split()
    assert "stages.migrate" not in read.split()


@pytest.mark.parametrize(("begun", "there", "ended", "offset"), [
    (100.0, 100.5, 101.0, 0.0), (100.0, 100.0, 101.0, 0.0), (100.0, 111.0, 101.0, 10.0), (100.0, 90.0, 101.0, -10.0),
])
def test_a_clock_is_wrong_only_beyond_the_round_trip(begun: float, there: float, ended: float, offset: float) -> None:
    assert examine._offset(begun, there, ended) == offset


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("10k", 10240), ("1.5M", 1572864), ("2g", 2 << 30)])
def test_rates(text: str, value: int) -> None:
    assert move_arguments.rate(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "k", "", "1T", "nan", "inf", "1e99"])
def test_bad_rates(text: str) -> None:
    with pytest.raises((ValueError, argparse.ArgumentTypeError)):
        move_arguments.rate(text)


class Bases(NamedTuple):
    """What `bases.for_round` looks at of a Layout."""

    found: list[Subvolume]

    def bases(self) -> list[Subvolume]:
        return self.found


def subvolume(number: int, uuid: str, received: str = "") -> Subvolume:
    return Subvolume(Path(f"/pool/.migrator/web/0badc0de.{number}"), uuid, received, True, number)


def test_an_increment_starts_from_the_newest_that_both_have() -> None:
    here = Bases([subvolume(1, "a"), subvolume(2, "b", "b-of-the-other-host"), subvolume(3, "c")])

    def number(held: list[str], its: Collection[str] = ("a", "b-of-the-other-host", "c")) -> int | None:
        base = bases.for_round(here, held, its)  # type: ignore[arg-type]
        return base.generation if base else None

    assert number([]) is None
    assert number(["x"]) is None
    assert number(["a"]) == 1
    # One that came from the other host is known there by the uuid that it had there.
    assert number(["a", "b-of-the-other-host"]) == 2
    assert number(["b"]) is None
    assert number(["c", "a"]) == 3
    assert number(["c", "a"], ["a"]) == 1, "the newer one is of another container that had its name before"


def test_cleaning_a_folder_keeps_what_is_alive_and_what_is_not_ours(tmp_path: Path) -> None:
    folder = Layout(tmp_path, "web", "0badc0de").folder
    folder.mkdir(parents=True)
    names = ["0badc0de.spool", "0badc0de.images", "00000001.spool", "00000001.old", "00000001.images", "notes",
             "00000001.spool.bak", "x.spool"]
    for name in names:
        (folder / name / "deep").mkdir(parents=True)
    (folder / "00000002.spool").write_text("")  # a stream may have made it
    (folder / "00000002.images").symlink_to(tmp_path)
    gone = {"00000001.spool", "00000001.old", "00000001.images"}
    names += (odd := ["00000002.spool", "00000002.images"])
    gone |= set(odd)
    with Journal(tmp_path / "journal.db") as journal:
        dry = Cleaner(dry_run=True)
        cleanup._clean_folder(dry, journal, folder, {"0badc0de"})
        assert {Path(path).name for path in dry.removed} == gone
        assert {path.name for path in folder.iterdir()} == set(names)
        cleanup._clean_folder(Cleaner(dry_run=False), journal, folder, {"0badc0de"})
        assert {path.name for path in folder.iterdir()} == set(names) - gone
        cleanup._clean_folder(Cleaner(dry_run=False), journal, folder / "not-there", set())
