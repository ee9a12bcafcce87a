# SPDX-License-Identifier: GPL-2.0-or-later
"""A container's configuration arrives, with what it includes, and is taken away again."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.base import removal
from migrator.config import config_reader, consent, container_config, include_copies, lxc_settings
from migrator.errors.connection import ConsentNeeded
from migrator.errors.containers import ConfigInvalid
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from stages.steps import finish_here, put_away
from tests.stages.defining import ID, arriving, define  # noqa: F401 -- a fixture


def copies(migration: Migration) -> list[str]:
    folder = migration.lxcpath / "web" / include_copies.FOLDER
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_lies_in_the_containers_own_folder_always_travels(arriving: Migration, tmp_path: Path) -> None:
    """Even where this host has a file of that name, perhaps of an earlier stay."""
    own = tmp_path / "far" / "web" / "own.conf"
    own.parent.mkdir(parents=True)
    own.write_text("lxc.tty.max = 1\n")
    (tmp_path / "shared.conf").write_text("lxc.arch = here\n")
    found = define(arriving, f"lxc.include = {own}\nlxc.include = {tmp_path}/shared.conf\n",
                   {str(own): "lxc.tty.max = 2\n", f"{tmp_path}/shared.conf": "lxc.arch = there\n"})
    assert (found.ttys, found.arch) == (2, "here")
    assert copies(arriving) == [f"{ID}/00-own.conf"]


def test_a_folder_that_is_missing_here_travels_with_its_files(arriving: Migration) -> None:
    text = "lxc.include = /nowhere/mine.d\nlxc.include = /nowhere/gone.d/\n"
    found = define(arriving, text, {"/nowhere/mine.d/b.conf": "lxc.tty.max = 2\n",
                                    "/nowhere/mine.d/a.conf": "lxc.tty.max = 1\n"})
    assert found.ttys == 1, "the last of them counts, in the order in which they were read"


def test_an_earlier_stay_keeps_its_copies(arriving: Migration) -> None:
    """Until the container stays for good: before that its old configuration may be given back, and it needs them."""
    before = arriving.lxcpath / "web" / include_copies.FOLDER / "00000001"
    before.mkdir(parents=True)
    (before / "00-x.conf").write_text("lxc.tty.max = 7\n")
    old = f"lxc.include = {before}/00-x.conf\n"
    container_config.fence(arriving.lxcpath / "web", old, "00000001", "it has moved")
    layout = Layout(arriving.lxcpath, "web", ID)

    assert define(arriving, "lxc.include = /nowhere/x.conf\n", {"/nowhere/x.conf": "lxc.tty.max = 2\n"}).ttys == 2
    assert copies(arriving) == ["00000001/00-x.conf", f"{ID}/00-x.conf"]
    put_away.give_back_old(layout)
    assert lxc_settings.read(layout.container / "config").ttys == 7
    assert copies(arriving) == ["00000001/00-x.conf"]

    define(arriving, "lxc.include = /nowhere/x.conf\n", {"/nowhere/x.conf": "lxc.tty.max = 2\n"})
    finish_here.drop_way_back(arriving)
    assert "00000001/00-x.conf" in copies(arriving), "nor what gives way: no other container is asked for it"
    layout.spool.mkdir()
    finish_here._drop_includes(layout)
    assert copies(arriving) == [f"{ID}/00-x.conf"]


def test_what_others_have_put_into_its_folder_stays(arriving: Migration, monkeypatch: pytest.MonkeyPatch,
                                                    capfd: pytest.CaptureFixture[str]) -> None:
    """Or mounted there: all of ours goes, and what is left is told."""
    define(arriving, "lxc.include = /nowhere/x.conf\n", {"/nowhere/x.conf": "lxc.tty.max = 2\n"})
    layout = Layout(arriving.lxcpath, "web", ID)
    (layout.container / "data").mkdir()
    (layout.container / "data" / "live").write_text("somebody's")
    monkeypatch.setattr(include_copies, "used_by_others", lambda _: pytest.fail("the source is frozen meanwhile"))
    put_away.give_back_old(layout)
    assert [path.name for path in layout.container.iterdir()] == ["data"] and not layout.beside.exists()
    assert (layout.container / "data" / "live").read_text() == "somebody's"
    assert str(layout.container / "data") in capfd.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("mounted", [False, True])
def test_what_is_not_of_our_making_is_strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: bool) -> None:
    """So is what we have made, where something is mounted on it."""
    monkeypatch.setattr(removal, "is_mounted", lambda _: mounted)
    (tmp_path / "rootfs").mkdir()
    (tmp_path / include_copies.FOLDER).mkdir()
    container_config.fence(tmp_path, "lxc.uts.name = web\n", ID, "no")
    for name in (".config.new", f".{container_config.FENCE_HOOK}.new", "config.bak"):
        (tmp_path / name).touch()
    strange = ["config.bak", *([include_copies.FOLDER] if mounted else [])]
    assert [path.name for path in container_config.strange_in(tmp_path)] == strange


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("what", ["often", "many", "gone", "link"])
def test_what_cannot_be_read_as_a_whole_is_not_defined(arriving: Migration, tmp_path: Path, what: str, hooks: bool,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """LXC reads on where we do not, and would find there what nobody has looked at."""
    monkeypatch.setattr(consent, "HOST_FOLDERS", (f"{tmp_path}/lxc/",))
    folder = tmp_path / "lxc"
    folder.mkdir()
    for number in range(config_reader.INCLUDE_LIMIT + 1):
        (folder / f"{number}.conf").write_text("lxc.tty.max = 1\n")
    if what == "gone":  # it is there, and includes what is not
        (folder / "0.conf").write_text("lxc.include = /nowhere/x.conf\n")
    text = {"often": f"lxc.include = {folder}/0.conf\n" * (config_reader.READS_LIMIT + 1),
            "many": f"lxc.include = {folder}/\n", "gone": f"lxc.include = {folder}/0.conf\n",
            "link": "lxc.net.0.link = ../x\n"}[what]
    arriving.note("consent", hooks=hooks, caller="root:only")
    with pytest.raises(ConsentNeeded if what == "link" and not hooks else ConfigInvalid):
        define(arriving, text, {})
    assert not (arriving.lxcpath / "web").exists()
