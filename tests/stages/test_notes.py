# SPDX-License-Identifier: GPL-2.0-or-later
"""What travels beside CRIU's images: no larger than the destination takes it."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.criu import at_restore, criu_dump, dump_notes, mount_flags, restore
from migrator.errors.memory import DumpFailed
from migrator.host import cgroup_limits, cgroups, mount_tables, network
from migrator.record import image_folders, migration_paths
from stages.steps import dump

LIMIT = 1000


@pytest.fixture
def dumping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dump.Dump:
    found = dump.Dump.__new__(dump.Dump)
    found.container = SimpleNamespace(name="web", lxcpath=tmp_path)  # type: ignore[assignment]
    found.cgroup, found.pid, found.terminals, found.ports, found.images = tmp_path / "cgroup", 1, [], [], tmp_path
    found.migration = SimpleNamespace(id="0badc0de")  # type: ignore[assignment]
    found.standstill = SimpleNamespace(  # type: ignore[assignment]
        layout=migration_paths.Layout(tmp_path, "web", "0badc0de"))
    found.facts = SimpleNamespace(memory=1 << 20)  # type: ignore[assignment]
    monkeypatch.setattr(criu_dump, "NOTE_LIMIT", LIMIT)
    monkeypatch.setattr(mount_flags, "record", lambda _: "1 ro /lib\n")
    monkeypatch.setattr(network, "silence_command", lambda *_: [])
    return found


def made(*_: object) -> None:
    raise EOFError("the images folder is made")


def test_the_destination_takes_as_much() -> None:
    assert min(restore.NOTE_LIMIT, cgroups.RECORD_LIMIT, cgroup_limits.RECORD_LIMIT,
                                  mount_flags.RECORD_LIMIT) >= criu_dump.NOTE_LIMIT


def test_too_large_a_record_is_found_before_it_stands_still(dumping: dump.Dump,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "provide_images", made)
    monkeypatch.setattr(mount_flags, "record", lambda _: "x" * (LIMIT + 1))
    with pytest.raises(DumpFailed, match=mount_flags.RECORD):
        dumping.prepare()
    monkeypatch.setattr(mount_flags, "record", lambda _: "x" * LIMIT)
    with pytest.raises(EOFError):
        dumping.prepare()


def test_a_process_that_ends_meanwhile_is_no_reason(dumping: dump.Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mounts cannot be read then (mounts_open_common in the kernel's fs/proc_namespace.c)."""
    def ends(_: object) -> str:
        raise OSError(errno.EINVAL, "it ends")

    monkeypatch.setattr(image_folders, "provide_images", made)
    monkeypatch.setattr(mount_flags, "record", ends)
    with pytest.raises(EOFError):
        dumping.prepare()


def test_one_that_has_grown_since_fails_the_dump(dumping: dump.Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_flags, "record", lambda _: "é" * LIMIT)
    with pytest.raises(DumpFailed, match="larger"):
        dump_notes.write(dumping.images, dumping._notes())
    assert not (dumping.images / mount_flags.RECORD).exists()


def test_what_is_no_text_comes_back_as_it_was(dumping: dump.Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    target = "/\udcff\u00e9"
    monkeypatch.setattr(mount_flags, "record", lambda _: f"1 ro {target}\n")
    dump_notes.write(dumping.images, dumping._notes())
    assert (dumping.images / mount_flags.RECORD).read_bytes() == b"1 ro /\xff\xc3\xa9\n"
    assert at_restore.noted(str(dumping.images), mount_flags.RECORD, LIMIT) == f"1 ro {target}\n"


def test_more_mounts_than_are_read_fail_the_dump(dumping: dump.Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    def grown(_: object) -> str:
        raise mount_tables.TooManyMounts("more is mounted")

    monkeypatch.setattr(mount_flags, "record", grown)
    with pytest.raises(DumpFailed, match="could not dump web: more is mounted"):
        dumping._notes()
    with pytest.raises(DumpFailed, match="could not dump web: more is mounted"):
        dumping.prepare()
