# SPDX-License-Identifier: GPL-2.0-or-later
"""A test on the rig that fails tells what both hosts knew. It is shown by one that is made to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.rig import TREE, Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.told import as_text, told

FAILS = """
from harness.rig import DESTINATION

def test_that_fails(rig, clean_hosts):
    rig.guest("hosta", "c1", "tick")
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    rig.sh("hosta", "mkdir -p /var/log/migrator; echo 'Error: a line of a log' >/var/log/migrator/c1-dump.log")
    assert not "as it should be"

def test_that_leaves_something(rig, clean_hosts):
    rig.guest("hosta", "c2", "tick")
    rig.migrator("hosta", "prepare-data", "c2", "-d", DESTINATION).expect(0)
"""


def inner(rig: Rig, folder: Path, name: str) -> str:
    """What a session says of that test, on the rig that this one has."""
    (folder / "test_inner.py").write_text(FAILS)
    command = [sys.executable, "-m", "pytest", "-c", str(TREE / "setup.cfg"), "--rootdir", str(TREE), "-p",
               "tests.rig.conftest", "-p", "no:cacheprovider", f"{folder}/test_inner.py::{name}"]
    environment = os.environ | {"MIGRATOR_RIG": rig.instance, "MIGRATOR_RIG_KEEP": "1", "PYTHONPATH": str(TREE)}
    done = subprocess.run(command, cwd=TREE, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=500, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_a_test_that_fails(rig: Rig, clean_hosts: CleanHosts, tmp_path: Path) -> None:
    said = inner(rig, tmp_path, "test_that_fails")
    for host, state in (("hosta", "prepared"), ("hostb", "received")):
        part = said.partition(f" what {host} knew ")[2].partition(" what ")[0]
        for title in ("migrator status -a", "journal", "containers", "processes", "room"):
            assert f"--- {title}" in part, said
        assert f'"state": "{state}"' in part, said
    assert "c1 RUNNING populated 1" in said and "Error: a line of a log" in said, said
    assert said.count(" what hosta knew ") == 1, "and once"


def test_a_test_that_leaves_something(rig: Rig, clean_hosts: CleanHosts, tmp_path: Path) -> None:
    said = inner(rig, tmp_path, "test_that_leaves_something")
    assert "=== what hostb knew ===" in said and '"state": "received"' in said, said
    assert rig.leftovers() == [] and rig.sh("hosta", "ls /pool") == "", "it has been cleaned up all the same"


def test_of_some_containers_alone(rig: Rig, clean_hosts: CleanHosts) -> None:
    for name in ("c1", "c2"):
        rig.guest("hosta", name, "tick")
        rig.migrator("hosta", "prepare-data", name, "-d", "root@hostb").expect(0)
    clean_hosts.allow("snapshot", "spool")
    (_, here), _ = told(rig, ["c2"])
    events = here.partition("--- journal")[2].partition("---")[0]
    assert " c2 " in events and " c1 " not in events


def test_a_host_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is what there is to tell; it takes nothing else away."""
    def ends(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("rig", 1)

    rig = Rig("nobody")
    monkeypatch.setattr(rig, "exec", ends)
    text = as_text(told(rig))
    assert text.count("It does not answer") == 2 and "=== what hostb knew ===" in text
