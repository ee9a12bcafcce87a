# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents claim about the program is so."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import stages
from docs import picture
from migrator import cli, manual
from migrator.record.decisions import next_stage
from migrator.record.states import TABLES, Event, Role, State, owner
from stages.steps import arguments
from tests.model import destination_answers, programs

TREE = Path(__file__).parents[1]
DOCS = TREE / "docs"
PAGES = [TREE / "README.md", TREE / "vagrant" / "README.md", *sorted(DOCS.glob("*.md"))]


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table under the line `head`."""
    lines = text[text.index(head):].splitlines()[2:]
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


# --- docs/states.md -------------------------------------------------------------------------------------------


def part(role: Role) -> str:
    text = (DOCS / "states.md").read_text()
    return text[text.index(f"### On the {role}\n"):]


@pytest.mark.parametrize("role", Role)
def test_every_state_is_explained(role: Role) -> None:
    table = rows(part(role), "| state | what it means | owner | next command | after a crash |")
    there = {state for key, new in TABLES[role].items() for state in (key[0], new) if state}
    assert sorted(row[0] for row in table) == sorted(f"`{state}`" for state in there)
    for name, meaning, owned_by, next_, _crash in table:
        state = State(name.strip("`"))
        verb, _, place = next_stage(role, state).partition("@")
        assert meaning
        assert owned_by == owner(state)
        assert next_ == (f"`{verb}`" if verb else "") + (f" on the {place}" if place else "")


@pytest.mark.parametrize("role", Role)
def test_every_move_is_listed(role: Role) -> None:
    listed = set()
    for olds, event, new in rows(part(role), "| in state | event | leads to |"):
        for old in olds.split(", "):
            listed.add((None if old == "(nothing)" else State(old.strip("`")), Event(event), State(new.strip("`"))))
    assert listed == {(old, event, new) for (old, event), new in TABLES[role].items()}


def recorded(function: Callable[..., object], seen: set[object] | None = None) -> set[str]:
    """The events that a function of a stage, or one that it calls there, can put on record, by their source."""
    seen = set() if seen is None else seen
    if function in seen:
        return set()
    seen.add(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    space: dict[str, object] = dict(vars(sys.modules[function.__module__]))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            space |= {alias.name: getattr(importlib.import_module(node.module), alias.name, None)
                      or importlib.import_module(f"{node.module}.{alias.name}") for alias in node.names}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Event":
            found.add(str(Event[node.attr]))
        if isinstance(node, ast.Call):
            called: object = None
            if isinstance(node.func, ast.Name):
                called = space.get(node.func.id)
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                called = getattr(space.get(node.func.value.id), node.func.attr, None)
            if callable(called) and str(getattr(called, "__module__", "")).startswith("stages"):
                found |= recorded(called, seen)
    return found


def around(request: str) -> tuple[set[str], set[str]]:
    """What the model's programs record last before a request, and next after it, before they ask anything else."""
    before, after = set(), set()
    for steps in programs.PROGRAMS.values():
        for place in (number for number, word in enumerate(steps) if word == f"call:{request}"):
            earlier = [word for word in steps[:place] if ":" not in word]
            before |= set(earlier[-1:])
            for word in steps[place + 1:]:
                if word.startswith("call:"):
                    break
                if not word.startswith("act:"):
                    after.add(word)
                    break
    if request == "own":
        after.add(programs.PROGRAMS["refused"][0])
    return {"attempt" if word == "number" else word for word in before}, after


def test_every_message_is_explained() -> None:
    """What the table says is written around each request is what the handlers and the model's programs write."""
    handlers = {message.op if kind == "HANDLERS" else message.__struct_config__.tag: handler
                for stage in stages.load_all() for kind in ("HANDLERS", "RECEIVERS")
                for message, handler in getattr(stage, kind, {}).items()}
    text = (DOCS / "states.md").read_text()
    table = rows(text, "| request | source, before | destination, before it answers | source, after | what it is |")
    explained = set()
    for requests, before, there, after, what in table:
        assert what
        for request in re.findall(r"`([a-z-]+)`", requests):
            explained.add(request)
            assert set(there.split(", ")) - {""} == recorded(handlers[request]), request
            modelled = {"disk": "receive", "increment": "images"}.get(request, request)
            assert (set(before.split(", ")) - {""}, set(after.split(", ")) - {""}) == around(modelled), request
    assert explained == set(handlers)
    names = {"disk": "receive", "increment": "images"}
    assert set(destination_answers.HANDLERS) <= {names.get(request, request) for request in explained}


def test_the_limits_are_those_of_the_code() -> None:
    """Each is a constant of the module that is named, or the default of an option."""
    table = rows((DOCS / "states.md").read_text(), "| limit | seconds | in | when it passes |")
    assert len(table) > 10
    for limit, seconds, place, what in table:
        assert what
        if place == "option of `migrate`":
            known = {flag: action.default for action in manual.options(manual.commands()["migrate"])
                     for flag in action.option_strings}
            assert float(seconds) == known[limit.strip("`")], limit
            continue
        module, _, name = place.strip("`").rpartition(".")
        assert float(seconds) == getattr(importlib.import_module(module), name), limit


# --- systemd/ -------------------------------------------------------------------------------------------------

UNITS = sorted((TREE / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_what_there_is(unit: Path, tmp_path: Path) -> None:
    """systemd takes the file as it is, and migrator the command line in it."""
    text = unit.read_text()
    (command,) = re.findall(r"^ExecStart=/usr/local/bin/migrator (.*)$", text, re.MULTILINE)
    words = [word for word in re.sub(r"\$\{[A-Z_]+\}", "/x", command).split() if not word.startswith("$")]
    assert words[0] == cli.parse(words).stage.NAME
    copy = tmp_path / unit.name
    copy.write_text(text.replace("/usr/local/bin/migrator", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0 and unit.name not in done.stderr, done.stderr
    assert unit.name in "".join(page.read_text() for page in PAGES) or unit.stem in (TREE / "README.md").read_text()


@pytest.mark.parametrize("unit", [unit for unit in UNITS if "DynamicUser=" not in unit.read_text()],
                         ids=lambda unit: unit.name)
def test_containers_inherit_nothing_of_a_unit(unit: Path) -> None:
    """What is started in there has the unit's umask and limits, as it would have those of root's login."""
    service = unit.read_text().partition("[Service]\n")[2].partition("\n[")[0]
    set_ = dict(re.findall(r"^(\w+)=(.*)$", service, re.MULTILINE))
    assert set(set_) == {"Type", "ExecStart", "Restart", "RestartSec", "KillMode", "TimeoutStopSec", "TasksMax"}
    assert set_["KillMode"] == "process" and set_["TasksMax"] == "infinity"


# --- all of them ----------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What one can link to on a page: its headlines, as GitHub calls them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if not link.startswith("https://"):
            there = page.parent / link if link else page
            assert there.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {link}#{anchor}"


def test_the_picture_is_what_its_code_draws() -> None:
    assert (DOCS / "picture.svg").read_text() == picture.picture(), "make docs"
    assert "prefers-color-scheme: dark" in picture.STYLE
    assert "docs/picture.svg" in (TREE / "README.md").read_text()


def test_the_readme_is_short() -> None:
    assert len((TREE / "README.md").read_text().splitlines()) < 200


def test_what_takes_a_dry_run() -> None:
    """README.md says that the stages, migrate, rollback, cleanup and prepare-guest do, and which commands do not."""
    takes = {name for name, parser in manual.commands().items()
             if any("--dry-run" in action.option_strings for action in manual.options(parser))}
    by_hand = {"prepare-data", "import-data", "create-dump", "restore-dump", "finish"}
    assert takes == by_hand | {"migrate", "rollback", "cleanup", "prepare-guest"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_files_that_are_named_exist(page: Path) -> None:
    folders = "migrator|stages|tunnel|tests|harness|vagrant|bench|docs"
    text = page.read_text().replace("stages/my_stage.py", "")  # the one that is still to be written
    for name in re.findall(rf"(?<![\w/.-])(?:{folders})/[A-Za-z0-9_./-]*[a-z]\b", text):
        assert (TREE / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_commands_that_are_shown_exist(page: Path) -> None:
    """Every `migrator COMMAND --option` in a document is one that the command line takes."""
    commands = manual.commands()
    for words in re.findall(r"\bmigrator ([a-z][^\n`|();]*)", page.read_text()):
        both = " ".join(words.split()[:2])
        command = both if both in commands else words.split()[0]
        if command in commands:
            known = {flag for action in manual.options(commands[command]) for flag in action.option_strings}
            # Up to the end of the command: a sentence may go on after " -- " or a comma.
            used = set(re.findall(r"(?<= )--?[a-z][a-z-]*", re.split(r" -- |, |\. |   ", words)[0]))
            assert used <= known, f"{page.name}: migrator {words}"


def test_the_table_of_statuses() -> None:
    listed = [row[0] for row in rows((TREE / "README.md").read_text(), "| status | meaning |")]
    assert listed == [line.split()[0] for line in arguments.STATUSES.splitlines()[1:]]


def test_every_command_has_its_json_described() -> None:
    text = (DOCS / "json.md").read_text()
    described = set(re.findall(r"^### `([a-z-]+)`", text, re.MULTILINE))
    stages = {name for name, parser in manual.commands().items() if parser.get_default("name_required") is not None}
    assert described >= stages
    assert described <= manual.commands().keys()
