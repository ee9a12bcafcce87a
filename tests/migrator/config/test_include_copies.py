# SPDX-License-Identifier: GPL-2.0-or-later
"""What a clone includes from the folder of the container that it was made of stays there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.config import container_config, include_copies

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
    include_copies.drop_unused(folder, keep="feedface")
    assert left(folder) == [ID]
    said = " ".join(capfd.readouterr().err.split())
    assert f"{folder / 'migrator-include' / ID} stays, as {folder.parent / 'clone' / 'config'} includes it" in said
    include_copies.drop_unused(folder)
    assert left(folder) == [ID]
    (folder.parent / "clone" / "config").unlink()  # it was destroyed
    include_copies.drop_unused(folder, keep="feedface")
    assert not (folder / "migrator-include").exists()


def test_another_spelling_of_the_lxc_path_is_the_same(folder: Path) -> None:
    """The clone says what its container's configuration had said, whatever this host calls that folder today."""
    includes(folder.with_name("clone"), Path(f"/an/older//link/web/./{include_copies.FOLDER}/{ID}/00-extra.conf"))
    assert list(include_copies.used_by_others(folder)) == [ID]


@pytest.mark.parametrize("of", ["web", "other"])
def test_what_a_snapshot_includes_stays(folder: Path, of: str, capfd: pytest.CaptureFixture[str]) -> None:
    """One that LXC has made of it, or of a clone: the container that is restored from it would not start."""
    (folder.with_name("clone") / "config").unlink()
    snapshot = folder.with_name(of) / "snaps" / "snap0"
    snapshot.parent.mkdir(parents=True)
    includes(snapshot, folder / "migrator-include" / ID / "00-extra.conf")
    include_copies.drop_unused(folder, keep="feedface")
    assert left(folder) == [ID]
    assert f"as {snapshot / 'config'} includes it" in " ".join(capfd.readouterr().err.split())


def test_cleanup_leaves_it_with_the_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And with the configuration, by whose fence the folder is still known as migrator's, and what that includes."""
    place = folder / "migrator-include"
    container_config.fence(folder, container_config.text_of(folder / "config"), OTHER, "no")
    assert container_config.strange_in(folder) == [place] == container_config.remove(folder)
    assert left(folder) == [OTHER, ID] and container_config.fence_of((folder / "config").read_text()) == OTHER
    said = " ".join(capfd.readouterr().err.split())
    assert f"{place / ID} stays, as {folder.parent / 'clone' / 'config'} includes it" in said
    (folder.parent / "clone" / "config").unlink()
    assert container_config.strange_in(folder) == [] == container_config.remove(folder)
    assert not folder.exists()


def test_what_somebody_has_put_beside_them_is_told_before_it_is_met(folder: Path) -> None:
    (folder.parent / "clone" / "config").unlink()
    (folder / "migrator-include" / "mine").mkdir()
    assert container_config.strange_in(folder) == [folder / "migrator-include"] == container_config.remove(folder)
    assert "mine" in left(folder) and (folder / "config").is_file()


def test_who_gives_up_asks_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is frozen until it has the answer, and another's configuration may be where nothing answers."""
    monkeypatch.setattr(include_copies, "used_by_others", lambda _: pytest.fail("others are asked"))
    place = folder / "migrator-include"
    assert container_config.strange_in(folder, ID) == [place], "another migration's is not its own"
    include_copies.drop(folder, OTHER)
    assert left(folder) == [ID] and container_config.strange_in(folder, ID) == []
    include_copies.drop(folder, OTHER)
    assert left(folder) == [ID]
    assert container_config.remove(folder, ID) == [] and not folder.exists()


def test_what_others_include_is_not_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on a share that does not answer."""
    real, asked = os.path.realpath, set[str]()

    def realpath(path: str) -> str:
        asked.add(str(path))
        return real(path)

    monkeypatch.setattr(os.path, "realpath", realpath)
    includes(folder.with_name("far"), Path("/mnt/share/common.conf"))
    assert list(include_copies.used_by_others(folder)) == [ID]
    assert "/mnt/share/common.conf" not in asked


def test_no_configuration_keeps_anybody_waiting(folder: Path) -> None:
    for name, target in (("fifo", None), ("endless", "/dev/zero")):
        folder.with_name(name).mkdir()
        config = folder.with_name(name) / "config"
        config.symlink_to(target) if target else os.mkfifo(config)
    assert list(include_copies.used_by_others(folder)) == [ID]


def test_what_only_looks_like_it_keeps_nothing(folder: Path) -> None:
    includes(folder.with_name("clone"), folder / "migrator-include", before="# ")
    includes(folder.with_name("web-2"), folder.with_name("web-2") / "migrator-include" / ID / "00-extra.conf")
    (folder.with_name("broken") / "config").mkdir(parents=True)
    assert include_copies.used_by_others(folder) == {}
