# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package: built, examined, installed in a new Debian 13, used, and removed without a trace."""

from __future__ import annotations

import configparser
import email.utils
import re
import shlex
import sys
import time
from pathlib import Path

import pytest

import migrator
from harness.rig import TREE

sys.path.insert(0, str(TREE / "vagrant"))
try:
    from riglib import deb, page, rootfs
finally:
    sys.path.pop(0)

DEBIAN = TREE / "debian"
REQUIREMENT = re.compile(r"([\w-]+) *(?:\(?[=>]= *([\d.:]+)\)?)?")


def versions(text: str) -> dict[str, tuple[int, ...]]:
    """What is named in lines or between commas, each with the version that is asked for."""
    found = [REQUIREMENT.match(word.strip()) for word in re.split(r"[,\n]", text)]
    return {each[1]: tuple(map(int, (each[2] or "0").rpartition(":")[2].split("."))) for each in found if each}


# --- what stands in debian/ ------------------------------------------------------------------------------------------


def test_the_changelog_has_the_version() -> None:
    assert (DEBIAN / "changelog").read_text().startswith(f"migrator ({migrator.__version__}) ")


def test_what_setup_cfg_asks_for_is_there() -> None:
    """As a package of Debian's, of that version at least, or as a wheel."""
    config = configparser.ConfigParser()
    config.read(TREE / "setup.cfg")
    wheels = versions((DEBIAN / "wheels.txt").read_text())
    depends, builds = versions(deb.fields("Depends")), versions(deb.fields("Build-Depends"))
    for name, version in versions(config["options"]["install_requires"]).items():
        if name in wheels:
            assert wheels[name] >= version, name
        else:  # the pages are made by importing all that there is
            assert depends[f"python3-{name}"] == builds[f"python3-{name}"] == version, name
    build_wheels = versions((DEBIAN / "build-wheels.txt").read_text())
    for name, version in versions(config["options.extras_require"]["manual"]).items():
        assert build_wheels[name] >= version if name in build_wheels else builds[f"python3-{name}"] == version, name


def test_what_the_page_installs_comes_with_it() -> None:
    """But for what only its own way of installing needs."""
    (first, *_) = page.installation(page.read())
    named = set(first.split()) - {"apt-get", "install", "python3-venv", "git"}
    assert named <= {*versions(deb.fields("Depends")), *versions(deb.fields("Recommends"))}


# --- what is built ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> Path:
    return deb.package()


@pytest.mark.nightly
def test_lintian_finds_nothing(built: Path) -> None:
    """Neither errors nor warnings."""
    told = deb.enter(deb.build_root(), built.parent, "lintian --allow-root --fail-on error,warning /given/*.changes")
    assert told == ""


@pytest.mark.nightly
def test_a_second_build_is_the_same(built: Path, tmp_path: Path) -> None:
    """To the last bit: in another folder, a year later, in another time zone and language, with another umask."""
    under = "umask 027; TZ=XXX-13 LC_ALL=C faketime -f +400d"
    later = deb.build(rootfs.STABLE, tmp_path, where="/srv/elsewhere/source", under=under)
    (recorded,) = tmp_path.glob("*.buildinfo")
    (date,) = re.findall(r"^Build-Date: (.*)", recorded.read_text(), re.MULTILINE)
    assert email.utils.parsedate_to_datetime(date).timestamp() > time.time() + 300 * 86400, "faketime has worked"
    assert later.read_bytes() == built.read_bytes()


APT = "apt-get -q -y --no-install-recommends"
"""There is no network: all that it depends on has been downloaded."""
AS_TYPED = re.compile(r"^```\n((?:apt-get .*\n)+)```$", re.MULTILINE)
"""How the page says that the package is installed."""


def in_new_debian(built: Path, *lines: str) -> list[str]:
    """What these lines print; the last one of a pipeline decides whether it has failed."""
    return deb.enter(deb.fresh_root(), built.parent, "\n".join(["cd /given", *lines])).splitlines()


def typed() -> list[str]:
    """The lines of the page that install it."""
    (block,) = AS_TYPED.findall((TREE / "README.md").read_text())
    return str(block).splitlines()


def test_the_page_says_where_it_is() -> None:
    shown = " ".join((TREE / "README.md").read_text().split())
    assert f"`build/deb/{rootfs.STABLE}`, for Debian 13" in shown
    assert [line.split()[:2] for line in typed()] == [["apt-get", "update"], ["apt-get", "install"]]


@pytest.mark.nightly
def test_it_is_installed_and_works(built: Path) -> None:
    told = in_new_debian(
        built,
        "echo 'APT::Get::Assume-Yes \"true\"; Acquire::Retries \"0\";' >/etc/apt/apt.conf.d/no-one-and-no-network",
        *(f"{line} >/dev/null" for line in typed()),
        "migrator --version",
        "cd /tmp; echo 'raise SystemExit(\"from the folder one stands in\")' >migrator.py; cp migrator.py stages.py",
        "COLUMNS=200 PYTHONPATH=/tmp migrator check --help | sed -n '1s/ .-d .*//p'",
        "/usr/lib/migrator/bin/python -I -c 'import blake3, cryptography, invoke, lxc, msgspec, paramiko, pybtrfs, "
        "pyroute2, spake2, websockets, zstandard; print(cryptography.__file__, lxc.__file__)'",
        "ls /usr/lib/migrator/lib/*/site-packages/migrator/__pycache__ | grep -c '^cli[.]cpython-.*[.]pyc$'",
        "man -w migrator-prepare-guest",
        "! man --warnings migrator 2>&1 >/dev/null | grep .",
        "bash -c '. /usr/share/bash-completion/bash_completion; _comp_load migrator; complete -p migrator;"
        " COMP_WORDS=(migrator prepare-g); COMP_CWORD=1; _shtab_migrator; echo ${COMPREPLY[@]}'",
        "ls /usr/share/zsh/vendor-completions/_migrator /usr/share/fish/vendor_completions.d/migrator.fish",
        "systemd-analyze verify /usr/lib/systemd/system/migrator-*.service 2>&1",
        "for unit in resume agent rendezvous; do systemctl is-enabled migrator-$unit || true; done",
        "! find / -xdev -path '*migrator*' -name '*.py' | grep -v ^/usr/lib/migrator/ | grep -v ^/tmp/",
        "migrator status",
    )
    site = "/usr/lib/migrator/lib/python3.13/site-packages"
    assert told == [
        f"migrator {migrator.__version__}",
        "usage: migrator check [-h] [-n NAME] [-P PATH]",
        f"{site}/cryptography/__init__.py /usr/lib/python3/dist-packages/lxc/__init__.py",
        "1",
        "/usr/share/man/man1/migrator-prepare-guest.1.gz",
        "complete -o bashdefault -F _shtab_migrator migrator", "prepare-guest",
        "/usr/share/fish/vendor_completions.d/migrator.fish", "/usr/share/zsh/vendor-completions/_migrator",
        "enabled", "disabled", "disabled",
        "No migration is in progress.",
    ]


BEGUN = """from pathlib import Path
from migrator.record.journal import DEFAULT_PATH, Journal
from migrator.record.states import Event, Role
with Journal(DEFAULT_PATH) as journal:
    journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=Path("/var/lib/lxc"), peer="beta",
                   event=Event.SEND, rounds=[])
"""
REFUSED = """from pathlib import Path
from migrator.config import seccomp_profile
config = Path("/tmp/config")
config.write_text("lxc.include = /usr/share/lxc/config/common.conf\\n")
assert seccomp_profile.refuse(config) == ""
(made,) = seccomp_profile.FOLDER.iterdir()
assert "io_uring_setup errno 38" in made.read_text()
"""
"""What `prepare-guest` does with the rules that come with the package, and LXC's own profile."""
NOT_OURS = ("/tmp", "/given", "/var/lib/dpkg", "/var/log/apt*")
LISTED = rf"find / -xdev \( -path {' -o -path '.join(map(shlex.quote, NOT_OURS))} \) -prune -o -print"


@pytest.mark.nightly
def test_removed_it_leaves_nothing(built: Path) -> None:
    """It stays while a container is on its way: nobody else could bring that back. The journal goes with `purge`."""
    told = in_new_debian(
        built, f"{APT} satisfy {shlex.quote(deb.fields('Depends'))} >/dev/null",
        f"{LISTED} | sort >/tmp/before",
        f"{APT} install ./migrator_*.deb >/dev/null",
        "mkdir -p /etc/migrator /var/log/migrator /var/lib/private/migrator-rendezvous",
        "touch /etc/migrator/tunnel.conf /var/log/migrator/web-dump.log",
        "ln -s private/migrator-rendezvous /var/lib/migrator-rendezvous",
        *(f"/usr/lib/migrator/bin/python -I -c {shlex.quote(script)}" for script in (REFUSED, BEGUN)),
        "! apt-get purge -y -q migrator >/tmp/refused 2>&1",
        "grep -E '^web|^migrator:' /tmp/refused",
        "migrator rollback web -q",
        "apt-get remove -y -q migrator >/dev/null",
        "ls /var/lib/migrator/journal.db /etc/migrator/* /var/log/migrator/*",
        "apt-get purge -y -q migrator >/dev/null",
        f"{LISTED} | sort >/tmp/after",
        "diff /tmp/before /tmp/after | grep '^[<>]'",
    )
    assert told[0].split()[:2] == ["web", "0badc0de"], told
    assert told[1].startswith("migrator: containers are on their way. "), told
    assert told[2:] == [
        "/etc/migrator/tunnel.conf", "/var/lib/migrator/journal.db", "/var/log/migrator/web-dump.log",
        # A container whose configuration names such a profile would not start without it.
        "> /etc/lxc/migrator", "> /etc/lxc/migrator/%2Fusr%2Fshare%2Flxc%2Fconfig%2Fcommon.seccomp",
    ], told
