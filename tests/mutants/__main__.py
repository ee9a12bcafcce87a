# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the mutants and judge who has survived; see the package's docstring."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.mutants import explained, kept, page
from tests.mutants.where import TESTS, WHERE

TREE = Path(__file__).resolve().parents[2]
WORK = TREE / "build" / "mutants"
COPY = WORK / "tree"
RESULTS = WORK / "results.json"
LOG = WORK / "mutmut.log"
SAID = WORK / "tests.log"  # by the tests of the code as it is: see tool.SAID
# Of every kind that a mutant could reach out of: see tool.confine.
UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--net", "--ipc", "--uts"]
CONFIG = """\
[tool.mutmut]
source_paths = ["migrator", "stages", "tunnel"]
only_mutate = {files}
also_copy = {also}
pytest_add_cli_args = ["-vv", "-p", "no:cacheprovider", "-p", "tests.mutants.programs", "--hypothesis-seed=0"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
use_git_change_detection = false
timeout_multiplier = 4.0
timeout_constant = 5.0
type_check_command = {mypy}
"""
# What `make test` has mypy look at, too. Left out are complaints that come of having many versions of a method.
MYPY = ["--output", "json", "--no-warn-unreachable",
        *(f"--disable-error-code={code}" for code in ("attr-defined", "has-type", "misc", "no-redef", "unused-ignore"))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Would a test notice?")
    parser.add_argument("modules", nargs="*", help="parts of names of modules; all without")
    parser.add_argument("--outdated", action="store_true", help="those whose code has changed since they were run last")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    files = [file for file in (kept.outdated() if args.outdated else WHERE)
             if not args.modules or any(part in file for part in args.modules)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with us
    found = run(files, args.jobs) if files else []
    kept.add(files, found)
    unexplained, stale = explained.judge(found, files)
    for each in unexplained:
        print(f"\n{each['status']}: {each['file']}\n{each['diff']}")
    for reason in stale:
        print(f"\nno such survivor any more: {reason}")
    print(f"\n{len(found)} mutants, {len(unexplained)} that no test notices and nobody has explained")
    whole = kept.whole()
    if whole and not any(explained.judge(whole, list(WHERE))):
        page.write(whole)
    return 1 if unexplained or stale else 0


def run(files: list[str], jobs: int) -> list[dict[str, Any]]:
    """What became of the mutants of these files; raises CalledProcessError where mutmut could not begin."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    git = ["git", "-c", "safe.directory=*", "-C", str(TREE), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(git, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                               check=True).stdout.splitlines():
        if (TREE / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, COPY / name)
    also = [path.name for path in COPY.iterdir() if path.name not in ("migrator", "stages", "tunnel", "tests")]
    (COPY / "pyproject.toml").write_text(
        CONFIG.format(files=json.dumps(files), also=json.dumps(also), tests=json.dumps(TESTS),
                      mypy=json.dumps([sys.executable, "-m", "mypy", *MYPY, *files])))
    with LOG.open("w") as log:  # mutmut counts in place, which is for a terminal
        ended = subprocess.run([*UNSHARE, sys.executable, COPY / "tests/mutants/tool.py", str(jobs), RESULTS], cwd=COPY,
                               env={name: value for name, value in os.environ.items() if name != "MIGRATOR_TESTS"},
                               stdin=subprocess.DEVNULL, stdout=None if sys.stdout.isatty() else log, check=False)
    if ended.returncode:
        _show_why()
    ended.check_returncode()
    return list(json.loads(RESULTS.read_text()))


def _show_why() -> None:
    """What mutmut has said last, and a test that has failed though nothing is wrong yet, or was the last that began."""
    for path, most in ((LOG, 5), (SAID, 100)):  # lines; mutmut counts in the first one
        with contextlib.suppress(FileNotFoundError):
            print(f"\n--- the end of {path}", *path.read_text(errors="replace").splitlines()[-most:], sep="\n")


if __name__ == "__main__":
    sys.exit(main())
