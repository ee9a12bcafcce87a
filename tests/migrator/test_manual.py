# SPDX-License-Identifier: GPL-2.0-or-later
"""The man page, the completion and docs/errors.md say what the program does."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from migrator import manual
from migrator.errors import EXIT_USAGE

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_errors_is_current() -> None:
    assert (DOCS / "errors.md").read_text() == manual.errors_page(), "make docs"


def test_every_error_is_documented_once() -> None:
    """Also those of the tunnel: no two share a number, except the one for `no number of its own`."""
    found = manual.documented()
    assert {"not-root", "source-still-frozen", "restore-failed"} <= {cls.code() for cls in found}
    numbered = [cls.status for cls in found if cls.status != EXIT_USAGE and cls.__base__ not in found]
    assert len(numbered) == len(set(numbered))
    assert all("__doc__" in vars(cls) for cls in found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share")
    assert manual.main([str(folder)]) == 0
    return folder


def shown(page: Path) -> str:
    """A page as man(1) shows it, in one line; what groff complains of fails the test."""
    done = subprocess.run(["groff", "-man", "-ww", "-Tascii", page], capture_output=True, text=True, check=True,
                          stdin=subprocess.DEVNULL)
    assert done.stderr == ""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout).split())


@pytest.mark.parametrize("name", manual.commands())
def test_each_command_has_a_page(made: Path, name: str) -> None:
    text = shown(made / manual.PAGES / f"{manual.page_of(name)}.1")
    assert f"migrator {name}" in text
    actions = [other for other in manual.commands() if other.startswith(f"{name} ")]
    for action in manual.options(manual.commands()[name]):
        assert action.dest == "help" or action.option_strings[-1] in text
    for page in [f"migrator-{name}-{action.rpartition(' ')[2]}(1)" for action in actions]:
        assert page in text


def test_the_overview_has_every_command_and_every_error(made: Path) -> None:
    text = shown(made / manual.PAGES / "migrator.1")
    for name in manual.commands():
        assert " " in name or f"migrator-{name}(1)" in text
    for cls in manual.documented():
        assert f"{manual.shown_status(cls)} {cls.code()}" in text


@pytest.mark.parametrize("file", [*sorted((DOCS.parent / "systemd").iterdir()), DOCS.parent / "README.md",
                                  *sorted(DOCS.glob("*.md"))], ids=lambda file: file.name)
def test_pages_that_are_referred_to_exist(made: Path, file: Path) -> None:
    """As `man migrator-peer`, `man:migrator-agent(1)` or `migrator-migrate(1)`."""
    text = file.read_text()
    for page in re.findall(r"\bman[ :](migrator[a-z-]*)|\b(migrator[a-z-]*)\(1\)", text):
        assert (made / manual.PAGES / f"{''.join(page)}.1").exists(), page
    if file.suffix == ".service":
        assert re.search(r"^Documentation=man:migrator-", text, re.MULTILINE)


def test_roff_takes_nothing_for_a_request() -> None:
    assert manual.roff(".SH 'x'\n\\fB -- `y`") == "\\&.SH \\(aqx\\(aq\n\\efB \\-\\- \\(gay\\(ga"


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert manual.main(["--help"]) == 2
    assert "python3 -I -m migrator.manual" in capsys.readouterr().err


# --- the completion -------------------------------------------------------------------------------------------


def complete(made: Path, *words: str, containers: str = "") -> list[str]:
    """What bash offers for the last of `words`."""
    script = """
        lxc-ls() { echo "$@" >&2; printf '%s\\n' $CONTAINERS; }
        . "$1"; shift
        COMP_WORDS=(migrator "$@"); COMP_CWORD=$#
        _shtab_migrator
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", script, "bash", made / manual.COMPLETIONS["bash"], *words],
                          capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
                          env={"PATH": "/usr/bin:/bin", "CONTAINERS": containers, "HOSTFILE": "/dev/null"})
    return done.stdout.split()


@pytest.mark.parametrize(("words", "offered"), [
    (["rest"], ["restore-dump"]),
    (["--v"], ["--version"]),
    (["create-dump", "--max"], ["--max-downtime"]),
    (["status", "--debug", "--ev"], ["--events"]),
    (["status", "web", "--ev"], ["--events"]),
    (["peer", "inv"], ["invite"]),
    (["peer", "invite", "--off"], ["--offline"]),
    (["status", "w"], ["web", "web2"]),
    (["status", "-n", "d"], ["db"]),
    (["create-dump", "web", "--max-downtime", ""], []),
    (["check", "--ignore", "w"], []),
])
def test_completion(made: Path, words: list[str], offered: list[str]) -> None:
    assert complete(made, *words, containers="web web2 db") == offered


def test_completion_of_all_commands(made: Path) -> None:
    assert set(complete(made, "")) >= {name for name in manual.commands() if " " not in name}


def test_commands_with_actions() -> None:
    """They are found at any depth."""
    top, below, deepest = argparse.ArgumentParser(), argparse.ArgumentParser(), argparse.ArgumentParser()
    top.add_subparsers().choices["pair"] = below
    below.add_subparsers().choices["list"] = deepest
    assert list(manual.commands(top)) == ["pair", "pair list"]


def test_completion_of_folders(made: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    assert complete(made, "status", "-P", f"{tmp_path}/p") == [f"{tmp_path}/pool"]


def test_completion_keeps_the_user_of_a_destination(made: Path) -> None:
    for name in complete(made, "check", "web", "-d", "root@"):
        assert name.startswith("root@")


def test_our_part_of_the_completion_passes_shellcheck() -> None:
    done = subprocess.run(["shellcheck", "--shell=bash", "-"], input=manual.FOR_BASH, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stdout
