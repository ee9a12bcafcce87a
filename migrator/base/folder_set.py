# SPDX-License-Identifier: GPL-2.0-or-later
"""Which paths are below others, told without a look at each pair, nor at each folder on the way.

What a container has mounted is up to its root: 100,000 mounts, or one below 10,000 folders. Whoever compared each path
with all others, or made a list of all folders on the way to it, would take hours or gigabytes for that.

`at_restore` imports this module while a container is down, so it imports little itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def tops(paths: Iterable[str]) -> list[str]:
    """Those of some paths that are below no other of them, in an order that `FolderSet` relies on."""
    found: list[str] = []
    above = None
    for path in sorted(set(paths), key=_key):
        if above is None or not _is_below(_key(path), above):
            found.append(path)
            above = _key(path)
    return found


class FolderSet:
    """Folders, and whether a path is one of them or below one."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._keys = [_key(path) for path in tops(paths)]

    def holds(self, path: str) -> bool:
        import bisect

        key = _key(path)
        before = bisect.bisect_right(self._keys, key)
        return before > 0 and _is_below(key, self._keys[before - 1])


def _key(path: str) -> str:
    """By this, all that is below a folder comes right after it: no character of a name is less than a zero byte."""
    return "" if path == "/" else path.replace("/", "\0")


def _is_below(key: str, above: str) -> bool:
    return above in ("", key) or key.startswith(above + "\0")  # "" is the root directory's
