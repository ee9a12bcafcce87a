# SPDX-License-Identifier: GPL-2.0-or-later
"""Work in threads that is waited for only so long, however it hangs (on a file server that is gone, say).

A thread cannot be killed. So an abandoned one does not keep the program from exiting, and must not create anything any
more behind the back of whoever cleans up.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Beside:
    """Use it in a `with` statement: from the end of the block on, nothing is created any more.

    `left` returns how many seconds anything may still take, and raises if there are none.
    """

    def __init__(self, left: Callable[[], float]) -> None:
        self._left = left
        self._making = threading.Lock()
        self._over = False

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None,
                 _trace: TracebackType | None) -> None:
        with self._making:
            self._over = True

    def begin(self, work: Callable[..., T], *args: Any) -> Callable[[], T]:
        """Begin the work; the function returned waits for its result, and raises what it raises, or what `left` does.
        """
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(work(*args))
            except BaseException as error:
                future.set_exception(error)

        def wait() -> T:
            while not future.done():
                with contextlib.suppress(TimeoutError):  # then `left` raises
                    future.exception(self._left())
            return future.result()

        threading.Thread(target=do, name=f"migrator-{work.__name__}", daemon=True).start()
        return wait

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Wrap what a piece of work creates: short, and with limits of its own. Raises TimeoutError after the end."""
        with self._making:
            if self._over:
                raise TimeoutError("nobody is waiting for it any more")
            yield
