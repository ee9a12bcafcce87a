# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made ready for CRIU, and what of an earlier attempt goes first."""

from __future__ import annotations

import contextlib
import math
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from migrator.base import log
from migrator.config import config_reader, consent, container_config
from migrator.criu import at_restore, ghost_paths, pressure_triggers, restore, veths
from migrator.errors.memory import RestoreFailed
from migrator.host import cgroups, lxc
from migrator.record import image_folders
from migrator.record.migration_paths import Layout
from tests.migrator.criu.ghost_images import made, regular, remap
from tests.migrator.device_rules import RULES, TAKEN_BACK
from tests.migrator.mount_images import HEAD, entry

ID = "0badc0de"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(veths, "remove", lambda _: None)
    found = Layout(tmp_path, "web", ID)
    found.make_folder()
    found.spool.mkdir()
    found.container.mkdir()
    found.image_folders()[0].mkdir(parents=True)
    defined(found)
    return found


def defined(here: Layout, more: str = "", fence: str = ID) -> None:
    text = f"lxc.uts.name = web\n{more}lxc.rootfs.path = btrfs:{here.rootfs}\n"
    container_config.fence(here.container, text, fence, "it is being moved here")


def prepare(here: Layout, *, trusted: bool = True) -> restore.Prepared:
    container = SimpleNamespace(name="web", config_file=here.container / "config", folder=here.container)
    return restore.prepare(cast("lxc.Container", container), here, here.image_folders()[0], contextlib.nullcontext,
                           trusted)


def test_what_an_earlier_attempt_has_said_goes(here: Layout) -> None:
    """Its images are there for another one: that CRIU had let go of what ran then says nothing of what comes."""
    images = here.image_folders()[0]
    for name in (at_restore.REASON, at_restore.WARNING, at_restore.LET_GO):
        (images / name).write_text("of an earlier one")
    prepare(here)
    assert not at_restore.has_let_go(images) and at_restore.reason(images) == at_restore.warning(images) == ""
    assert restore.Files.of(here).config.exists()


@pytest.mark.parametrize("trusted", [True, False])
def test_what_would_be_made_of_this_hosts_folders_is_not_begun(here: Layout, trusted: bool) -> None:
    """The container's root has mounted an overlay: whoever sends it, CRIU would take the paths for this host's."""
    (here.image_folders()[0] / "mountpoints-11.img").write_bytes(HEAD + entry(17, "./mnt"))
    with pytest.raises(RestoreFailed, match="/mnt in it is a mount of the type overlay"):
        prepare(here, trusted=trusted)
    assert not restore.Files.of(here).config.exists()


@pytest.mark.parametrize("trusted", [True, False])
def test_what_was_deleted_is_looked_at(here: Layout, trusted: bool) -> None:
    images = made(here.image_folders()[0], [remap(1, 1, 1)], [regular(1, "/a/b")], {1: stat.S_IFREG})
    prepare(here, trusted=trusted)
    assert (images / at_restore.GHOSTS).read_text() == ghost_paths.line(7, ghost_paths.FILE, 0, "/a/b")
    (images / "files.img").write_bytes(b"nonsense")
    with pytest.raises(RestoreFailed, match="is not a CRIU image"):
        prepare(here, trusted=trusted)


@pytest.mark.parametrize("more", ["", TAKEN_BACK, "lxc.cgroup2.devices.deny = a\n", f"{RULES}lxc.cgroup2 =\n"])
@pytest.mark.parametrize("newline", [True, False])
def test_what_is_not_trusted_any_more_is_confined(here: Layout, more: str, newline: bool) -> None:
    """It was when it was defined: so its configuration has no rules that keep this host's devices from it."""
    defined(here, more)
    config, images = here.container / "config", here.image_folders()[0]
    if not newline:  # somebody has edited it
        text = container_config.unfenced(config.read_text()).rstrip("\n")
        config.write_text(container_config.fenced(text, here.container / container_config.FENCE_HOOK, ID).rstrip("\n"))
    said = prepare(here, trusted=False).not_taken
    filters = [(images / name).read_text() for name in (at_restore.FILTER, at_restore.EARLY_FILTER)]
    assert filters[0] and filters[0] == filters[1] and said == restore.CONFINED
    assert container_config.fence_of(config.read_text()) == ID
    own = config_reader.read(str(config), container_config.unfenced(config.read_text())).settings
    assert consent.confining(own) == [] and ("lxc.uts.name", "web") in own, "nor may its next start open them"
    assert container_config.rootfs_of(own) == f"btrfs:{here.rootfs}"
    given = restore.Files.of(here).config
    assert consent.confining(config_reader.read(str(given), given.read_text()).settings) == []
    before = config.read_text()
    assert not prepare(here, trusted=False).not_taken and config.read_text() == before, "once is enough"


@pytest.mark.parametrize(("more", "trusted"), [(TAKEN_BACK, True), (RULES, False)])
def test_what_may_come_as_it_is_stays_so(here: Layout, more: str, trusted: bool) -> None:
    defined(here, more)
    before = (here.container / "config").read_bytes()
    assert not prepare(here, trusted=trusted).not_taken
    assert (here.container / "config").read_bytes() == before
    assert bool((here.image_folders()[0] / at_restore.EARLY_FILTER).read_text()) is not trusted


def test_what_stands_in_its_place_is_not_changed(here: Layout) -> None:
    """Somebody has put another container there meanwhile."""
    defined(here, fence="00000001")
    before = (here.container / "config").read_bytes()
    with pytest.raises(RestoreFailed, match="not fenced by migration"):
        prepare(here, trusted=False)
    assert (here.container / "config").read_bytes() == before


@pytest.mark.parametrize("trusted", [True, False])
def test_what_lxc_would_read_further_than_we_do_is_not_restored(here: Layout, trusted: bool) -> None:
    """It would take the rules for devices back in what we have not read."""
    last = here.folder / "userns.conf"
    last.write_text("lxc.cgroup2.devices.deny =\nlxc.cgroup2.devices.allow =\n")
    include = f"lxc.include = {last}\n"
    defined(here, include * config_reader.READS_LIMIT + RULES + include)
    before = (here.container / "config").read_bytes()
    with pytest.raises(RestoreFailed, match="includes files more than 1000 times"):
        prepare(here, trusted=trusted)
    assert (here.container / "config").read_bytes() == before
    assert not (here.image_folders()[0] / at_restore.FILTER).exists()


@pytest.mark.parametrize("trusted", [True, False])
def test_a_bridge_is_no_path(here: Layout, trusted: bool) -> None:
    """Its stream has brought a link, and the configuration leads to it; a version before this one has defined it so."""
    (here.folder / "x").mkdir()
    (here.folder / "secret").write_text("identity\n")
    (here.folder / "x" / "mtu").symlink_to(here.folder / "secret")
    defined(here, f"{RULES}lxc.net.0.type = veth\nlxc.net.0.link = {here.folder}/x\n")
    with pytest.raises(RestoreFailed, match=r"lxc\.net\.0\.link") as refused:
        prepare(here, trusted=trusted)
    assert "identity" not in str(refused.value) and not restore.Files.of(here).config.exists()


def restored(here: Layout, monkeypatch: pytest.MonkeyPatch, untold: str) -> list[str]:
    """What is said once CRIU has restored a container whose processes are `untold` of something."""
    images, warned = here.image_folders()[0], list[str]()

    def run(*_: object, **__: object) -> None:
        at_restore.pressure(str(images), 1)

    (images / pressure_triggers.RECORD).write_text("1 7 some 1 2000000\n")
    monkeypatch.setattr(pressure_triggers, "write_again", lambda *_: untold)
    monkeypatch.setattr(cgroups, "processes", lambda _: [1])
    monkeypatch.setattr(at_restore, "_cgroup", lambda *_: "/sys/fs/cgroup/lxc.payload.web")
    monkeypatch.setattr(restore, "run", run)
    monkeypatch.setattr(log, "warning", warned.append)
    container = SimpleNamespace(name="web", state="RUNNING")
    restore.restore(cast("lxc.Container", container), here, images, restore.Prepared((), (), ()), limit=9, end=math.inf)
    return warned


def test_what_it_went_without_is_said(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the action script writes to its stderr is in CRIU's log, which nobody reads once all went well."""
    assert restored(here, monkeypatch, "the process 7 is not told") == ["web: the process 7 is not told"]
    (here.image_folders()[0] / at_restore.WARNING).unlink()
    assert restored(here, monkeypatch, "") == []


def test_a_warning_that_cannot_be_written_is_no_failure(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may be full."""
    (here.image_folders()[0] / at_restore.WARNING).symlink_to("/dev/full")
    restored(here, monkeypatch, "the process 7 is not told")
