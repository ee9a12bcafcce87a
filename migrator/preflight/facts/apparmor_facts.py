# SPDX-License-Identifier: GPL-2.0-or-later
"""The AppArmor confinement of a container: the label of its PID 1, and where the profile in it comes from.

When LXC starts a container with `lxc.apparmor.profile = generated`, it loads a profile made for it, and unloads that
when it stops (src/lxc/lsm/apparmor.c). The profile is called `lxc-NAME_<LXCPATH>`, and if the kernel can stack policies
the container also gets a policy namespace. CRIU carries the namespace over (criu/apparmor.c), but not the profile.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from migrator.host.proc import read_text

SECURITY = Path("/sys/kernel/security/apparmor")
ENABLED = "/sys/module/apparmor/parameters/enabled"
# A name that would be too long is replaced by its hash.
_GENERATED = re.compile(r"lxc-.+_<.*>|[0-9a-f]{16}")


@dataclasses.dataclass(frozen=True)
class AppArmor:
    label: str = ""  # of PID 1, without its mode; "" for unconfined
    text: str = ""  # where LXC keeps the text of the profile that it has generated
    binary: str = ""  # where the kernel shows that profile as it was loaded


def enabled() -> bool:
    return read_text(ENABLED).strip() == "Y"


def label_of(text: str) -> str:
    """The label in /proc/PID/attr/apparmor/current: up to its mode, as LXC and CRIU read it; "" for unconfined."""
    words = text.replace("\0", " ").split()
    return words[0] if words and words[0] != "unconfined" else ""


def profiles(label: str) -> list[str]:
    """The profiles that a label names and that must be loaded; those in a policy namespace come with CRIU's images."""
    parts = label.split("//&") if label else []
    return [part for part in parts if part and part != "unconfined" and not part.startswith(":")]


def is_generated(profile: str) -> bool:
    return bool(_GENERATED.fullmatch(profile))


def gather(init: int, folder: Path) -> AppArmor:
    """Look at the container whose PID 1 is `init` and whose directory is `folder`."""
    if not enabled():
        return AppArmor()
    current = read_text(f"/proc/{init}/attr/apparmor/current") or read_text(f"/proc/{init}/attr/current")
    label = label_of(current)
    for profile in profiles(label):
        if is_generated(profile):
            text = folder / "apparmor" / profile.replace("/", "-")
            return AppArmor(label, str(text) if text.is_file() else "", loaded(profile))
    return AppArmor(label)


def loaded(profile: str, security: Path = SECURITY) -> str:
    """The file in which the kernel shows a loaded profile as it was loaded (SECURITY_APPARMOR_EXPORT_BINARY)."""
    for path in security.glob("policy/profiles/*/name"):
        if read_text(str(path)).strip() == profile and (path.parent / "raw_data").exists():
            return str(path.parent / "raw_data")
    return ""
