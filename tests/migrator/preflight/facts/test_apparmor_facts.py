# SPDX-License-Identifier: GPL-2.0-or-later
"""What confines a process, in the kernel's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.preflight.facts import apparmor_facts

GENERATED = "lxc-web_</var/lib/lxc>"


@pytest.mark.parametrize(("text", "label", "profiles"), [
    ("", "", []),
    ("unconfined\n", "", []),
    ("unconfined\0", "", []),
    ("lxc-container-default-cgns (enforce)\n", "lxc-container-default-cgns", ["lxc-container-default-cgns"]),
    ("lxc-container-default-cgns (enforce)\0", "lxc-container-default-cgns", ["lxc-container-default-cgns"]),
    (f"{GENERATED}//&:lxc-web_<-var-lib-lxc>:unconfined (enforce)\n",
     f"{GENERATED}//&:lxc-web_<-var-lib-lxc>:unconfined", [GENERATED]),
    (f"{GENERATED}//&:lxc-web_<-var-lib-lxc>://nginx (enforce)\n",
     f"{GENERATED}//&:lxc-web_<-var-lib-lxc>://nginx", [GENERATED]),
])
def test_labels(text: str, label: str, profiles: list[str]) -> None:
    assert apparmor_facts.label_of(text) == label
    assert apparmor_facts.profiles(label) == profiles


@pytest.mark.parametrize(("profile", "generated"), [
    (GENERATED, True), ("lxc-web_<>", True), ("0123456789abcdef", True), ("lxc-container-default-cgns", False),
    ("/usr/sbin/ntpd", False), ("", False),
])
def test_which_lxc_has_generated(profile: str, generated: bool) -> None:
    assert apparmor_facts.is_generated(profile) is generated


def test_a_loaded_profile_is_found_by_its_name(tmp_path: Path) -> None:
    """The kernel calls its folder otherwise (aa_mangle_name in security/apparmor/apparmorfs.c)."""
    for number, name in enumerate(("other", GENERATED)):
        folder = tmp_path / "policy" / "profiles" / f"x.{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
    assert apparmor_facts.loaded(GENERATED, tmp_path) == "", "the kernel does not show what it has loaded"
    (folder / "raw_data").write_bytes(b"x")
    assert apparmor_facts.loaded(GENERATED, tmp_path) == str(folder / "raw_data")
    assert apparmor_facts.loaded("other", tmp_path) == ""
