# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of seccomp profiles, with rules added that deny a container what CRIU cannot dump: BPF and io_uring.

LXC reads only one profile. So a copy of the container's profile is made with these rules added, and the container's
configuration names the copy instead. Copies are in a folder of which each host has its own. The name of a copy tells
which profile it is made from, so that a host to which the container moves can make it from its own profile of that
name. Programs do without io_uring if the kernel says that it does not have it (ENOSYS).
"""

from __future__ import annotations

import posixpath
import re
import urllib.parse
from pathlib import Path

from migrator.base import bounded_read
from migrator.config import config_reader, consent, container_config

KEY = "lxc.seccomp.profile"
FOLDER = Path("/etc/lxc/migrator")
RULES = {"bpf": "errno 1", "io_uring_setup": "errno 38", "io_uring_enter": "errno 38",
         "io_uring_register": "errno 38"}  # EPERM, ENOSYS
_SIZE_MAX = 1 << 20  # bytes
_BEGIN, _END = "# migrator prepare-guest: begin", "# migrator prepare-guest: end"
_BLOCK = re.compile(rf"^{_BEGIN}\n(?:lxc\.seccomp\.profile = .*\n)?{_END}\n", re.MULTILINE)


def own(path: Path, text: str) -> str:
    """The profile that a configuration with this text names apart from our block; "" if it names none."""
    named = [value for key, value in config_reader.read(str(path), without(text)).settings if key == KEY]
    return named[-1] if named else ""


def copy_of(profile: str) -> Path:
    """Where the copy of a profile is, on any host."""
    return FOLDER / urllib.parse.quote(profile, safe="")


def original(copy: str) -> str:
    """The profile that a copy is made from; "" if it is no copy, or of a profile outside the hosts' own folders."""
    folder, _, name = copy.rpartition("/")
    profile = urllib.parse.unquote(name)
    # Each profile has one name only: with `/a/./b` and the like, a peer could have any number of copies made.
    is_one = folder == str(FOLDER) and str(copy_of(profile)) == copy and posixpath.normpath(profile) == profile
    return profile if is_one and consent.is_hosts_own(profile) and not profile.startswith(f"{FOLDER}/") else ""


def can_be_made(copy: str) -> bool:
    """Whether this host has the profile that it would be a copy of."""
    return bool(profile := original(copy)) and Path(profile).is_file()


def make(copy: str) -> None:
    """Make or renew a copy on this host; raises OSError, and ValueError if the rules cannot be added."""
    profile = original(copy)
    if not profile:
        raise ValueError(f"{copy} is not a copy of a profile in {' or '.join(consent.HOST_FOLDERS)}")
    text = extended(_text(profile))
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    container_config.write_file(Path(copy), text, mode=0o644)


def outdated(copy: str) -> str:
    """The profile that a copy is made from, if that has changed since; "" if not, or if one of them cannot be read."""
    profile = original(copy)
    try:
        if profile and _text(copy) != extended(_text(profile)):
            return profile
    except (OSError, ValueError):  # or it cannot be extended any more
        pass
    return ""


def _text(path: str) -> str:
    return bounded_read.read(Path(path), _SIZE_MAX).decode(errors="surrogateescape")


def kept(config: Path) -> str:
    """Why a container's seccomp profile cannot be replaced by a copy with the rules; "" if it can be.

    Raises OSError if the configuration cannot be read.
    """
    text = container_config.text_of(config)
    profile = own(config, text)
    if container_config.fence_of(text):
        return "its configuration is fenced"
    if not profile:
        return "it has none"
    if not original(str(copy_of(profile))):
        return f"{profile} is not in {' or '.join(consent.HOST_FOLDERS)}, of which each host has its own"
    try:
        extended(_text(profile))
    except (OSError, ValueError) as error:
        return f"{profile}: {error}"
    return ""


def refuse(config: Path) -> str:
    """Deny a container these calls from its next start on: have its configuration name the copy.

    Returns why that cannot be done, or "" if it has been. Raises OSError if the configuration cannot be read or
    written.
    """
    if reason := kept(config):
        return reason
    text = container_config.text_of(config)
    profile = own(config, text)
    copy = copy_of(profile)
    try:
        make(str(copy))
    except (OSError, ValueError) as error:
        return f"{profile}: {error}"
    if (changed := added(text, copy)) != text:
        container_config.write_file(config, changed)
    return ""


def allow(config: Path) -> None:
    """Undo `refuse`; raises OSError. The copy is kept, since other containers may use it."""
    text = container_config.text_of(config)
    if (changed := without(text)) != text:
        container_config.write_file(config, changed)


def extended(profile: str) -> str:
    """The text of a profile with the rules added; a call for which it has a rule keeps that one.

    Raises ValueError for a profile that lists what is allowed: it denies everything else anyway.
    """
    lines = profile.split("\n")
    if lines[0].strip() != "2" or len(lines) < 2 or lines[1].split(" ")[0].strip() not in ("denylist", "blacklist"):
        raise ValueError("it is not a version 2 denylist")
    there = {line.split()[0] for line in lines[2:] if line.split()}
    added = [f"{call} {action}" for call, action in RULES.items() if call not in there]
    return "\n".join([profile.rstrip("\n"), "[all]", *added, ""])


def added(text: str, copy: Path) -> str:
    """A configuration's text with a block at its end that names the copy, which overrides any earlier profile."""
    own_text = without(text)
    end = "" if own_text.endswith("\n") or not own_text else "\n"
    return f"{own_text}{end}{_BEGIN}\n{KEY} = {copy}\n{_END}\n"


def without(text: str) -> str:
    """A configuration's text without the block of `added`."""
    return _BLOCK.sub("", text)


def named(text: str) -> str:
    """The copy that a configuration's own text names; "" if the last profile there, the one that counts, is no copy."""
    found = [value for key, value in config_reader.settings(text) if key == KEY]
    return found[-1] if found and original(found[-1]) else ""
