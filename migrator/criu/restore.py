# SPDX-License-Identifier: GPL-2.0-or-later
"""The restore of a container from CRIU's images, under an LXC monitor: what is prepared for it, and its end.

`lxc-checkpoint -r` starts CRIU and becomes the container's monitor. Options that it does not pass on, CRIU reads from
the file named by $CRIU_CONFIG_FILE.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from migrator.base import bounded_read, log
from migrator.base.run import run
from migrator.config import config_reader, consent, container_config, lxc_settings, mount_file
from migrator.criu import (
    at_restore,
    cgroup_image,
    criu_dump,
    ghosts,
    mount_plan,
    mount_sources,
    own_keyring,
    ran_mark,
    restore_config,
    terminals,
    veths,
)
from migrator.errors.containers import ConfigInvalid, InvalidName
from migrator.errors.memory import RestoreFailed
from migrator.errors.this_host import CommandFailed
from migrator.host import cgroup_limits, device_filter
from migrator.host.lxc import Container
from migrator.record.image_folders import give_images
from migrator.record.migration_paths import Layout
from migrator.transfer import spool

NOTE_LIMIT = cgroup_limits.RECORD_LIMIT
START_CONFIG = "config.start"  # in the spool: for a container that is started anew, without the fence
CONFINED = "its configuration had no rules that keep it from this host's devices, and has them now"


@dataclasses.dataclass(frozen=True)
class Files:
    """What LXC and CRIU are given; in the spool, because /run may be mounted noexec."""

    config: Path  # the container's configuration for this one restore
    criu: Path
    script: Path  # see `at_restore`
    # Where LXC mounts the root file system for CRIU, in a mount namespace of theirs. It is not in any directory that is
    # ever removed with everything in it.
    root: Path

    @classmethod
    def of(cls, layout: Layout) -> Files:
        return cls(layout.spool / "config.restore", layout.spool / "criu.conf", layout.spool / "at-restore",
                   layout.work / f"{layout.id}.root")


def plain_command(name: str, lxcpath: Path, images: Path) -> list[str]:
    """The command that restores a container under an LXC monitor, as one would type it."""
    return ["lxc-checkpoint", "-r", "-n", name, "-P", str(lxcpath), "-D", str(images), "-l", "INFO",
            "-o", str(images / "lxc.log")]


def command(layout: Layout, images: Path) -> list[str]:
    """As `plain_command`, with what `prepare` has made for it."""
    files = Files.of(layout)
    return [*plain_command(layout.name, layout.lxcpath, images), "--rcfile", str(files.config),
            "--action-script", str(files.script)]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` has made or read for a restore."""

    commands: tuple[tuple[str, ...], ...]  # see `at_restore.script`
    links: tuple[veths.Veth, ...]
    terminals: tuple[terminals.Terminal, ...]
    not_taken: str = ""  # in words: what its sender may not have set, see `cgroup_limits.taken`, `CONFINED`


def verify(images: Path, names: Iterable[str]) -> None:
    """Check that the images, those files of the directory, are as they arrived; raises SegmentDamaged, OSError."""
    cgroup_image.put_back(images)  # an earlier restore failed or was killed
    spool.verify(*(images / name for name in names))


def prepare(container: Container, layout: Layout, images: Path,
            making: Callable[[], AbstractContextManager[None]], trusted: bool = True) -> Prepared:
    """Make what a restore from the directory `images` needs beforehand: files, veths. Raises RestoreFailed.

    What it reads may be on a file server that does not answer. So everything is read first, and then everything is
    made, within the context `making`, which raises TimeoutError if that comes too late. A sender that is not `trusted`
    gets no favours for its container, and no device that the container may not open; what other containers have open
    stays open, as with `lxc-cgroup`. It may have been trusted when the container was defined: then what is missing is
    added to the container's own configuration as well.
    """
    path = str(container.config_file)
    files = Files.of(layout)
    try:
        text = container_config.unfenced(config_reader.read_file(path))
        config = lxc_settings.parse(text, path)
        settings = container_config.whole(container.name, container.config_file, text).settings
        added = [] if trusted else consent.confining(settings)
        settings += tuple(config_reader.settings("\n".join(added)))
        links = _links(config, layout)
        container_config.require_rootfs(container.name, container.config_file, text, layout.rootfs)
        ttys = terminals.recorded(_noted(images, terminals.RECORD), lambda id_: _mapped(config, id_))
        adapted = restore_config.text(
            settings, container=container.folder, root=files.root, veths={link.number: link.outside for link in links},
            console=(images / criu_dump.CONSOLE_FILE).exists(), fstab=_fstab(settings), real=os.path.realpath)
        limits = cgroup_limits.configured(settings)
        recorded, dropped = _noted(images, cgroup_limits.RECORD), list[str]()
        if not trusted:
            recorded, dropped = cgroup_limits.taken(recorded)
        version = [value for key, value in settings if key == "lxc.hook.version"][-1:]
        leads = mount_plan.text(config, (files.root, Path(os.path.realpath(layout.rootfs))), images, trusted=trusted)
        deleted = ghosts.plan(images)
        commands = [command for link in links for command in veths.on_its_bridge(
            link, container.name, "".join(version), veths.bridge_setting)]
        with making():
            if added:
                container_config.add(container.folder, added, layout.id)
            clear(layout)
            for name in (at_restore.REASON, at_restore.WARNING, at_restore.LET_GO):
                (images / name).unlink(missing_ok=True)
            files.root.mkdir(mode=0o755)
            _write(files.config, adapted, 0o600)
            _write(images / cgroup_limits.PLAN, cgroup_limits.plan(limits), 0o600)
            _write(images / cgroup_limits.TAKEN, recorded, 0o600)
            _write(images / mount_sources.PLAN, leads, 0o600)
            _write(images / at_restore.NAME, container.name, 0o600)
            _write(images / at_restore.GHOSTS, deleted, 0o600)
            devices = device_filter.program(limits, device_filter.numbers).hex()
            _write(images / at_restore.FILTER, devices, 0o600)
            _write(images / at_restore.EARLY_FILTER, "" if trusted else devices, 0o600)
            give_images(images, criu_dump.image_files(images), _mapped_group(config))
            veths.make(links)
    except (CommandFailed, ConfigInvalid, InvalidName, OSError, ValueError) as error:
        raise RestoreFailed(name=container.name, reason=str(error), log="not there") from error
    return Prepared(tuple(map(tuple, commands)), tuple(links), tuple(ttys), _not_taken(dropped, added))


def _not_taken(dropped: list[str], added: list[str]) -> str:
    favoured = f"its sender may not favour it: {consent.shown(dropped)} is not set" if dropped else ""
    return "; ".join(filter(None, [favoured, CONFINED if added else ""]))


def restore(container: Container, layout: Layout, images: Path, prepared: Prepared, *, limit: float,
            end: float) -> None:
    """Restore a container from CRIU images, after `verify` and `prepare`, within `limit` seconds.

    It is not let run after `end`.

    Raises RestoreFailed or CommandTimeout, in which case processes, cgroups and veths may be left.
    """
    files = Files.of(layout)
    if prepared.not_taken:
        log.warning(f"{container.name}: {prepared.not_taken}")
    try:
        mark = str(ran_mark.mark(layout.spool))
        _write(files.script, at_restore.script(str(images), mark, end, prepared.commands), 0o700)
        _leave_controllers(container, images)
        with terminals.made(prepared.terminals) as ttys:
            made = (link.external for link in prepared.links if link.made)
            _write(files.criu, criu_dump.restore_config([*made, *ttys.criu]), 0o600)
            # When LXC starts a container, it drops all supplementary groups. A task that has none gets none set by
            # CRIU, and would keep those of root here: the group disk, say (restore_creds in criu/pie/restorer.c).
            run(command(layout, images), limit=limit, pass_fds=ttys.descriptors, groups=(),
                within=partial(_own_keyring, container),
                env={"CRIU_CONFIG_FILE": str(files.criu), "TAR_OPTIONS": criu_dump.TAR_OPTIONS})
        if container.state != "RUNNING":
            raise RestoreFailed(name=container.name, reason=f"it is {container.state} after the restore",
                                log=images / "restore.log")
        if warning := at_restore.warning(images):
            log.warning(f"{container.name}: {warning}")
    except CommandFailed as error:
        reason = at_restore.reason(images) or criu_dump.reason(images / "restore.log") or error.fields["output"]
        raise RestoreFailed(name=container.name, reason=reason, log=images / "restore.log") from error


def _own_keyring(container: Container) -> None:
    try:
        own_keyring.join()
    except OSError as error:
        raise RestoreFailed(name=container.name, reason=f"it would have this host's own session keyring: {error}",
                            log="not there") from error


def _leave_controllers(container: Container, images: Path) -> None:
    try:
        if _noted(images, cgroup_limits.CONTROLLERS):
            cgroup_image.leave_controllers(images)
    except (OSError, ValueError) as error:
        raise RestoreFailed(name=container.name, reason=str(error), log="not there") from error


def clear(layout: Layout) -> None:
    """Remove what `prepare` has made, unless a running container has taken it; safe to repeat."""
    veths.remove(layout.id)
    with contextlib.suppress(OSError):
        Files.of(layout).root.rmdir()


def cgroup_folder(layout: Layout) -> str:
    """Where LXC was told to make the cgroups of what was restored, or started, here; "" if it was not told.

    Read from the configuration made for that, because the container's own may be gone.
    """
    for path in (Files.of(layout).config, layout.spool / START_CONFIG):
        with contextlib.suppress(OSError):
            settings = config_reader.read(str(path), config_reader.read_file(str(path))).settings
            return next((value for key, value in reversed(settings) if key == "lxc.cgroup.dir"), "")
    return ""


def complete(container: Container, layout: Layout) -> None:
    """What is done once the container runs; safe to repeat."""
    clear(layout)
    try:
        veths.route(_links(lxc_settings.read(container.config_file), layout))
    except CommandFailed as error:
        log.warning(f"{container.name} runs, but a route of this host to it is missing: {error}")


def _links(config: lxc_settings.Config, layout: Layout) -> list[veths.Veth]:
    return veths.planned(config.nets, layout.id, beforehand=veths.possible(_kernel()))


def _mapped(config: lxc_settings.Config, id_: int) -> bool:
    """Whether an id of this host is root's or one of the container's."""
    return id_ == 0 or any(each.outside <= id_ < each.outside + each.count for each in config.idmaps)


def _mapped_group(config: lxc_settings.Config) -> int:
    """The gid of the container's root on this host: 0 without a user namespace."""
    return next((each.outside for each in config.idmaps if (each.kind, each.inside) == ("g", 0)), 0)


def _fstab(settings: Iterable[tuple[str, str]]) -> str:
    """The text of the file of mounts that a configuration names, "" if it names none or the file does not exist."""
    named = mount_file.named(settings)
    try:
        return config_reader.read_file(named) if named else ""
    except OSError:
        return ""


def _noted(images: Path, name: str) -> str:
    """A note beside the images, sent by another host; empty if an older version did not make it."""
    path = images / name
    return bounded_read.read(path, NOTE_LIMIT).decode(errors="surrogateescape") if path.exists() else ""


def _write(path: Path, text: str, mode: int) -> None:
    """Not durable: after a power cut the images are gone as well, and a container is waiting."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "w", errors="surrogateescape") as file:
        file.write(text)


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(char for char in minor if char.isdecimal()) or 0)
