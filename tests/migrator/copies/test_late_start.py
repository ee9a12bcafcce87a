# SPDX-License-Identifier: GPL-2.0-or-later
"""The hooks that refuse a start behind the source's word, as sh runs them."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.config.config_reader import read
from migrator.copies import late_start

BOOT = "3a1c7f0e-0000-4000-8000-00000000000b"
OWN = "lxc.uts.name = web\nlxc.hook.pre-start = /own\nlxc.hook.start-host =\nlxc.ephemeral = 1"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container's own one, fenced, at second 1000 of a boot; its path is what a shell could stumble over."""
    monkeypatch.setattr(boot_clock, "now", lambda: 1000.25)
    monkeypatch.setattr(boot_clock, "BOOT_ID", tmp_path / "boot_id")
    monkeypatch.setattr(late_start, "UPTIME", tmp_path / "uptime")
    boot_clock.BOOT_ID.write_text(f"{BOOT}\n")
    late_start.UPTIME.write_text("1000.25 3999.00\n")
    folder = tmp_path / "it's $(false) \"web\""
    folder.mkdir()
    container_config.fence(folder, OWN, "0badc0de", "no")
    return folder / "config"


def hooks(config: Path, end: float) -> dict[str, str]:
    """The last one of each kind that LXC reads in the configuration for a start until `end`."""
    text = late_start.refused(OWN, config, end)
    assert text.startswith(f"{OWN}\n") and text.endswith("\n")
    found = dict(read("config", text).settings)
    assert found["lxc.ephemeral"] == "0"
    return {key: found[key] for key in ("lxc.hook.pre-start", "lxc.hook.start-host")}


SHELLS = [[found, *rest] for name, *rest in (("sh",), ("bash", "--posix"), ("busybox", "sh"))
          if (found := shutil.which(name))]


@pytest.fixture(params=SHELLS, ids=lambda words: Path(words[0]).name)
def shell(request: pytest.FixtureRequest) -> list[str]:
    return list(request.param)


def lets(config: Path, end: float, shell: list[str]) -> bool:
    """Whether such a start is let through; all hooks must be of one mind, with LXC's arguments and without."""
    found = {run(hook, shell, more) for hook in hooks(config, end).values() for more in ("", " 'web' 'lxc' 'stop'")}
    assert len(found) == 1
    return found.pop()


def run(hook: str, shell: list[str], more: str) -> bool:
    """As LXC does, without any environment."""
    program = hook.replace("/bin/sh", " ".join(shell), 1)
    return subprocess.run(["/bin/sh", "-c", f"exec {program}{more}"], env={}, capture_output=True).returncode == 0


def test_in_time(config: Path, shell: list[str]) -> None:
    assert lets(config, 1060.0, shell)


@pytest.mark.parametrize(("end", "up", "let"), [
    (1060.0, "1059.99", True), (1060.0, "1060.00", False), (1060.75, "1060.75", False), (1060.75, "99999999.00", False),
    (1000.5, "1000.25", False), (990.0, "1000.25", False), (-5.0, "0.00", False), (1060.0, "9.99", True),
    # Where its host is a container, whose uptime is its own, by second 1000 of the clock.
    (1060.0, "20.00 to 79.99", True), (1060.0, "20.00 to 80.00", False),
])
def test_by_the_clock(config: Path, end: float, up: str, let: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, then = up.rpartition(" to ")
    if first:
        late_start.UPTIME.write_text(f"{first} 1.00\n")
        monkeypatch.setattr(boot_clock, "now", lambda: 1000.0)
    found = hooks(config, end)["lxc.hook.start-host"]
    late_start.UPTIME.write_text(f"{then} 1.00\n")
    assert run(found, SHELLS[0], "") is let


@pytest.mark.parametrize("what", ["another boot", "no boot id", "no uptime", "an empty one", "a strange one"])
def test_what_cannot_be_told_is_over(config: Path, shell: list[str], what: str) -> None:
    found = hooks(config, 1060.0)["lxc.hook.start-host"]
    file, text = {
        "another boot": (boot_clock.BOOT_ID, "another\n"), "no boot id": (boot_clock.BOOT_ID, None),
        "no uptime": (late_start.UPTIME, None), "an empty one": (late_start.UPTIME, ""),
        "a strange one": (late_start.UPTIME, "soon\n")}[what]
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    assert not run(found, shell, "")


@pytest.mark.parametrize(("stands", "let"), [
    ("its fence", False), ("another's", False), ("the hook alone", False), ("none", True), ("no file", False),
    ("what cannot be read", False),
])
def test_what_has_come_up_reboots(config: Path, shell: list[str], stands: str, let: bool) -> None:
    """LXC's monitor runs the hooks of its start again: by then the fence has gone."""
    if stands == "another's":
        config.write_text(container_config.fenced(OWN, config.parent / "hook", "deadbeef"))
    elif stands == "the hook alone":
        config.write_text(f"{OWN}\nlxc.hook.pre-start = {config.parent / container_config.FENCE_HOOK}")
    elif stands == "none":
        container_config.unfence(config.parent, "0badc0de")
    elif stands != "its fence":
        config.unlink()
    if stands == "what cannot be read":
        config.mkdir()
    assert lets(config, 900.0, shell) is let


def test_a_start_without_an_end(config: Path) -> None:
    assert late_start.refused(OWN, config, math.inf) == OWN
