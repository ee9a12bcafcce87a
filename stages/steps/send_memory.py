# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory images of a frozen container: sent while CRIU is still writing them, as far as that goes, then the rest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from migrator.criu import criu_dump
from migrator.transfer import sender
from migrator.transfer.live_file import POLL, Growing
from migrator.transfer.messages import ImagesTransfer
from migrator.transfer.progress import Progress
from stages.steps import offer
from stages.steps.standstill import Standstill


def send_pages(standstill: Standstill, images: Path, memory: int,
               has_ended: Callable[[], bool]) -> dict[str, sender.TransferResult]:
    """Send memory while CRIU is still dumping: it writes page files one after the other, each from start to end.

    `memory` is how much is expected, in bytes.
    """
    sent: dict[str, sender.TransferResult] = {}
    with standstill.migration.step("pages") as outcome:
        while not has_ended():
            path, next_ = (images / f"pages-{len(sent) + ahead}.img" for ahead in (1, 2))
            if not path.exists():
                standstill.left()
                time.sleep(POLL)
                continue
            growing = partial(Growing, path, partial(_either, has_ended, next_.exists))
            sent[path.name] = standstill.send(
                _asks(standstill, memory),
                lambda stack: [sender.SourceFile(path.name, stack.enter_context(growing()))])  # noqa: B023
        outcome.bytes, outcome.files = sum(each.raw_bytes for each in sent.values()), len(sent)
        outcome.wire = sum(each.wire_bytes for each in sent.values())
        outcome.resumed = sum(each.resumed_bytes for each in sent.values())
    return sent


def send_images(standstill: Standstill, images: Path, early: dict[str, sender.TransferResult]) -> sender.TransferResult:
    """Send all images except the files that were already sent in full."""
    paths = [path for path in criu_dump.image_files(images)
             if path.name not in early or path.stat().st_size != early[path.name].raw_bytes]
    total = sum(path.stat().st_size for path in paths)
    with standstill.migration.step("images") as outcome, contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress("memory", total))
        files = [sender.SourceFile(path.name, path, path.stat().st_size) for path in paths]

        def watch(done: int, resumed: int) -> None:
            standstill.watch(done, resumed)
            progress.update(done, resumed)

        sent = standstill.send(_asks(standstill, total), lambda _stack: files, watch)
        sent.tell(outcome)
    return sent


def _asks(standstill: Standstill, total: int) -> ImagesTransfer:
    return ImagesTransfer(id=standstill.migration.id, attempt=offer.attempt(standstill.migration), bytes=total)


def _either(one: Callable[[], bool], other: Callable[[], bool]) -> bool:
    return one() or other()
