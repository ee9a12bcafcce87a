# SPDX-License-Identifier: GPL-2.0-or-later
"""What a clone includes from the folder of the container that it was made of stays there."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator import container_config, include_copies

ID, OTHER = "0badc0de", "00000001"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """web, in whose folder lie two migrations' copies; a clone includes the first one's."""
    made = tmp_path / "pool" / "web"
    for id_ in (ID, OTHER):
        (made / "migrator-include" / id_).mkdir(parents=True)
        (made / "migrator-include" / id_ / "00-extra.conf").touch()
    includes(made, made / "migrator-include" / OTHER / "00-extra.conf")  # its own do not count
    includes(made.with_name("clone"), made / "migrator-include" / ID / "00-extra.conf")
    return made


def includes(container: Path, path: Path, before: str = "") -> None:
    container.mkdir(exist_ok=True)
    (container / "config").write_text(f"lxc.uts.name = web\n{before}lxc.include = {path}\n")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "migrator-include").iterdir())


@pytest.mark.parametrize("linked", [False, True])
def test_the_next_stay_leaves_it(folder: Path, linked: bool, capfd: pytest.CaptureFixture[str]) -> None:
    if linked:  # /var/lib/lxc often is one
        link = folder.parents[1] / "lxc"
        link.symlink_to(folder.parent)
        folder = link / "web"
    include_copies.drop(folder, keep="feedface")
    assert left(folder) == [ID]
    said = " ".join(capfd.readouterr().err.split())
    assert f"{folder / 'migrator-include' / ID} stays, as {folder.parent / 'clone' / 'config'} includes it" in said
    include_copies.drop(folder, drop=ID)
    assert left(folder) == [ID]
    (folder.parent / "clone" / "config").unlink()  # it was destroyed
    include_copies.drop(folder, keep="feedface")
    assert not (folder / "migrator-include").exists()


def test_cleanup_leaves_it_with_the_folder(folder: Path) -> None:
    place = folder / "migrator-include"
    assert container_config.strange_in(folder) == [place] == container_config.remove(folder)
    assert left(folder) == [ID] and list(folder.iterdir()) == [place]
    (folder.parent / "clone" / "config").unlink()
    assert container_config.strange_in(folder) == [] == container_config.remove(folder)
    assert not folder.exists()


def test_what_only_looks_like_it_keeps_nothing(folder: Path) -> None:
    includes(folder.with_name("clone"), folder / "migrator-include", before="# ")
    includes(folder.with_name("web-2"), folder.with_name("web-2") / "migrator-include" / ID / "00-extra.conf")
    (folder.with_name("broken") / "config").mkdir(parents=True)
    assert include_copies.used_by_others(folder) == {}
