# SPDX-License-Identifier: GPL-2.0-or-later
"""Which WireGuard this host has: the kernel's, otherwise wireguard-go."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from migrator.base import process_id
from tunnel.tunnel_errors import WireGuardMissing
from tunnel.wireguard.common import Backend
from tunnel.wireguard.kernel import Kernel
from tunnel.wireguard.userspace import PROGRAM, Userspace

BACKENDS: tuple[type[Backend], ...] = (Kernel, Userspace)  # in the order in which they are tried

# The first snapshot that reads and writes segments in batches on Linux (with GSO and GRO on the socket, too): five to
# six times the throughput of earlier ones.
FAST_SINCE = 20231211


@dataclasses.dataclass(frozen=True)
class Choice:
    """A back end, and in words why it was chosen."""

    backend: Backend
    reason: str


def choose(kinds: Sequence[type[Backend]] = BACKENDS) -> Choice:
    """The first back end that the system allows; raises WireGuardMissing with what each of them lacks."""
    missing: list[str] = []
    for kind in kinds:
        found = kind()
        problem = found.why_not()
        if not problem:
            return Choice(found, "; ".join(missing) or "it is the fastest")
        missing.append(f"{kind.kind}: {problem}")
    raise WireGuardMissing(reason="; ".join(missing))


def backend() -> Backend:
    """The back end to use on this host; raises WireGuardMissing."""
    return choose().backend


def named(kind: str) -> Backend:
    """The back end of that kind, whether it can be used or not: to remove what it made."""
    for candidate in BACKENDS:
        if candidate.kind == kind:
            return candidate()
    raise ValueError(f"no back end is called {kind!a}")


def warnings(found: Backend) -> list[str]:
    """What is wrong with a back end that works, for `check`: a wireguard-go that is slow."""
    if found.kind != Userspace.kind:
        return []
    version = package_version()
    if not version or is_fast(version):
        return []
    return [
        f"The package {PROGRAM} {version} is older than the snapshot {FAST_SINCE} and five to six times slower than "
        f"later ones. Install a newer one, or a kernel with the WireGuard module."
    ]


def package_version() -> str:
    """The version of wireguard-go's package, empty if it was not installed from one.

    The program's own --version is no help: it has reported the same number for years.
    """
    try:
        return process_id.run(["dpkg-query", "-W", "-f", "${Version}", PROGRAM]).strip()
    except process_id.ProgramFailed:
        return ""


def is_fast(version: str) -> bool:
    """Whether a package version such as `0.0.20260522-1` has segmentation offload; an unknown form counts as fast."""
    found = re.search(r"(?<!\d)(20\d{6})(?!\d)", version)
    return found is None or int(found[1]) >= FAST_SINCE
