# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination that is asked directly, with all that it keeps in a folder of the test's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from migrator.config import container_config
from migrator.copies import origins
from migrator.record import container_lock, image_folders
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from migrator.remote.answering import Service
from migrator.transfer import segments
from migrator.transfer.rpc import Takeover
from stages import serve
from stages.steps.standstill import INCREMENT

ID = "0badc0de"
UUID = "01234567-89ab-cdef-0123-456789abcdef"


class Destination:
    """A host that answers, with everything that it keeps in a folder of the test's."""

    def __init__(self, journal: Journal, stack: contextlib.ExitStack, pool: Path) -> None:
        self.journal = journal
        self.pool = pool
        self.service = Service(journal, stack)
        self.layout = Layout(pool, "web", ID)

    def ask(self, op: str, **fields: Any) -> Any:
        """The answer to a request, with the fields that an honest source would send."""
        honest = {
            "id": ID, "name": "web", "lxcpath": str(self.pool), "lxcpath_given": False, "source_host": "hosta",
            "source_lxcpath": "/pool", "destination": "root@hostb", "config": "lxc.uts.name = web\n", "includes": {},
            "bridges": {}, "disk_bytes": 1000, "mapped_root": 0, "round": 1, "uuid": UUID, "bytes": 1000,
            "attempt": 1, "dad": {},
        }
        answer = serve.handlers(self.service)[op](honest | fields)
        if isinstance(answer, Takeover) and op != "own":
            return answer
        return json.loads(msgspec.json.encode(answer.reply if isinstance(answer, Takeover) else answer))

    def imported(self) -> None:
        """The first round has arrived and the container is defined; without a disk."""
        self.take(Event.RECEIVED, Event.IMPORT, Event.IMPORTED)
        self.layout.container.mkdir()
        container_config.fence(self.layout.container, "lxc.uts.name = web\n", ID, "it is being moved here")

    @property
    def state(self) -> State | None:
        found = self.journal.by_id(ID, Role.DESTINATION)
        return found.state if found else None

    def take(self, *events: Event) -> None:
        """Bring the migration on without doing what the events stand for."""
        migration = self.journal.by_id(ID, Role.DESTINATION)
        assert migration
        for event in events:
            migration.move(event)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    # Locks go beside them.
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "run" / "lock")
    monkeypatch.setattr(origins, "_lives", lambda _: False)  # LXC is not asked: no copy here is at work
    (tmp_path / "pool").mkdir()
    return tmp_path / "pool"


@pytest.fixture
def there(pool: Path) -> Iterator[Destination]:
    with contextlib.ExitStack() as stack:
        made = Destination(stack.enter_context(Journal(pool.parent / "journal.db")), stack, pool)
        stack.callback(made.layout.drop_images)
        yield made


def at_the_dump(there: Destination, attempt: int = 1) -> None:
    there.ask("begin")
    there.imported()
    there.ask("dump-begin", attempt=attempt)


def arrives(there: Destination) -> None:
    """A dump, as small as one can be."""
    images = there.layout.image_folders()[0]
    image_folders.make_images(images, 0)
    for path in (there.layout.spool / INCREMENT, images / "core-1.img"):
        path.write_bytes(b"")
        path.with_name(path.name + segments.INDEX_SUFFIX).write_bytes(segments.last_line(segments.whole([])))
