# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy of a container's seccomp profile that also refuses what CRIU cannot dump."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.config import consent, seccomp_profile

COMMON = "/usr/share/lxc/config/common.seccomp"
COPY = "/etc/lxc/migrator/%2Fusr%2Fshare%2Flxc%2Fconfig%2Fcommon.seccomp"
PROFILE = "2\ndenylist\nreject_force_umount  # comment\n[all]\nkexec_load errno 1\n"


def test_names() -> None:
    assert str(seccomp_profile.copy_of(COMMON)) == COPY
    assert seccomp_profile.original(COPY) == COMMON
    assert consent.is_hosts_own(COPY), "so who may bring no hooks may bring it"


@pytest.mark.parametrize("path", [
    COMMON, "/etc/lxc/migrator/%2Fetc%2Fshadow", "/etc/lxc/migrator/%2Fusr%2Fshare%2Flxc%2F..%2F..%2Fx",
    "/etc/lxc/migrator/%2Fetc%2Flxc%2Fmigrator%2Fx", "/etc/lxc/migrator/x", "/etc/lxc/migrator/", "", "x",
    "/etc/lxc/migrator/%2fusr%2fshare%2flxc%2fx",  # there is one name for each
    "/etc/lxc/migrator/%2Fusr%2Fshare%2Flxc%2F.%2Fx", "/etc/lxc/migrator/%2Fusr%2Fshare%2Flxc%2F%2Fx",
    "/etc/lxc/other/%2Fusr%2Fshare%2Flxc%2Fx",
])
def test_what_is_no_copy(path: str) -> None:
    assert seccomp_profile.original(path) == "" and not seccomp_profile.can_be_made(path)
    with pytest.raises(ValueError, match="not a copy"):
        seccomp_profile.make(path)


def test_rules_are_added() -> None:
    found = seccomp_profile.extended(PROFILE)
    assert found.startswith(PROFILE) and found.endswith(
        "[all]\nbpf errno 1\nio_uring_setup errno 38\nio_uring_enter errno 38\nio_uring_register errno 38\n")
    again = seccomp_profile.extended(found)
    assert again.count("bpf") == 1, "a rule that is there is not added"


@pytest.mark.parametrize("text", ["", "1\nallowlist\n5\n", "2\nallowlist\n[all]\nread\n", "2", "denylist\n2\n"])
def test_another_kind_of_list_stays_as_it_is(text: str) -> None:
    with pytest.raises(ValueError, match="not a version 2 denylist"):
        seccomp_profile.extended(text)


MENDED = "# migrator prepare-guest: begin\nlxc.hook.mount = x\n# migrator prepare-guest: end\n"


@pytest.mark.parametrize("text", ["", "lxc.uts.name = a\n", f"lxc.seccomp.profile = {COMMON}\n", MENDED])
def test_a_configuration_there_and_back(text: str) -> None:
    copy = Path(COPY)
    found = seccomp_profile.added(text, copy)
    assert seccomp_profile.named(found) == COPY
    assert seccomp_profile.added(found, copy) == found
    assert seccomp_profile.without(found) == text
    assert seccomp_profile.named(f"{found}lxc.seccomp.profile = {COMMON}\n") == "", "it does not count"
    own = seccomp_profile.own(Path("config"), found)
    assert own == (COMMON if COMMON in text else "")


def test_it_is_made_of_this_hosts_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "HOST_FOLDERS", (f"{tmp_path}/",))
    monkeypatch.setattr(seccomp_profile, "FOLDER", tmp_path / "migrator")
    (tmp_path / "own.seccomp").write_text(PROFILE)
    copy = str(seccomp_profile.copy_of(f"{tmp_path}/own.seccomp"))
    assert seccomp_profile.can_be_made(copy)
    config = tmp_path / "config"
    config.write_text(before := f"lxc.seccomp.profile = {tmp_path}/own.seccomp\nlxc.uts.name = a\n")
    config.chmod(0o640)
    assert seccomp_profile.refuse(config) == seccomp_profile.refuse(config) == ""
    assert seccomp_profile.named(config.read_text()) == copy and config.stat().st_mode & 0o777 == 0o640
    seccomp_profile.allow(config)
    seccomp_profile.allow(config)
    assert config.read_text() == before
    assert Path(copy).read_text() == seccomp_profile.extended(PROFILE)
    (tmp_path / "own.seccomp").unlink()
    assert seccomp_profile.outdated(copy) == "", "there is nothing to make it from"
    assert not seccomp_profile.can_be_made(copy)
    with pytest.raises(FileNotFoundError):
        seccomp_profile.make(copy)


def test_a_profile_that_has_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an update of the package; another prepare-guest --for-good renews the copy."""
    monkeypatch.setattr(consent, "HOST_FOLDERS", (f"{tmp_path}/",))
    monkeypatch.setattr(seccomp_profile, "FOLDER", tmp_path / "migrator")
    profile, config = tmp_path / "own.seccomp", tmp_path / "config"
    profile.write_text(PROFILE)
    config.write_text(f"lxc.seccomp.profile = {profile}\n")
    copy = str(seccomp_profile.copy_of(str(profile)))
    assert seccomp_profile.outdated(copy) == "", "there is none"
    assert seccomp_profile.refuse(config) == "" and seccomp_profile.outdated(copy) == ""
    profile.write_bytes(b"%sptrace errno 1 # \xff\n" % PROFILE.encode())
    assert seccomp_profile.outdated(copy) == str(profile)
    assert seccomp_profile.outdated(str(profile)) == "", "that is no copy"
    assert seccomp_profile.refuse(config) == "" and seccomp_profile.outdated(copy) == ""
    assert b"ptrace errno 1 # \xff\n" in Path(copy).read_bytes()


@pytest.mark.parametrize(("text", "reason"), [
    ("lxc.uts.name = a\n", "it has none"),
    ("lxc.seccomp.profile = /srv/own.seccomp\n", "is not in"),
    ("lxc.seccomp.profile = /usr/share/lxc/not-there\n", "No such file"),
])
def test_where_it_cannot_be_refused_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str,
                                                       reason: str) -> None:
    monkeypatch.setattr(seccomp_profile, "FOLDER", tmp_path / "migrator")
    config = tmp_path / "config"
    config.write_text(text)
    assert reason in seccomp_profile.refuse(config)
    assert config.read_text() == text and not (tmp_path / "migrator").exists()
