# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/json.md and the commands agree on every key."""

from __future__ import annotations

import json
import re
from typing import Any

from harness.rig import DESTINATION, TREE, Rig
from tests.rig.clean_hosts import CleanHosts


def documented(command: str) -> set[str]:
    """The keys in the first column of a command's table."""
    text = (TREE / "docs" / "json.md").read_text()
    section = text.partition(f"\n### `{command}`")[2].partition("\n### ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def test_every_key_is_documented(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    rig.guest("hosta", "c2", "tick")
    results: dict[str, dict[str, Any]] = {}

    def say(host: str, command: str, *arguments: str) -> None:
        outcome = rig.migrator(host, command, *arguments, "--json").expect(0)
        assert len(outcome.stdout.splitlines()) == 1
        for line in outcome.stderr.splitlines():
            assert {"type", "time", "message"} <= json.loads(line).keys()
        results[command] = outcome.json

    say("hosta", "check", "c1", "-d", DESTINATION)
    say("hosta", "prepare-data", "c1", "-d", DESTINATION)
    say("hostb", "import-data", "c1")
    say("hosta", "create-dump", "c1", "-d", DESTINATION)
    say("hostb", "restore-dump", "c1")
    say("hosta", "finish", "c1")
    frozen = results["restore-dump"]["restored_at"] - results["create-dump"]["frozen_at"]
    assert 0 < frozen < 60
    migrations = [rig.status(host, "c1") for host in ("hosta", "hostb")]
    say("hosta", "status", "c1")
    say("hosta", "cleanup", "c1")
    rig.migrator("hosta", "prepare-data", "c2", "-d", DESTINATION).expect(0)
    say("hosta", "rollback", "c2")
    for command, result in results.items():
        if command != "status":
            assert result.keys() == documented(command), command
    assert results["status"].keys() == {"migrations", "kept"}
    assert migrations[0].keys() | migrations[1].keys() == documented("status")


def test_a_stage_that_was_done_already(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    for _ in range(2):
        sent = rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION, "--json").expect(0).json
    assert sent.keys() == {"migration", "name", "stage", "already", "next"}
    assert sent["already"] is True
    rig.migrator("hosta", "rollback", "c1").expect(0)


def test_an_error(rig: Rig, clean_hosts: CleanHosts) -> None:
    outcome = rig.migrator("hosta", "check", "nobody", "--json")
    assert outcome.error["code"] == "container-not-found"
    assert outcome.status == outcome.error["status"]
    assert {"code", "message", "cure", "status", "fields"} == outcome.error.keys()
    rig.guest("hosta", "c1", "tick")
    rig.sh("hostb", "mkdir -p /pool/c1")
    refused = rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION, "--json")
    rig.sh("hostb", "rmdir /pool/c1")
    assert refused.error["code"] in ("container-exists", "blocked")


def test_dry_run(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    listed = rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION, "--dry-run", "--json").expect(0).json
    assert {tuple(entry) for entry in listed["dry_run"]} == {("host", "argv")}
    assert {entry["host"] for entry in listed["dry_run"]} == {"hosta", "hostb"}
    assert clean_hosts.unexpected() == []
    assert rig.migrator("hosta", "status").stdout == "No migration is in progress.\n"
