# SPDX-License-Identifier: GPL-2.0-or-later
"""An interface's name has room for four bytes of a session's id, which the initiator chooses: one session has it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from migrator.base.process_id import Process
from tests.tunnel.interfaces import ALL, DEAD, SESSION, FakeBackend, Keys, Links, Path_, links, removed  # noqa: F401 -- fixtures
from tunnel.identity import private_files
from tunnel.interface import device, leftovers
from tunnel.interface.leftovers import Record
from tunnel.tunnel_errors import InterfaceFailed, LeftoversRemain, TunnelFileUnusable, WireGuardFailed

LIKE = SESSION[:4] + bytes(12)  # another session, whose interface would have the same name


def test_two_sessions_at_once_do_not_undo_each_other(links: Links, removed: list[str]) -> None:  # noqa: F811
    """Both look whether the name is free before either has made anything."""
    async def run() -> None:
        backends = FakeBackend(), FakeBackend()
        found = await asyncio.gather(
            *(device.up(Keys(session), Path_(), "responder", backend=backend)
              for session, backend in zip((SESSION, LIKE), backends, strict=True)), return_exceptions=True,
        )
        (made,) = (each for each in found if isinstance(each, device.Interface))
        (refused,) = (each for each in found if isinstance(each, BaseException))
        assert isinstance(refused, InterfaceFailed) and "already has a tunnel" in str(refused)
        assert removed == ALL, "once, by the one that has it, before it began"
        assert [each.session for each in leftovers.records()] == [made.record.session]
        assert sum("create mig-00010203 40002" in backend.told for backend in backends) == 1
        await made.close()
        assert leftovers.records() == []

    asyncio.run(run())


@pytest.mark.parametrize("fails", [False, True], ids=["that stands", "that is undone"])
def test_who_is_refused_touches_nothing(fails: bool, links: Links, removed: list[str]) -> None:  # noqa: F811
    """Not while the other one is being made, either; and a name is free again once all of its tunnel has gone."""
    hold = threading.Event()
    backend = FakeBackend(fail=WireGuardFailed(name="mig-00010203", reason="no tun") if fails else None, hold=hold)

    async def run() -> None:
        making = asyncio.ensure_future(device.up(Keys(), Path_(), "responder", backend=backend))
        while not backend.told:
            await asyncio.sleep(0.002)
        removed.clear()
        with pytest.raises(InterfaceFailed, match="already has a tunnel"):
            await device.up(Keys(LIKE), Path_(), "responder", backend=FakeBackend())
        assert removed == []
        assert [each.session for each in leftovers.records()] == [SESSION]
        hold.set()
        (made,) = await asyncio.gather(making, return_exceptions=True)
        if isinstance(made, device.Interface):
            await made.close()
        later = await device.up(Keys(LIKE), Path_(), "responder", backend=FakeBackend())
        removed.clear()
        if isinstance(made, device.Interface):
            await made.close()  # once more: there is nothing of its own left
        assert removed == []
        await later.close()
        assert removed == ALL

    asyncio.run(run())


def test_remains_of_a_dead_session_of_that_name_are_not_swept_later(links: Links, removed: list[str]) -> None:  # noqa: F811
    """They go before the name is used: their record would have a sweep remove the interface of the living one."""
    Record(LIKE, "userspace", DEAD).write()

    async def run() -> None:
        made = await device.up(Keys(), Path_(), "responder", backend=FakeBackend())
        assert removed == ALL
        assert [each.session for each in leftovers.records()] == [SESSION]
        assert leftovers.sweep() == [] and removed == ALL
        await made.close()

    asyncio.run(run())


def test_a_sweep_spares_a_name_that_lives(removed: list[str]) -> None:  # noqa: F811
    """Where what was left could not be removed before, its record is still there."""
    Record(LIKE, "userspace", DEAD).write()
    Record(SESSION, "userspace", Process.current()).write()
    assert leftovers.sweep() == [] and removed == []
    leftovers.remove(Record(SESSION, "userspace", Process.current()))
    removed.clear()
    assert leftovers.sweep() == ["mig-00010203"] and removed == ALL


def test_what_cannot_be_swept_is_left_to_the_next_sweep(removed: list[str],  # noqa: F811
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever process: this one does not keep the record for its own."""
    Record(LIKE, "userspace", DEAD).write()
    (left,) = leftovers.records()
    with monkeypatch.context() as patch:
        patch.setattr("tunnel.interface.firewall.remove", refuse)
        with pytest.raises(LeftoversRemain, match="no nft today"):
            leftovers.sweep()
    assert leftovers.records() == [left]
    with monkeypatch.context() as patch:  # a file system that takes nothing
        patch.setattr(leftovers, "write_private", refuse)
        with pytest.raises(LeftoversRemain, match="no nft today"):
            leftovers.sweep()
    removed.clear()
    assert leftovers.sweep() == ["mig-00010203"] and removed == ALL


def refuse(*_: object, **__: object) -> None:
    raise TunnelFileUnusable(path="a file", reason="no nft today", fix="")


@pytest.mark.parametrize("what", ["claims it", "removes the folder"])
def test_what_who_has_the_lock_does_is_waited_for(what: str, removed: list[str]) -> None:  # noqa: F811
    """The lock is the folder of the records; one that was removed meanwhile is not the one that others lock now."""
    mine, theirs = (Record(each, "userspace", Process.current()) for each in (SESSION, LIKE))
    claimed: list[bool] = []
    asking = threading.Thread(target=lambda: claimed.append(leftovers.claim(theirs)))
    with private_files.folder_locked(leftovers.RUN):
        asking.start()
        waiter = f":{leftovers.RUN.stat().st_ino} "
        while not any("->" in line and waiter in line for line in Path("/proc/locks").read_text().splitlines()):
            time.sleep(0.002)
        assert claimed == []
        if what == "claims it":
            mine.write()
        else:
            leftovers.RUN.rmdir()
    asking.join()
    assert claimed == [what == "removes the folder"]
    assert [each.session for each in leftovers.records()] == [LIKE if claimed[0] else SESSION]
    leftovers.remove(theirs if claimed[0] else mine)
    assert not os.path.lexists(leftovers.RUN)


def test_a_claim_where_nobody_may_write_says_so(removed: list[str], tmp_path: Path,  # noqa: F811
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(leftovers, "RUN", tmp_path / "file" / "tunnel")
    with pytest.raises(TunnelFileUnusable):
        leftovers.claim(Record(SESSION, "userspace", Process.current()))
