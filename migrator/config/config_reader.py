# SPDX-License-Identifier: GPL-2.0-or-later
"""A container's configuration as liblxc reads it: line by line, with included files in their place.

The rules are those of parse_line, set_config_includefiles and do_includedir in src/lxc/confile.c (LXC 6 and 7). Both
`check`, which says whether a configuration can be carried over, and `prepare-data`, which carries it, read it here, so
that they cannot differ. liblxc is not used: the other host's containers are read the same way, and tests need no LXC.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from migrator.base import names
from migrator.errors.containers import InvalidName

SIZE_LIMIT = 1 << 20  # bytes, of a configuration and everything that it includes
INCLUDE_LIMIT = 64  # files
READS_LIMIT = 1000  # a file that is included twice is read twice
INCLUDE = "lxc.include"

_LINE_ENDS = re.compile(r"\r\n|[\r\n\0]")
_INTERFACE = re.compile(r"lxc\.net\.\d+\.(link|name|veth\.pair)")


def lines(text: str) -> list[str]:
    """The lines as LXC splits them (lxc_file_for_each_line_mmap in src/lxc/parse.c), not as str.splitlines does."""
    return _LINE_ENDS.split(text)


def setting(line: str) -> tuple[str, str] | None:
    """The key and the value that a line sets; None for a comment, an empty line, and what is not LXC's."""
    key, equals, value = line.strip(" \t").partition("=")
    if not equals or not key.startswith("lxc."):
        return None
    value = value.strip(" \t")
    if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]:
        value = value[1:-1]
    return key.rstrip(" \t"), value


def settings(text: str) -> list[tuple[str, str]]:
    """All settings that LXC reads in a text, including `lxc.include`; for LXC it ends at its first zero byte.

    There it is a C string, which strtok_r(3) takes apart.
    """
    return [found for found in map(setting, lines(text.partition("\0")[0])) if found]


def included(text: str) -> list[str]:
    """What a text includes, each once; an empty value includes nothing."""
    return list(dict.fromkeys(value for key, value in settings(text) if key == INCLUDE and value))


def is_interface(name: str) -> bool:
    """Whether an interface may be given this name: on its host the name becomes part of paths below /sys and /proc."""
    try:
        return bool(names.inside_interface(names.cut_interface(name)))
    except (InvalidName, UnicodeEncodeError):
        return False


def read_file(path: str) -> str:
    """A file's text, cut off one byte past SIZE_LIMIT; bytes that are not UTF-8 become surrogates. Raises OSError."""
    if Path(path).is_dir():
        return ""  # one called x.conf in an included directory: LXC treats it as an empty file
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO without a writer is empty
    with os.fdopen(fd, "rb") as file:
        return (file.read(SIZE_LIMIT + 1) or b"").decode(errors="surrogateescape")


def list_folder(path: str) -> list[str] | None:
    """The files that LXC reads if `path` is included as a directory; None if it takes it for a file. Raises OSError.

    A directory that does not exist counts as empty if it is written with a trailing slash. The order is that of
    readdir(3), which is not sorted.
    """
    if not (path.endswith("/") or Path(path).is_dir()):
        return None
    try:
        names = os.listdir(path)  # noqa: PTH208 -- in the kernel's order
    except FileNotFoundError:
        return []
    return [f"{path.rstrip('/')}/{name}" for name in names if name.endswith(".conf") and name != ".conf"]


def digest(text: str) -> str:
    """Changes with any byte of a file."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Reading:
    """The result of reading a configuration."""

    settings: tuple[tuple[str, str], ...]  # without `lxc.include`, in the order in which LXC meets them
    includes: dict[str, str]  # the text of each included file, by path
    by: dict[str, str]  # by the same path: what `lxc.include` named, the file itself or its directory
    # What LXC refuses, or what cannot be carried over: the file, and what is wrong with it.
    faults: tuple[tuple[str, str], ...]

    def certain(self, text: str) -> tuple[tuple[str, str], ...]:
        """What LXC ends up with, whatever else it reads that was not read here.

        If there are faults, that is only what comes after the last inclusion in `text`, the configuration's own.
        """
        if not self.faults:
            return self.settings
        own = list(settings(text))
        return tuple(own[max((at + 1 for at, (key, _) in enumerate(own) if key == INCLUDE), default=0):])


def read(path: str, text: str, read_file: Callable[[str], str] = read_file,
         list_folder: Callable[[str], list[str] | None] = list_folder) -> Reading:
    """Read a configuration whose own text, that of the file `path`, is already known."""
    walk = _Walk(read_file, list_folder)
    walk.weigh(path, text)
    walk.text(path, text, ())
    return Reading(tuple(walk.settings), walk.includes, walk.by, tuple(walk.faults))


class _Walk:
    def __init__(self, read_file: Callable[[str], str], list_folder: Callable[[str], list[str] | None]) -> None:
        self._read_file = read_file
        self._list_folder = list_folder
        self.settings: list[tuple[str, str]] = []
        self.includes: dict[str, str] = {}
        self.by: dict[str, str] = {}
        self.faults: dict[tuple[str, str], None] = {}
        self._left = READS_LIMIT
        self._size = 0

    def text(self, path: str, text: str, within: tuple[str, ...]) -> None:
        for key, value in settings(text):
            if key != INCLUDE:
                self.settings.append((key, value))
                if value and _INTERFACE.fullmatch(key) and not is_interface(value):
                    self._fault(path, f"has {key} = {value[:40]!r}, which is not a valid interface name")
            elif value:
                self._include(value, (*within, path))

    def weigh(self, path: str, text: str) -> None:
        data = text.encode(errors="surrogateescape")
        self._size += len(data)
        if self._size > SIZE_LIMIT:
            self._fault(path, f"makes it larger than {SIZE_LIMIT} bytes")
        if b"\0" in data:
            self._fault(path, "has a zero byte, after which LXC ignores the rest")
        if not _is_utf8(data):
            self._fault(path, "is not UTF-8 text")

    def _include(self, value: str, within: tuple[str, ...]) -> None:
        try:
            files = self._list_folder(value)
        except (OSError, ValueError) as error:
            self._fault(value, f"cannot be read: {_reason(error)}")
            return
        for path in [value] if files is None else files:
            self.by.setdefault(path, value)
            self._file(path, within)

    def _file(self, path: str, within: tuple[str, ...]) -> None:
        self._left -= 1
        if path in within:
            self._fault(path, "includes itself")
        elif self._left < 0:
            self._fault(within[0], f"includes files more than {READS_LIMIT} times")
        elif path not in self.includes and len(self.includes) >= INCLUDE_LIMIT:
            self._fault(within[0], f"includes more than {INCLUDE_LIMIT} files")
        elif path in self.includes:
            self.text(path, self.includes[path], within)
        else:
            try:
                text = self._read_file(path)
            except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
                self._fault(path, f"cannot be read: {_reason(error)}")
                return
            self.weigh(path, text)
            self.includes[path] = text
            self.text(path, text, within)

    def _fault(self, path: str, what: str) -> None:
        self.faults[path, what] = None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
