# SPDX-License-Identifier: GPL-2.0-or-later
"""What a spool promises before the first byte: limits, room, no links, nothing left open; and when it is `done`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.errors.connection import ProtocolError
from migrator.errors.data import NoSpace
from migrator.errors.this_host import Busy
from migrator.transfer import room_bounds, spool
from migrator.transfer.frames import SEGMENT_MAX, Kind
from migrator.transfer.messages import FILES_MAX
from migrator.transfer.segments import INDEX_SUFFIX
from tests.migrator.transfer.spools import WHOLE, sent
from tests.migrator.wire import connected, listed


def descriptors() -> set[str]:
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{path.name} {path.readlink()}")
        except FileNotFoundError:
            continue  # the one of this very listing
    return found


@pytest.mark.parametrize("more", [{}, {"durable": True}, {"durable": False}], ids=["unsaid", "durable", "not"])
def test_each_segment_is_synced_unless_it_is_said_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            more: dict[str, Any]) -> None:
    synced: list[str] = []
    sync = os.fdatasync

    def note(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", note)
    handlers = {"transfer": lambda fields: spool.receive(tmp_path, listed(fields["files"]), **more)}
    with connected(handlers) as (connection, _):
        request = connection.request("transfer", {"files": [{"name": "disk-1"}]})
        connection.answer(request)
        for kind, body, flags in WHOLE[:2]:
            connection.send(kind, body, flags=flags)
        assert connection.receive().kind is Kind.ACK
        acknowledged = list(synced)
        connection.send(*WHOLE[2][:2])
        connection.send(Kind.END)
        while connection.receive().kind is Kind.ACK:
            pass
    assert ("disk-1" in acknowledged) is more.get("durable", True) and "disk-1" in synced


@pytest.mark.parametrize("end", [Kind.END, Kind.ABORT])
def test_it_is_done_when_all_has_arrived(tmp_path: Path, end: Kind) -> None:
    """And nothing is open any more then, or locked."""
    handlers = {"transfer": lambda fields: spool.receive(tmp_path, listed(fields["files"]))}
    with connected(handlers) as (connection, _):
        before = descriptors()
        answer = sent(connection, *WHOLE, end=end)
        assert descriptors() == before
    with spool._lock(tmp_path):
        pass
    if end is Kind.ABORT:
        assert answer == {"aborted": True}
    else:
        assert answer["files"]["disk-1"]["bytes"] == 4


@pytest.mark.parametrize(("names", "what"), [(["disk-1"], "disk-1"), (["a", "b"], "the data"),
                                             (["a", "b", "c"], "the data")])
def test_who_lacks_room_is_told_for_what(tmp_path: Path, names: list[str], what: str) -> None:
    files = listed([{"name": name, "size": 1 << 58} for name in names])
    before = descriptors()
    with pytest.raises(NoSpace) as full:
        spool.receive(tmp_path, files)
    assert full.value.fields["what"] == what
    assert descriptors() == before, "also while somebody still has the error"
    with spool._lock(tmp_path):
        pass


def test_what_is_here_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[int] = []
    monkeypatch.setattr(spool, "check_space", lambda folder, size, *, what: needed.append(size))
    takeover = spool.receive(tmp_path, listed([{"name": "a", "size": 7}, {"name": "b", "size": 5}, {"name": "c"}]))
    assert needed == [12]
    with pytest.raises(Busy):
        spool.receive(tmp_path, listed([{"name": "a"}]))
    del takeover


@pytest.mark.parametrize(("size", "good"), [
    (None, True), (0, True), ((1 << 60) - 1, True), (1 << 60, False), (-1, False), (1.0, False),
])
def test_sizes_that_may_be(size: object, good: bool) -> None:
    if good:
        assert [(each.name, each.size) for each in listed([{"name": "a", "size": size}])] == [("a", size)]
        return
    with pytest.raises(ProtocolError, match=r"files\[0\].size"):
        listed([{"name": "a", "size": size}])


def test_as_many_files_as_may_be() -> None:
    files = [{"name": f"a{number}"} for number in range(FILES_MAX)]
    assert len(listed(files)) == FILES_MAX
    with pytest.raises(ProtocolError, match=f"length <= {FILES_MAX}"):
        listed([*files, {"name": "b"}])


def test_as_many_files_as_may_be_over_all_transfers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the name of each would be recorded in the end, however many transfers have brought them."""
    assert spool.FOLDER_MAX >= 2 * FILES_MAX, "after its pages, all the rest of a dump comes at once"
    monkeypatch.setattr(spool, "FOLDER_MAX", 3)
    for name in ("a", "b"):
        for suffix in ("", INDEX_SUFFIX):
            (tmp_path / f"{name}{suffix}").touch()
    for names in (["a", "b"], ["c"], ["b", "c"]):
        spool.receive(tmp_path, listed([{"name": name} for name in names]))
    before = descriptors()
    with pytest.raises(ProtocolError, match="more than 3 files in all"):
        spool.receive(tmp_path, listed([{"name": "c"}, {"name": "d"}]))
    assert descriptors() == before
    with spool._lock(tmp_path):
        pass


@pytest.mark.parametrize("to", ["elsewhere", "nowhere"])
def test_no_link_is_taken_for_the_lock(tmp_path: Path, to: str) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / spool.LOCK_NAME).symlink_to(to)
    with pytest.raises(OSError, match="symbolic links"):
        spool.receive(tmp_path, listed([{"name": "disk-1"}]))
    assert (tmp_path / "elsewhere").read_text() == "precious" and not (tmp_path / "nowhere").exists()


def test_no_link_is_taken_for_the_spool(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool").symlink_to("elsewhere")
    with pytest.raises(NotADirectoryError):
        spool.receive(tmp_path / "spool", listed([{"name": "disk-1"}]))


@pytest.mark.parametrize(("free", "fits"), [(room_bounds.MARGIN + 102, True), (room_bounds.MARGIN + 101, False)])
def test_a_fiftieth_and_a_margin_stay_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int,
                                           fits: bool) -> None:
    class Found:
        f_bavail, f_frsize = free, 1

    monkeypatch.setattr(os, "statvfs", lambda _: Found)
    check: Callable[[], None] = lambda: spool.check_space(tmp_path, 100)  # noqa: E731
    if fits:
        check()
        return
    with pytest.raises(NoSpace) as full:
        check()
    assert full.value.fields["what"] == "the data" and full.value.fields["where"] == tmp_path


def test_how_much_is_there(tmp_path: Path) -> None:
    assert spool.size_of(tmp_path / "nowhere") == 0
    (tmp_path / "disk-1").write_bytes(bytes(SEGMENT_MAX + 1))
    (tmp_path / "disk-1.index").write_bytes(bytes(76))
    assert spool.size_of(tmp_path) == SEGMENT_MAX + 77
