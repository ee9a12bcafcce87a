"""What the documents claim about the program is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from migrator import cli, manual
from migrator.states import TABLES, Event, Role, State, next_stage, owner

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


# --- all of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_files_that_are_named_exist(page: Path) -> None:
    folders = "migrator|stages|tunnel|tests|vagrant|bench|docs"
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
    assert listed == [line.split()[0] for line in cli.STATUSES.splitlines()[1:]]


def test_every_command_has_its_json_described() -> None:
    text = (DOCS / "json.md").read_text()
    described = set(re.findall(r"^### `([a-z-]+)`", text, re.MULTILINE))
    stages = {name for name, parser in manual.commands().items() if parser.get_default("name_required") is not None}
    assert described >= stages
    assert described <= manual.commands().keys()


def test_every_module_is_on_the_map() -> None:
    """docs/architecture.md names each module and package of migrator/, and none that is not there."""
    text = (DOCS / "architecture.md").read_text()
    table = "\n".join(" ".join(row) for row in rows(text, "| module | what it does |"))
    named = set(re.findall(r"`([a-z_]+)`", table.partition("\n\n")[0]))
    there = {path.stem for path in (TREE / "migrator").glob("*.py")} - {"__init__", "__main__"}
    there |= {path.parent.name for path in (TREE / "migrator").glob("*/__init__.py")}
    assert there <= named, f"missing: {there - named}"
