# SPDX-License-Identifier: GPL-2.0-or-later
"""A container's configuration file: carried to the other host, rewritten for it, and fenced against being started.

Pure functions of text as far as possible. The file's own order and comments are kept (lxc.container.conf(5)).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from migrator.base import durable, names, removal
from migrator.config import config_reader, include_copies, mount_file
from migrator.errors.containers import ConfigInvalid

FENCE_BEGIN = "# BEGIN migrator fence"
FENCE_END = "# END migrator fence"
FENCE_HOOK = "migrator-fence"  # in the container's directory
SUPERSEDED = "To remove this copy:"  # in a fence's message: the container lives on elsewhere
# Also in the message, followed by the uuid, because records get forgotten.
DISK = "Its root file system is the subvolume"
ROOTFS = "lxc.rootfs.path"
FAULTS_SHOWN = 1000  # characters
LINKS = 8  # symlinks that a configuration may be behind

_FENCE = re.compile(rf"\n?{FENCE_BEGIN}((?!{FENCE_BEGIN}).)*?{FENCE_END}\n?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Carried:
    """A configuration in transit: the file's text, and the text of each file that it includes, by path."""

    text: str
    includes: dict[str, str]

    @property
    def digest(self) -> str:
        """Changes with any byte of it."""
        parts = [self.text, *(f"{path}\0{text}" for path, text in sorted(self.includes.items()))]
        return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()


def read(config_file: Path, name: str) -> Carried:
    """The configuration without our fence, with its `mount_file`, and what it includes; raises ConfigInvalid."""
    try:
        text = mount_file.inlined(unfenced(config_reader.read_file(str(config_file))), str(config_file))
    except OSError as error:
        raise ConfigInvalid(name=name, reason=f"{config_file} cannot be read: {error.strerror}") from error
    return Carried(text, whole(name, config_file, text).includes)


def whole(name: str, config_file: Path, text: str, copies: Mapping[Path, str] | None = None) -> config_reader.Reading:
    """Everything LXC reads with this text of `config_file`; raises ConfigInvalid if that cannot be determined.

    LXC has no limits and would take what is beyond ours into account. `copies` are files that are going to be there.
    """
    def read_file(path: str) -> str:
        return copies[Path(path)] if copies and Path(path) in copies else config_reader.read_file(path)

    reading = config_reader.read(str(config_file), text, read_file)
    if reading.faults:
        reason = "; ".join(f"{path} {what}" for path, what in reading.faults)
        raise ConfigInvalid(name=name, reason=reason[:FAULTS_SHOWN])
    return reading


def adopted(carried: Carried, folder: Path, there: Callable[[str], bool], *, rootfs: Path,
            bridges: Mapping[str, str], new_name: str = "", added: Iterable[str] = ()) -> tuple[str, dict[Path, str]]:
    """The configuration for this host, and the copies in `folder` of what it includes and is not `there`.

    A copied file may include others that this host lacks, and a directory is replaced by a file that includes the
    directory's files one by one: so their order is preserved, which a directory's is not guaranteed to be. Otherwise as
    in `rewritten`. The root file system is always `rootfs`, whatever any of these files says. The lines `added` come
    before it, at the end.
    """
    copies: dict[str, str] = {}
    texts: dict[str, str] = {}
    waiting = [carried.text]
    while waiting:
        for value in config_reader.included(waiting.pop()):
            if value in copies or there(value):
                continue
            text = carried.includes.get(value)
            if text is None:
                inside = [path for path in carried.includes if posixpath.dirname(path) == value.rstrip("/")]
                if not inside and value.endswith("/"):
                    continue  # LXC treats that as an empty directory
                text = "".join(f"{config_reader.INCLUDE} = {path}\n" for path in inside)
            base = re.sub(r"^\d\d-", "", posixpath.basename(value.rstrip("/")))
            copies[value] = str(folder / f"{len(copies):02d}-{base[:100]}")
            texts[copies[value]] = text
            waiting.append(text)
    own = rewritten(carried.text, bridges=bridges, includes=copies, new_name=new_name)
    last = [*added, f"{ROOTFS} = {_storage(carried)}{rootfs}", ""]  # at the end, so that no include overrides it
    return (own + "\n".join(last),
            {Path(path): rewritten(text, bridges=bridges, includes=copies) for path, text in texts.items()})


def _storage(carried: Carried) -> str:
    """What precedes the root file system's path on the source: `btrfs:`, `dir:` or nothing."""

    def inside(folder: str) -> list[str] | None:
        return None if folder in carried.includes else [
            path for path in carried.includes if posixpath.dirname(path) == folder.rstrip("/")]

    read = config_reader.read("", carried.text, lambda path: carried.includes.get(path, ""), inside)
    found = re.match(r"(btrfs:|dir:)/", rootfs_of(read.settings))
    return found[1] if found else ""


def rootfs_of(settings: Iterable[tuple[str, str]]) -> str:
    """The root file system that LXC uses: the last one named. "" for the host's own."""
    return next((value for key, value in reversed(list(settings)) if key == ROOTFS), "")


def rootfs_elsewhere(config: Path, rootfs: Path) -> str:
    """The root file system that a configuration names, as written; "" if that is `rootfs` or none is named."""
    found = rootfs_of(config_reader.read(str(config), text_of(config)).settings)
    return found if found and os.path.realpath(_plain(found)) != os.path.realpath(rootfs) else ""


def require_rootfs(name: str, config_file: Path, text: str, rootfs: Path) -> None:
    """Raise ConfigInvalid unless a configuration has exactly this root file system: without one, LXC uses the host's.
    """
    found = rootfs_of(config_reader.read(str(config_file), text).settings)
    if _plain(found) != str(rootfs):
        raise ConfigInvalid(name=name, reason=f"its root file system is {found or 'that of the host'}, not {rootfs}")


def _plain(rootfs: str) -> str:
    """The directory, without LXC's storage prefix."""
    return re.sub(r"^(btrfs|dir):(?=/)", "", rootfs)


def rewritten(text: str, *, bridges: Mapping[str, str], includes: Mapping[str, str], new_name: str = "") -> str:
    """The text of a configuration for another host, without a root file system, which `adopted` adds.

    `bridges` maps bridge names here to those there, and `includes` maps included paths that the other host lacks to the
    copies that travel along. A `new_name` becomes its host name at the next start, as with lxc-copy (do_lxcapi_clone in
    src/lxc/lxccontainer.c). Remains of a fence are removed: removing them later could turn a comment into other lines.
    """
    lines = []
    for line in config_reader.lines(text.removesuffix("\n")):
        key, value = config_reader.setting(line) or ("", "")
        if new_name and key in ("lxc.uts.name", "lxc.utsname"):
            continue
        if key == ROOTFS or FENCE_BEGIN in line or FENCE_END in line:
            continue
        if re.fullmatch(r"lxc\.net\.\d+\.link", key) and (bridge := bridges.get(names.cut_interface(value))):
            line = f"{key} = {bridge}"
        elif key == config_reader.INCLUDE and value in includes:
            line = f"{key} = {includes[value]}"
        lines.append(line)
    if new_name:
        lines.append(f"lxc.uts.name = {new_name}")  # at the end, so that no include overrides it
    return "".join(f"{line}\n" for line in lines)


def unfenced(text: str) -> str:
    """The configuration without our fence, byte for byte as before; also without that of an older version."""

    def instead(fence: re.Match[str]) -> str:
        begin, end = fence.span()
        between = begin > 0 and end < len(text) and text[begin - 1] != "\n" and text[end] != "\0"
        return "\n" if between else ""  # someone has added lines after it

    return _FENCE.sub(instead, text)


def fenced(text: str, hook: Path, migration: str) -> str:
    """The configuration with a fence: no start at boot, and a hook that refuses every other start.

    When a start is refused, nothing of the container's own happens. LXC runs hooks in the order of the configuration,
    and an empty value cancels those before it; after a pre-start hook has failed, LXC still runs the hooks for the end,
    and destroys what is ephemeral (__lxc_start and lxc_end in liblxc's start.c). So the fence comes after everything
    that LXC reads (`config_reader.settings`), and cancels all of that.
    """
    lines = [f"{FENCE_BEGIN} ({migration})", "lxc.start.auto = 0", "lxc.ephemeral = 0",
             *(f"{key} =" for key in ("lxc.hook.pre-start", "lxc.hook.stop", "lxc.hook.post-stop")),
             f"lxc.hook.pre-start = {hook}", FENCE_END]
    read, zero, rest = unfenced(text).partition("\0")
    return "\n".join([read, *lines, ""]) + zero + rest


def fence_of(text: str) -> str:
    """The id of the migration that fenced this configuration, or ""; the last fence counts."""
    found = re.findall(rf"{FENCE_BEGIN} \(([0-9a-f]+)\)", text)
    return found[-1] if found else ""


def text_of(config: Path) -> str:
    """A configuration, byte for byte, for `write_file`; raises OSError."""
    return config.read_bytes().decode(errors="surrogateescape")


def fence(folder: Path, text: str, migration: str, message: str, *, place: Path | None = None) -> None:
    """Write a container's configuration so that it cannot be started, with `message` for whoever tries.

    `place` is where the directory will be, if it is not there yet.

    It is the container's own configuration that is fenced: to restore or start it for this migration, LXC is given
    another one to read (`restore`, `no_memory`). So the fence can stay until the container runs, and a crash before
    that leaves nothing that could be started.
    """
    hook = folder / FENCE_HOOK
    quoted = message.replace("'", "'\\''")
    # LXC shows a hook's output only in its log, so the message also goes to the stderr of lxc-start itself.
    script = (f"#!/bin/sh\n# lxc.hook.pre-start, see migrator(1)\n"
              f"printf '%s\\n' '{quoted}'\n"
              f"printf '%s\\n' '{quoted}' 2>/dev/null >>/proc/$PPID/fd/2\nexit 1\n")
    write_file(hook, script, mode=0o755)
    write_file(folder / "config", fenced(text, (place or folder) / FENCE_HOOK, migration))


def add(folder: Path, lines: Iterable[str], migration: str) -> None:
    """Add lines to what `migration` has fenced; the fence stays. Raises ConfigInvalid if it is someone else's."""
    text = text_of(folder / "config")
    if fence_of(text) != migration:
        raise ConfigInvalid(name=folder.name, reason=f"it is not fenced by migration {migration}")
    own = unfenced(text)
    end = "" if own.endswith("\n") else "\n"
    write_file(folder / "config", fenced(own + end + "\n".join(lines), folder / FENCE_HOOK, migration))


def unfence(folder: Path, migration: str) -> None:
    """Allow a container to be started again, if it is there and it was `migration` that fenced it."""
    config = folder / "config"
    if not config.is_file():
        return
    text = text_of(config)
    if fence_of(text) == migration:
        write_file(config, unfenced(text))
        (folder / FENCE_HOOK).unlink(missing_ok=True)


def is_superseded(folder: Path) -> bool:
    """Whether the fence says that the container lives on elsewhere."""
    hook = folder / FENCE_HOOK
    return hook.is_file() and SUPERSEDED in hook.read_text(errors="replace")


def disk_of(folder: Path) -> str:
    """The uuid of the root file system that the fence in this directory was written for; "" if it does not say."""
    hook = folder / FENCE_HOOK
    found = re.search(rf"{DISK} ([0-9a-f-]{{36}})", hook.read_text(errors="replace")) if hook.is_file() else None
    return found[1] if found else ""


def strange_in(folder: Path, given_up: str = "") -> list[Path]:
    """What in a container's directory was not made by migrator and is not the place of its root file system.

    Or was made by migrator, but is used by others. `given_up` as in `include_copies.are_strange`.
    """
    own = {"config", FENCE_HOOK, "rootfs", *map(_temporary, ("config", FENCE_HOOK))}
    if not include_copies.are_strange(folder, given_up):
        own.add(include_copies.FOLDER)
    return sorted(path for path in folder.iterdir() if path.name not in own)


def remove(folder: Path, given_up: str = "") -> list[Path]:
    """Remove a container's directory without its root file system: what is ours in it, and itself if nothing else is.

    Returns what is left, after a warning. If anything is, the configuration stays too, with its fence and what it
    includes: by that, the next cleanup and the next move to here know whose directory it is. This does not apply to a
    migration that is `given_up`: all of its own goes.
    """
    if given_up:
        include_copies.drop(folder, given_up)
    elif strange := strange_in(folder):
        include_copies.tell_used(folder)
        removal.tell(strange)
        return strange
    else:
        include_copies.drop_unused(folder)
    with contextlib.suppress(OSError):
        (folder / "rootfs").rmdir()
    own = [folder / name for name in (_temporary(FENCE_HOOK), _temporary("config"), FENCE_HOOK, "config")]
    left = sorted(set(folder.iterdir()) - set(own))
    if given_up or not left:
        for path in own:
            path.unlink(missing_ok=True)
    if left:
        removal.tell(left)
    else:
        folder.rmdir()
    return left


def _temporary(name: str) -> str:
    """The name of a file while it is being written."""
    return f".{name}.new"


def _target(path: Path) -> Path:
    """The file that a symlink leads to, if only root can have made that link or can put another file there.

    So not through the container's root file system, where the container's own root makes links. Otherwise the path
    itself.
    """
    inside, hop = Path(os.path.realpath(path.parent / "rootfs")), path
    for _ in range(LINKS):
        if not hop.is_symlink():
            return hop if hop.is_file() else path
        link = hop.lstat()
        place = Path(os.path.realpath((hop.parent / hop.readlink()).parent))
        if link.st_uid != os.geteuid() or place.is_relative_to(inside) or not place.is_dir():
            return path
        folder = place.stat()
        if folder.st_uid != os.geteuid() or folder.st_mode & 0o022:
            return path
        hop = place / hop.readlink().name
    return path


def write_file(path: Path, text: str, *, mode: int | None = None) -> None:
    """Replace a file as a whole and durably: a reader sees the old text or the new one.

    Without `mode` (permission bits), the old file's mode and owner are kept; a new one gets 0644. If the administrator
    has put a symlink there, as configuration management does, the link stays and its target is replaced.
    """
    old, temporary = None, path.with_name(_temporary(path.name))
    if mode is None:
        if (target := _target(path)) != path:
            path, temporary = target, target.with_name(f".{target.name}.migrator")
        old = path.stat() if path.exists() else None
        mode = stat.S_IMODE(old.st_mode) if old else 0o644
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        if old and not path.is_symlink():
            with contextlib.suppress(OSError):  # an owner that root of this host cannot set
                os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, mode)
        file.write(text)
        durable.flush(file)
    durable.replace(temporary, path)
