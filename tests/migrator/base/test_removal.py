# SPDX-License-Identifier: GPL-2.0-or-later
"""What is mounted below a folder that goes, or lies in it by another's doing, stays; with real mounts, in a namespace.

Each test body runs in a mount namespace of its own, in which its user is root.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from migrator.base import removal
from migrator.config import container_config, include_copies


def in_namespace(code: str, *args: Path) -> str:
    """What the code says, which has the arguments as `here` and `share`, and `mount`."""
    begin = textwrap.dedent("""\
        import subprocess, sys
        from pathlib import Path
        from migrator.base import removal
        from migrator.config import container_config
        from migrator.record import migration_paths
        from migrator.transfer import received_snapshot
        here, share = map(Path, sys.argv[1:])
        def mount(*words):
            subprocess.run(["mount", *map(str, words)], check=True)
        """)
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c",
                           begin + textwrap.dedent(code), *map(str, args)],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """Somebody's live data, of the very file system that everything else is on."""
    made = tmp_path / "share"
    (made / "below").mkdir(parents=True)
    (made / "below" / "live").write_text("data")
    (made / "live").write_text("data")
    return made


def whole(share: Path) -> bool:
    return (share / "live").read_text() == (share / "below" / "live").read_text() == "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "data" / "deep").mkdir(parents=True)
    (made / "sub").mkdir()
    for name in ("file", "sub/file", "data/file"):
        (made / name).write_text("ours")
    (made / "link").symlink_to("/")
    return made


def test_all_of_a_folder_goes(folder: Path, share: Path) -> None:
    (folder / "sub" / "link").symlink_to(share)
    assert removal.tree(folder) == [] and not folder.exists() and whole(share)
    assert removal.tree(folder) == [], "safe to repeat"
    assert removal.tree(folder / "nowhere" / "at all") == []


@pytest.mark.parametrize("remove", ["removal.tree", "received_snapshot.remove"])
@pytest.mark.parametrize("point", ["data/deep", "data", ""])
def test_no_mount_is_crossed(folder: Path, share: Path, point: str, remove: str) -> None:
    """Not even that on the folder itself; a bind mount has the device of all the rest."""
    said = in_namespace(f"""
        from migrator.host import btrfs
        btrfs.is_subvolume = lambda path: False
        mount("--bind", share, here / {point!r})
        {remove}(here)
        print(sorted(str(path.relative_to(here)) for path in here.rglob("*") if "live" not in path.name))
        """, folder, share)
    assert whole(share)
    if point:
        assert not (folder / "sub").exists() and not (folder / "file").exists() and (folder / point).is_dir(), said


def test_a_file_that_something_is_mounted_on_stays(folder: Path, share: Path) -> None:
    said = in_namespace("""
        mount("--bind", share / "live", here / "sub" / "file")
        print(removal.tree(here))
        """, folder, share)
    assert whole(share) and str(folder / "sub" / "file") in said


def test_images_go_with_the_memory_that_is_mounted_for_them(folder: Path, share: Path) -> None:
    """And what somebody has mounted among them stays."""
    said = in_namespace("""
        mount("-t", "tmpfs", "none", here / "sub")
        (here / "sub" / "image").write_text("memory")
        (here / "sub" / "data").mkdir()
        mount("--bind", share, here / "sub" / "data")
        left = removal.tree(here / "sub", mounted=True)
        print(left, [path.name for path in (here / "sub").iterdir()])
        """, folder, share)
    assert whole(share) and said.strip().endswith("['data']")


def test_a_containers_folder_keeps_what_is_mounted_in_it(tmp_path: Path, share: Path) -> None:
    folder = tmp_path / "web"
    (folder / "data").mkdir(parents=True)
    (folder / include_copies.FOLDER / "0badc0de").mkdir(parents=True)
    container_config.fence(folder, "lxc.uts.name = web\n", "0badc0de", "no")
    said = in_namespace("""
        mount("--bind", share, here / "data")
        print([path.name for path in container_config.remove(here)])
        """, folder, share)
    assert said == "['data']\n" and whole(share)
    assert {path.name for path in folder.iterdir()} > {"config", "data", container_config.FENCE_HOOK}


def test_a_containers_folder_goes_where_all_is_ours(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    (folder / include_copies.FOLDER / "0badc0de").mkdir(parents=True)
    (folder / include_copies.FOLDER / "0badc0de" / "00-x.conf").touch()
    (folder / ".config.new").touch()
    container_config.fence(folder, "lxc.uts.name = web\n", "0badc0de", "no")
    (folder / "rootfs").mkdir()
    assert container_config.strange_in(folder) == [] and container_config.remove(folder) == []
    assert not folder.exists()


# --- a subvolume: the kernel would detach what is mounted in it ----------------------------------------------------


DELETES = """
    from migrator.host import btrfs
    from migrator.errors.data import SnapshotFailed
    class Util:
        class BtrfsUtilError(Exception): ...
        def is_subvolume(self, path): return path == str(asked)
        def delete_subvolume(self, path, recursive): print("deleted", recursive)
    asked = here
    btrfs._pybtrfs = Util
    def delete(path):
        global asked
        asked = path
        for inner in (False, True):
            try:
                btrfs.delete(path, inner=inner)
            except SnapshotFailed as error:
                print(error.fields["reason"])
    """


@pytest.mark.parametrize("point", ["", "sub", "data/deep", "a space"])
def test_no_subvolume_is_deleted_that_something_is_mounted_in(folder: Path, share: Path, point: str) -> None:
    (folder / "a space").mkdir()
    said = in_namespace(textwrap.dedent(DELETES) + textwrap.dedent(f"""
        mount("--bind", share, here / {point!r})
        delete(here)
        """), folder, share)
    assert said == f"it stays, as something is mounted in it: {folder / point}\n" * 2


def test_it_is_found_behind_a_link(folder: Path, share: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    said = in_namespace(textwrap.dedent(DELETES) + textwrap.dedent("""
        mount("--bind", share, here.resolve() / "sub")
        delete(here)
        """), link, share)
    assert "deleted" not in said and str(folder / "sub") in said


def test_what_is_mounted_beside_it_does_not_matter(folder: Path, share: Path) -> None:
    folder.with_name("folder-2").mkdir()
    said = in_namespace(textwrap.dedent(DELETES) + textwrap.dedent("""
        mount("--bind", share, here.with_name("folder-2"))
        delete(here)
        """), folder, share)
    assert said == "deleted False\ndeleted True\n"


@pytest.mark.parametrize(("bound", "at", "point", "seen"), [
    ("", "folder", "sub", True), ("", "folder", "a space", True), ("", "folder", "", True), ("", "", "", False),
    ("folder", "", "data/deep", True), ("folder/data", "", "deep", True), ("", "folder-2", "sub", False)])
def test_it_is_found_where_it_was_mounted_by_another_mount(folder: Path, share: Path, bound: str, at: str, point: str,
                                                           seen: bool) -> None:
    """As with the top of a btrfs mounted beside one of its subvolumes: it hangs on the very same folder."""
    (folder / "a space").mkdir()
    (folder.with_name("folder-2") / "sub").mkdir(parents=True)
    other = folder.with_name("another place")
    other.mkdir()
    said = in_namespace(textwrap.dedent(DELETES) + textwrap.dedent(f"""
        other = here.with_name("another place")
        mount("--bind", here.parent / {bound!r}, other)
        mount("--bind", share, other / {at!r} / {point!r})
        delete(here)
        """), folder, share)
    if seen:
        assert said == f"it stays, as something is mounted in it: {other / at / point}\n" * 2
    else:
        assert said == "deleted False\ndeleted True\n"


def test_of_what_is_not_there_nothing_is_mounted(folder: Path) -> None:
    assert removal.mounts_in(folder / "nowhere") == []
