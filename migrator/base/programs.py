# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the programs of this host are, determined without waiting for a directory in $PATH that never answers.

Starting a program by name asks each directory in $PATH for it, and one on a mount of NFS, SMB or FUSE whose server is
gone blocks that for ever, even if a container is waiting to be thawed. So a directory is waited for only so long, and
only once; and what was found while a container was running is not looked for again while it is frozen.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from migrator.base import bounded_ask, log

# Asked without a thread and a limit: if these do not answer, nothing works on this host.
_SYSTEM = frozenset({"/usr/sbin", "/usr/bin", "/sbin", "/bin"})
_USUAL = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FOR_ROOT = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # ssh and cron leave these out
# What is started, or looked for among the processes, while a container is frozen.
_NEEDED = ("btrfs", "criu", "ip", "lxc-checkpoint", "lxc-freeze", "lxc-start", "lxc-stop", "lxc-unfreeze", "nft",
           "nsenter")

_found: dict[tuple[str, str], list[Path]] = {}  # by $PATH and the program's name; only what was found
_folders = bounded_ask.Asking()


def path() -> str:
    """$PATH, with what root needs, and without the directories that have not answered."""
    # Without a trailing slash.
    folders = [str(Path(folder)) for folder in (os.environ.get("PATH") or _USUAL).split(":")]
    folders += [folder for folder in _FOR_ROOT if folder not in folders]
    return ":".join(folder for folder in folders if folder not in _folders.silent)


def path_of(*programs: str) -> str:
    """Of `path`, the system's directories and those that have one of these programs: for what starts them by name."""
    return _path_of(path(), programs, len(_folders.back))


@functools.cache
def _path_of(within: str, programs: tuple[str, ...], _back: int) -> str:
    having = {str(file.parent) for found in _files(programs, within).values() for file in found}
    return ":".join(folder for folder in within.split(":") if folder in having | _SYSTEM) or within


def learn() -> None:
    """Look for everything that may be needed while a container is frozen."""
    _files(_NEEDED, path())


def find(program: str, within: str | None = None) -> str | None:
    """The file of a program, as execvp(3) finds it in `within` or in `path`, but only in absolute directories.

    None if there is none.
    """
    return next(each_of(program, within), None)


def each_of(program: str, within: str | None = None) -> Iterator[str]:
    """That one, followed by the others of that name, in case it cannot be executed."""
    if "/" in program:
        yield program
        return
    within = path() if within is None else within
    files = _files([program], within)[program]
    there = False
    for file in files:
        if _look([file]):
            there = True
            yield str(file)
    if files and not there:  # it was there and has been moved since, by an upgrade for example
        _found.pop((within, program), None)
        yield from each_of(program, within)


def ids(programs: Sequence[str]) -> set[tuple[int, int]]:
    """Device and inode of each file in `path` that these names can mean."""
    files = [file for found in _files(programs, path()).values() for file in found]
    return {(found.st_dev, found.st_ino) for found in _look(files).values()}


def _files(programs: Sequence[str], within: str) -> dict[str, list[Path]]:
    """All files that each of these names can mean, in the order of `within`."""
    unknown = [program for program in programs if (within, program) not in _found]
    folders = [folder for folder in within.split(":") if folder.startswith("/")]
    there = _look([Path(folder, program) for folder in folders for program in unknown])
    new = {program: [file for file in there if file.name == program] for program in unknown}
    if _folders.silent.isdisjoint(folders):  # otherwise a directory that comes back would be skipped
        _found.update(((within, program), files) for program, files in new.items() if files)
    return {program: new.get(program) or _found.get((within, program), []) for program in programs}


def _look(files: Sequence[Path]) -> dict[Path, os.stat_result]:
    """Those that are programs, in the same order; none in a directory that does not answer."""
    told = {file: _stat(file) for file in files if str(file.parent) in _SYSTEM}
    asked = [file for file in files if file not in told]
    while asked := [file for file in asked if str(file.parent) not in _folders.silent]:
        answers = _folders.answers([(str(file.parent), functools.partial(_stat, file)) for file in asked])
        told.update(zip(asked, answers, strict=False))
        if len(answers) < len(asked):
            log.warning(f"{asked[len(answers)].parent}, a folder of $PATH, does not respond: programs are searched for "
                        "without it")
        asked = asked[len(answers):]
    return {file: found for file in files if (found := told.get(file))}


def _stat(file: Path) -> os.stat_result | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) and found.st_mode & 0o111 else None
