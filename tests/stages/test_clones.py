# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones that are overlays on a copy's root file system (lxc-copy -s): they are no longer what they were without it."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.config import container_config
from migrator.copies import origins
from migrator.errors import MigratorError
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from migrator.record.states import Role
from stages import cleanup
from stages.steps import finish_here, moved_copy, put_away
from stages.steps.cleaner import Cleaner
from tests.stages.earlier_stays import ARRIVED, CONFIG, ID, LATER, LEFT, begun, clean, journal, put_aside, stands, state  # noqa: F401 -- fixtures

# As LXC writes it, and its older versions, and what each means.
LISTED = {"/var/lib/lxc\nclone\n": True, "2\n": True, "0\n": False, "": False, None: False}
listed = pytest.mark.parametrize(("text", "some"), LISTED.items(), ids=repr)


def counted(layout: Layout, text: str | None) -> Path:
    layout.container.mkdir(parents=True, exist_ok=True)
    if text is not None:
        (layout.container / "lxc_snapshots").write_text(text)
    return layout.container / "lxc_snapshots"


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("way", ["cleanup NAME", "--undefine-source"])
@listed
def test_cleanup_leaves_what_they_lie_on(journal: Journal, tmp_path: Path, text: str | None, some: bool, way: str,
                                         capfd: pytest.CaptureFixture[str]) -> None:
    went = begun(journal, tmp_path, Role.SOURCE, *LEFT)
    here = stands(tmp_path)
    note = counted(here, text)
    for dry_run in (True, False):
        cleaner = Cleaner(dry_run=dry_run)
        if way == "cleanup NAME":
            cleanup.clean_container(cleaner, journal, "web", tmp_path, keep_copy=False)
        else:
            moved_copy.clean_moved(cleaner, went)
        assert (cleaner.removed == []) is some
    assert (f"clones depend on it, see {note}" in " ".join(capfd.readouterr().err.split())) is some
    assert (here.rootfs / "written").exists() is some
    assert (here.container / "config").is_file() is (text is not None), "with that file it stays"


@pytest.mark.usefixtures("state")
@listed
def test_nothing_takes_the_place_of_what_they_lie_on(journal: Journal, tmp_path: Path, text: str | None,
                                                     some: bool) -> None:
    """It is refused before anything is sent: an overlay does not follow what is moved away under it."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    counted(stands(tmp_path), text)
    comes = Layout(tmp_path, "web", LATER)
    if not some:
        origins.refuse_foreign(journal, comes, ID, renamed=False)
        return
    with pytest.raises(MigratorError) as raised:
        origins.refuse_foreign(journal, comes, ID, renamed=False)
    assert raised.value.code() == "has-clones" and "--new-name" in raised.value.hint


@listed
def test_nor_where_they_were_made_since(journal: Journal, tmp_path: Path, state: SimpleNamespace, text: str | None,
                                        some: bool) -> None:
    here = stands(tmp_path)
    comes = Layout(tmp_path, "web", LATER)
    put_away.keep_old(comes)
    container_config.fence(here.container, CONFIG, LATER, "no")
    counted(here, text)
    if not some:
        put_away.put_rootfs_aside(comes)
        assert (comes.old / "rootfs" / "written").exists()
        return
    with pytest.raises(MigratorError) as raised:
        put_away.put_rootfs_aside(comes)
    assert raised.value.code() == "has-clones" and (here.rootfs / "written").exists()


@pytest.mark.usefixtures("state")
@listed
def test_what_an_older_version_has_put_aside_under_them_is_kept(journal: Journal, tmp_path: Path, text: str | None,
                                                                some: bool) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    here = put_aside(tmp_path, came)
    note = counted(here, text)
    for _ in range(2):
        finish_here.end_here(came)
        assert (here.old / "rootfs" / "written").exists() is some and (here.old / "config").is_file() is some
    clean(journal, tmp_path)
    assert here.old.exists() is some
    note.unlink(missing_ok=True)
    clean(journal, tmp_path)
    assert not here.old.exists()
