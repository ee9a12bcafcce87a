# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package for arm64, which is built on any machine: nothing is emulated, so nothing of it is run here."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from harness.rig import TREE

sys.path.insert(0, str(TREE / "vagrant"))
try:
    from riglib import deb, rootfs
finally:
    sys.path.pop(0)

MACHINES = {"amd64": 62, "arm64": 183}
"""EM_X86_64 and EM_AARCH64 of elf(5)."""
OF_WHEELS = ("/WHEEL", "/RECORD")
"""Files in which a wheel says what it is for; and each may have lists of what its libraries are made from."""


def content(package: Path) -> dict[str, bytes]:
    """Its files, by names in which no architecture occurs."""
    packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdin=subprocess.DEVNULL, capture_output=True,
                            check=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            name = member.name
            for machine in deb.PLATFORMS.values():
                name = name.replace(machine, "MACHINE")
            found[name] = file.read() if file else member.linkname.encode()
    return found


def field(package: Path, name: str) -> str:
    return subprocess.run(["dpkg-deb", "--field", package, name], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=True).stdout.strip()


@pytest.mark.nightly
def test_it_differs_in_its_extension_modules_alone() -> None:
    built = {architecture: deb.package(rootfs.STABLE, architecture) for architecture in MACHINES}
    files = {architecture: content(package) for architecture, package in built.items()}
    assert files["amd64"].keys() == files["arm64"].keys()
    for architecture, machine in MACHINES.items():
        assert field(built[architecture], "Architecture") == architecture
        modules = {name for name, each in files[architecture].items() if each.startswith(b"\x7fELF")}
        assert len(modules) > 1 and {name for name in files[architecture] if name.endswith(".so")} == modules
        assert {struct.unpack_from("<H", files[architecture][name], 18)[0] for name in modules} == {machine}
    differ = {name for name, each in files["amd64"].items() if files["arm64"][name] != each} - modules
    assert [name for name in differ if not name.endswith(OF_WHEELS) and ".dist-info/sboms/" not in name] == []
    assert field(built["arm64"], "Depends") == field(built["amd64"], "Depends")
