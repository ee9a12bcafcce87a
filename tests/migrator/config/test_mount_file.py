# SPDX-License-Identifier: GPL-2.0-or-later
"""The mounts of a file of their own come along, as the host that they come to has no such file."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.config import config_reader, consent, container_config, include_copies, lxc_settings, mount_file

FSTAB = "# made by lxc-create\n\n  proc proc proc nodev,noexec,nosuid 0 0\n\t#sysfs sys sysfs defaults 0 0\n" \
        "/srv/a\\040b srv none bind,create=dir"
ENTRIES = ["proc proc proc nodev,noexec,nosuid 0 0", "/srv/a\\040b srv none bind,create=dir"]


def inlined(text: str, **files: str) -> str:
    """With the files of that name in /, and no others."""
    def read_file(path: str) -> str:
        if path[1:] not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[path[1:]]

    return mount_file.inlined(text, "/config", read_file, lambda _: None)


def mounts(text: str) -> list[tuple[str, str]]:
    return [each for each in config_reader.settings(text) if each[0].startswith("lxc.mount.")]


def entries(*values: str) -> list[tuple[str, str]]:
    return [("lxc.mount.entry", value) for value in values]


@pytest.mark.parametrize(("text", "wanted"), [
    ("lxc.mount.entry = a a tmpfs\n{} = /fstab\n", [*ENTRIES, "a a tmpfs"]),  # LXC mounts these last
    ("lxc.mount.entry = a a tmpfs\n{} = /fstab\nlxc.mount.entry =\nlxc.mount.entry = b b tmpfs", [
        "a a tmpfs", "", "b b tmpfs", *ENTRIES]),  # which are all but the first of those that are an entry
    ("{} = /other\n{} = '/fstab'\n", ENTRIES),
    ("{} = /empty\n", []),
    ("lxc.mount.entry = a a tmpfs\n", ["a a tmpfs"]),
])
def test_its_lines_are_entries(text: str, wanted: list[str]) -> None:
    found = inlined("# web\n" + text.replace("{}", mount_file.KEY), fstab=FSTAB, other="x x tmpfs\n", empty="# no\n")
    assert mounts(found) == entries(*wanted)
    assert "# web\n" in found
    assert inlined(found) == found


@pytest.mark.parametrize("text", [
    "lxc.mount.fstab = /missing\n", "lxc.mount.fstab = fstab\n", "lxc.include = /x.conf\nlxc.mount.fstab = /fstab\n",
    "lxc.include = /x.conf\n", "lxc.mount.fstab =\n", "# lxc.mount.fstab = /fstab\n"])
def test_what_stays_as_it_is(text: str) -> None:
    assert inlined(text, fstab=FSTAB, **{"x.conf": "lxc.mount.fstab = /other\n"}) == text


def test_the_copy_needs_no_such_file(tmp_path: Path) -> None:
    """Be it called otherwise there, where the path may be another one's; nor does its own way home."""
    home, there = tmp_path / "a/web", tmp_path / "b/shop"
    home.mkdir(parents=True)
    (home / "fstab").write_text(FSTAB)
    text = f"lxc.uts.name = web\nlxc.mount.fstab = {home}/fstab\nlxc.rootfs.path = btrfs:{home}/rootfs\n"
    (home / "config").write_text(text)
    carried = container_config.read(home / "config", "web")
    for _ in range(2):
        text, copies = container_config.adopted(carried, there / include_copies.FOLDER, lambda _: True,
                                                rootfs=there / "rootfs", bridges={}, new_name="shop")
        assert mounts(text) == entries(*ENTRIES) and not copies
        carried = container_config.Carried(text, {})
    digest = container_config.read(home / "config", "web").digest
    (home / "fstab").write_text(f"{FSTAB} 0 0\n")
    assert container_config.read(home / "config", "web").digest != digest, "it has changed since it was sent"
    assert (home / "config").read_text().count("lxc.mount.fstab") == 1, "here all is as it was"


@pytest.mark.parametrize(("line", "asks"), [("proc proc proc nodev,noexec,nosuid 0 0", False),
                                            ("/etc etc none bind 0 0", True)])
def test_each_is_judged_as_any_other(line: str, asks: bool) -> None:
    text = inlined("lxc.mount.fstab = /fstab\n", fstab=line)
    assert consent.reaching(text, lambda _: True) == ([f"lxc.mount.entry = {line}"] if asks else [])


def test_what_is_not_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"lxc.mount.fstab = {tmp_path}/fstab\n")
    (tmp_path / "fstab").write_bytes(b"/srv/\xe9 srv none bind\n")
    ((path, fault),) = lxc_settings.read(tmp_path / "config").faults
    assert path == str(tmp_path / "config") and "UTF-8" in fault


def test_what_travels_is_what_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"lxc.mount.fstab = {tmp_path}/fstab\n")
    assert lxc_settings.read(tmp_path / "config").mount_file == f"{tmp_path}/fstab"
    (tmp_path / "fstab").write_text(FSTAB)
    found = lxc_settings.read(tmp_path / "config")
    assert found.mount_file == "" and [each.source for each in found.mounts] == ["proc", "/srv/a b"]
