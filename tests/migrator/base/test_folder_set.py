# SPDX-License-Identifier: GPL-2.0-or-later
"""Which paths are below others: as a look at each pair would tell, and without one."""

from __future__ import annotations

import time
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from migrator.base.folder_set import FolderSet, tops

PATHS = st.lists(st.sampled_from(["a", "b", "a\x01", "a!", "aa", "\udcff"]),
                 max_size=4).map(lambda names: f"/{'/'.join(names)}")


def below(path: str, folder: str) -> bool:
    return folder == "/" or path == folder or path.startswith(f"{folder}/")


@given(st.lists(PATHS), PATHS)
def test_as_each_pair_tells(folders: list[str], path: str) -> None:
    assert FolderSet(folders).holds(path) is any(below(path, folder) for folder in folders)
    assert sorted(tops(folders)) == sorted(
        {folder for folder in folders if not any(below(folder, other) for other in folders if other != folder)})


def test_what_is_no_path_is_in_the_root_alone() -> None:
    """As the root of a mount of a namespace."""
    assert FolderSet(["/"]).holds("net:[1]") and not FolderSet(["/a"]).holds("net:[1]")


def test_what_only_looks_like_a_folder() -> None:
    """What comes from another host may be written in any way."""
    for folder in ("//", "/a/"):
        assert not FolderSet([folder]).holds("/a/b") and not FolderSet([folder]).holds("/a")


def test_as_many_and_as_deep_as_anybody_likes() -> None:
    deep = "/a" * 100_000
    many = [f"/srv/{number}/x" for number in range(100_000)]
    begun = time.process_time()
    tracemalloc.start()
    try:
        found = FolderSet([deep, *many])
        assert all(found.holds(f"{path}/y") for path in (deep, *many)) and not found.holds("/srv")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 20
