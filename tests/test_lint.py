# SPDX-License-Identifier: GPL-2.0-or-later
"""The linters, as tests: what they find is as wrong as what a test finds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TAG = "# SPDX-License-Identifier: GPL-2.0-or-later"


def sources() -> list[Path]:
    """The files that git knows or would add; without git (a source archive), all that look like ours."""
    git = ["git", "-c", "safe.directory=*", "-C", str(TREE), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(git, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found = [TREE / line for line in done.stdout.splitlines()]
    else:
        made = {".venv", "build", "__pycache__", ".git"}
        found = [path for path in TREE.rglob("*") if not made & set(path.relative_to(TREE).parts)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def shell_scripts() -> list[Path]:
    return [path for path in sources() if path.suffix == ".sh" or _shebang(path).rpartition("/")[2] in ("sh", "bash")]


def _shebang(path: Path) -> str:
    with path.open("rb") as file:
        line = file.readline(200)
    return line[2:].decode(errors="replace").strip() if line.startswith(b"#!") else ""


def check(*command: str | Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=TREE, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                          env=os.environ | (env or {}))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_ruff() -> None:
    check(BIN / "ruff", "check")


def test_mypy() -> None:
    check(BIN / "mypy")


@pytest.mark.parametrize("path", shell_scripts(), ids=lambda path: str(path.relative_to(TREE)))
def test_shellcheck(path: Path) -> None:
    check("shellcheck", path)


def test_each_program_names_its_licence() -> None:
    """By the tag that REUSE and SPDX have for it, as the first comment."""
    programs = [*(path for path in sources() if path.suffix == ".py" and path.stat().st_size), *shell_scripts()]
    without = [path for path in programs if TAG not in path.read_text().splitlines()[:2]]
    assert len(programs) > 200 and not without


def test_no_test_changes_a_functions_defaults() -> None:
    """Where mutmut has put others behind it these are not asked: what it then does it does to this machine."""
    name = "__" + "defaults" + "__"
    assert not [path for path in sources() if path.suffix == ".py" and name in path.read_text()]


def test_shell_scripts_are_found() -> None:
    """Otherwise the test above would pass by finding nothing."""
    names = {str(path.relative_to(TREE)) for path in shell_scripts()}
    assert names >= {".ci/run", ".ci/packages", "vagrant/provision.sh", "vagrant/riglib/boot.sh"}


@pytest.mark.parametrize("folder", ["vagrant", "vagrant/nat"])
@pytest.mark.parametrize("provider", ["virtualbox", "libvirt"])
def test_vagrant_validate(provider: str, folder: str, tmp_path: Path) -> None:
    shutil.copytree(TREE / "vagrant", tmp_path / "tree" / "vagrant", ignore=shutil.ignore_patterns(".vagrant"))
    done = subprocess.run(
        # Whether VirtualBox itself is installed here does not matter to what the file says.
        ["vagrant", "validate", "--ignore-provider"], cwd=tmp_path / "tree" / folder, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
        env=os.environ | {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DEFAULT_PROVIDER": provider},
    )
    assert done.returncode == 0, done.stdout + done.stderr
