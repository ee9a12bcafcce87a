# SPDX-License-Identifier: GPL-2.0-or-later
"""A container of the same name that is somebody else's: whatever is asked for, it stays as it is."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.config import container_config
from migrator.copies import make_room
from migrator.copies.origins import Whose, whose
from migrator.errors import UsageError
from migrator.errors.containers import ContainerExists, OutOfOrder
from migrator.errors.memory import DumpRefused
from migrator.errors.this_host import Busy
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout, locked
from migrator.record.states import Event, Role, State
from migrator.remote.answering import Service
from stages.steps import abandon, import_round
from tests.stages.answering import ID, Destination, arrives, at_the_dump, pool, there  # noqa: F401 -- fixtures
from tests.stages.asks import abandons

CONFIG = "lxc.uts.name = web\nlxc.rootfs.path = btrfs:/pool/web/rootfs\n"
# Events after which each of these has come to the place where the container is put.
NOTHING_YET = ((), (Event.RECEIVED,), (Event.RECEIVED, Event.IMPORT))


def lives(there: Destination, *, half_made: bool = False) -> dict[Path, str]:
    """A stranger's container, as lxc-create makes one; what is in it."""
    (there.layout.rootfs / "srv").mkdir(parents=True)
    (there.layout.rootfs / "srv" / "precious").write_text("years of work")
    if not half_made:
        (there.layout.container / "config").write_text(CONFIG)
    return content(there.layout.container)


def content(folder: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


def record(there: Destination) -> Migration:
    found = there.journal.by_id(ID, Role.DESTINATION)
    assert found
    return found


@pytest.mark.parametrize("half_made", [False, True])
@pytest.mark.parametrize("events", NOTHING_YET)
def test_one_that_was_made_meanwhile_survives_the_rollback(there: Destination, events: tuple[Event, ...],
                                                           half_made: bool) -> None:
    there.ask("begin")
    there.take(*events)
    before = lives(there, half_made=half_made)
    for _ in range(2):
        assert there.ask("abandon")["state"] == State.ABANDONED
        assert content(there.layout.container) == before


def test_it_is_not_taken_over(there: Destination) -> None:
    there.ask("begin")
    before = lives(there)
    with pytest.raises(ContainerExists):
        import_round.define(record(there), there.layout)
    assert content(there.layout.container) == before
    with pytest.raises(ContainerExists):
        there.ask("begin")


def test_it_may_come_at_the_very_moment(there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the look, before ours is put there."""
    there.ask("begin")
    before: dict[Path, str] = {}
    honest = container_config.fence

    def fence(*args: object, **more: object) -> None:
        honest(*args, **more)  # type: ignore[arg-type]
        before.update(lives(there))

    monkeypatch.setattr(container_config, "fence", fence)
    with pytest.raises(ContainerExists):
        import_round.define(record(there), there.layout)
    assert content(there.layout.container) == before
    there.ask("abandon")
    assert content(there.layout.container) == before
    assert not there.layout.folder.exists()


def test_one_in_the_place_of_ours_is_left_alone(there: Destination) -> None:
    """Ours was destroyed by hand, and another one made."""
    there.ask("begin")
    there.imported()
    assert whose(there.layout) is Whose.OURS
    shutil.rmtree(there.layout.container)
    before = lives(there)
    with pytest.raises(ContainerExists):  # before anything is frozen for it
        there.ask("dump-begin")
    there.ask("abandon")
    assert content(there.layout.container) == before


@pytest.mark.parametrize("made", [False, True])
def test_the_token_is_not_taken_for_what_is_gone(there: Destination, made: bool) -> None:
    at_the_dump(there)
    arrives(there)
    shutil.rmtree(there.layout.container)
    before = lives(there) if made else {}
    with pytest.raises(DumpRefused):
        there.ask("own")
    assert there.state is State.IMPORTED
    assert content(there.layout.container) == before


def test_one_that_was_removed_is_sent_again(there: Destination) -> None:
    there.ask("begin")
    there.imported()
    shutil.rmtree(there.layout.container)
    with pytest.raises(OutOfOrder, match="was removed"):
        there.ask("dump-begin")
    assert there.state is State.RECEIVING


def test_ours_goes_and_nothing_is_left(there: Destination) -> None:
    there.ask("begin")
    import_round.define(record(there), there.layout)
    import_round.define(record(there), there.layout)  # with each round
    assert (there.layout.container / "config").is_file()
    assert str(there.layout.container / container_config.FENCE_HOOK) in (there.layout.container / "config").read_text()
    there.ask("abandon")
    assert not there.layout.container.exists() and not there.layout.folder.parent.exists()


# --- an attempt that this host has never heard of -------------------------------------------------------------


def test_nothing_is_removed_for_it(there: Destination) -> None:
    before = lives(there)
    assert there.ask("abandon")["state"] == State.ABANDONED
    assert content(there.layout.container) == before


def test_it_does_not_hide_the_one_that_is_under_way(there: Destination) -> None:
    there.ask("begin")
    there.ask("abandon", id="00000001")
    found = there.journal.latest("web", there.pool)
    assert found and found.id == ID
    assert [each.id for each in there.journal.all()] == [ID]
    with pytest.raises(Exception, match="has ended"):
        there.ask("begin", id="00000001")


def test_nobody_is_kept_off_a_container_for_it(there: Destination) -> None:
    """Nor does it wait for who works on that one: it has nothing to do with it."""
    with locked("web", lxcpath=there.pool):
        for _ in range(2):
            assert there.ask("abandon", id="00000001")["known"] is False
    for request in ("abandon", "state", "own"):
        with contextlib.suppress(DumpRefused):
            there.ask(request, id="00000001")
        with locked("web", lxcpath=there.pool):
            pass


def test_one_that_is_just_beginning_does_not(there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has been looked for, and is not recorded yet, when the source gives it up over another connection."""
    honest = make_room.check_space

    def check_space(*args: Any, **fields: Any) -> None:
        with contextlib.ExitStack() as stack, Journal(there.journal.path) as journal:
            asked = abandons(lxcpath=str(there.pool))
            assert abandon.abandon(Service(journal, stack), asked).known is False
        honest(*args, **fields)

    monkeypatch.setattr(make_room, "check_space", check_space)
    with pytest.raises(UsageError, match="has ended"):
        there.ask("begin")
    assert there.state is State.ABANDONED
    assert not there.layout.folder.exists()
    with locked("web", lxcpath=there.pool):
        pass


def test_one_that_has_just_begun_is_given_up_as_any(there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked for in vain, and is recorded by the time that this would be: by whoever has the container."""
    honest = Service.refuse_crowds
    stack = contextlib.ExitStack()

    def refuse_crowds(service: Service) -> None:
        honest(service)
        if service is there.service:
            other = Destination(stack.enter_context(Journal(there.journal.path)), stack, there.pool)
            other.ask("begin")

    monkeypatch.setattr(Service, "refuse_crowds", refuse_crowds)
    with stack:
        with pytest.raises(Busy):
            there.ask("abandon")
        assert record(there).state is State.RECEIVING
    assert there.ask("abandon") | {"ticket": ""} == {"state": State.ABANDONED, "kept": "", "known": True, "ticket": ""}


def test_a_few_are_remembered(there: Destination) -> None:
    for number in range(60):
        there.ask("abandon", id=f"{number:08x}")
    there.ask("begin")
    known = [there.journal.by_id(f"{number:08x}", Role.DESTINATION) for number in range(60)]
    assert all(known[-20:]) and not any(known[:30])


# --- the earlier stay's copy ----------------------------------------------------------------------------------


def stayed(there: Destination) -> dict[Path, str]:
    """The fenced copy of an earlier stay."""
    (there.layout.container).mkdir()
    container_config.fence(there.layout.container, CONFIG, "00000009", "it has moved")
    return content(there.layout.container)


@pytest.fixture
def crashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Each file that is written may be the last one: the number of writes that succeed."""
    left = [1 << 30]
    honest = container_config.write_file

    def write_file(path: Path, text: str, *, mode: int | None = None) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        honest(path, text, mode=mode)

    monkeypatch.setattr(container_config, "write_file", write_file)
    yield left


@pytest.mark.parametrize("at_define", range(6))
@pytest.mark.parametrize("at_return", range(4))
def test_it_comes_back_whole_after_any_crash(there: Destination, crashes: list[int], at_define: int,
                                             at_return: int) -> None:
    before = stayed(there)
    there.ask("begin")
    crashes[0] = at_define
    with contextlib.suppress(KeyboardInterrupt):
        import_round.define(record(there), there.layout)
    crashes[0] = at_return
    with contextlib.suppress(KeyboardInterrupt):
        there.ask("abandon")
    crashes[0] = 1 << 30
    there.ask("abandon")
    assert content(there.layout.container) == before
    assert not there.layout.folder.exists()


def test_whose_it_is(there: Destination) -> None:
    here = Layout(there.pool, "web", ID)
    assert whose(here) is Whose.NOBODYS
    here.container.mkdir()
    assert whose(here) is Whose.FOREIGN, "somebody is about to make one"
    (here.container / "config").write_text(CONFIG)
    assert whose(here) is Whose.FOREIGN
    for id_, expected in ((ID, Whose.OURS), ("00000009", Whose.COPY)):
        container_config.fence(here.container, CONFIG, id_, "no")
        assert whose(here) is expected
