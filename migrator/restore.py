# SPDX-License-Identifier: GPL-2.0-or-later
"""The restore of a container from CRIU's images, under a monitor of LXC's own: what is made ready for it, and its end.

`lxc-checkpoint -r` starts CRIU and becomes the container's monitor. What it does not pass on, CRIU reads from the file
that $CRIU_CONFIG_FILE names.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from migrator import at_restore, config_reader, container_config, criu, log, restore_config, veths
from migrator.errors import CommandFailed, RestoreFailed
from migrator.layout import Layout
from migrator.lxc import Container
from migrator.preflight import config_facts
from migrator.run import run


@dataclasses.dataclass(frozen=True)
class Files:
    """What LXC and CRIU are given to read; in the spool, as /run may be mounted noexec."""

    config: Path  # the container's configuration for this once
    criu: Path
    script: Path  # see `at_restore`

    @classmethod
    def of(cls, layout: Layout) -> Files:
        return cls(layout.spool / "config.restore", layout.spool / "criu.conf", layout.spool / "at-restore")


def command(layout: Layout, images: Path) -> list[str]:
    """The command that restores a container under a monitor of LXC's own."""
    files = Files.of(layout)
    return ["lxc-checkpoint", "-r", "-n", layout.name, "-P", str(layout.lxcpath), "-D", str(images), "-l", "INFO",
            "-o", str(images / "lxc.log"), "--rcfile", str(files.config), "--action-script", str(files.script)]


def prepare(container: Container, layout: Layout, images: Path) -> list[veths.Veth]:
    """Make what a restore from the folder `images` needs: the files, and the veths, which are returned.

    Raises RestoreFailed.
    """
    path = str(container.config_file)
    text = container_config.unfenced(config_reader.read_file(path))
    links = veths.planned(config_facts.parse(text, path).nets, layout.id) if veths.possible(_kernel()) else []
    veths.remove(layout.id)
    files = Files.of(layout)
    layout.spool.mkdir(mode=0o700, exist_ok=True)
    _write(files.config, restore_config.text(config_reader.read(path, text).settings, config_file=path,
                                             veths={link.number: link.outside for link in links}), 0o600)
    _write(files.criu, criu.restore_config(link.external for link in links), 0o600)
    _write(files.script, at_restore.script(str(images)), 0o700)
    try:
        veths.make(links)
    except CommandFailed as error:
        raise RestoreFailed(name=container.name, reason=str(error), log="not there") from error
    return links


def restore(container: Container, layout: Layout, images: Path, links: list[veths.Veth], *, limit: float) -> None:
    """Restore a container from CRIU images, after `prepare`.

    Raises RestoreFailed or CommandTimeout, and may have left processes, cgroups and veths then.
    """
    try:
        run(command(layout, images), limit=limit, env={"CRIU_CONFIG_FILE": str(Files.of(layout).criu)})
        if container.state != "RUNNING":
            raise RestoreFailed(name=container.name, reason=f"it is {container.state} after the restore",
                                log=images / "restore.log")
    except CommandFailed as error:
        reason = at_restore.reason(images) or criu.reason(images / "restore.log") or error.fields["output"]
        raise RestoreFailed(name=container.name, reason=reason, log=images / "restore.log") from error
    try:
        veths.route(links)
    except CommandFailed as error:
        log.warning(f"{container.name} runs, but a route of this host to it is missing: {error}")


def _write(path: Path, text: str, mode: int) -> None:
    """Not durably: after a power cut the images are gone as well, and a container stands still."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "w", errors="surrogateescape") as file:
        file.write(text)


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(char for char in minor if char.isdecimal()) or 0)
