# SPDX-License-Identifier: GPL-2.0-or-later
"""What README.md and docs/guide.md show of the program's output is what it says, but for numbers and names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.preflight import findings
from stages import status
from tests.migrator.preflight.situations import FOUND

TREE = Path(__file__).parents[1]
PAGES = [TREE / "README.md", TREE / "docs" / "guide.md"]
SOURCES = [path for folder in ("migrator", "stages") for path in sorted((TREE / folder).rglob("*.py"))]
SAYS = re.compile(r"(Plan|Round \d|Sending|Sent|Dumped|No more|At \d|\w+ has moved|\w+ \w{8}: |\w+ (can|cannot) move)")
"""How a line of output begins that is a message."""


def shown(page: Path) -> list[str]:
    """The lines between ``` on a page."""
    return [line for block in re.findall(r"^```\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
            for line in block.splitlines()]


def texts() -> Iterator[str]:
    """Every text in the code; in the place of what is filled in stands a NUL."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 500:
                yield node.value


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text; what is filled in at the begin of one may be others."""
    for sentence in text.strip(" ").split(". "):
        while sentence:
            if len(sentence.replace("\0", "")) >= 8:
                yield sentence.removesuffix(".")
            sentence = sentence.partition("\0 ")[2] if sentence.startswith("\0 ") else ""


SENTENCES = {tuple(sentence.split("\0")) for text in texts() for sentence in sentences(text)}


def is_said(sentence: str) -> bool:
    return any(all(part in sentence for part in parts) and re.fullmatch(".+?".join(map(re.escape, parts)), sentence)
               for parts in SENTENCES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_messages_that_are_shown_are_in_the_code(page: Path) -> None:
    for line in shown(page):
        if SAYS.match(line):
            text = re.sub(r"^\w+ [0-9a-f]{8}: ", "", line)  # of whom `status` says it
            for sentence in re.split(r"(?<=\.) (?=[A-Z]|beta)", text):
                assert is_said(sentence.removesuffix(".")), f"{page.name} shows what nothing says: {sentence}"


def test_what_nothing_says_is_seen() -> None:
    assert SAYS.match("Sending the disk of shop") and not is_said("Sending the disc of shop to hostb")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_findings_that_are_shown_are_found(page: Path) -> None:
    """With the names of the made-up hosts that the preflight's tests have."""
    found = {line for _, _, changed, *_ in FOUND for line in findings.render(changed.find()).splitlines()}
    for line in shown(page):
        if re.match(r"(error|warning|info) +[a-z-]+: | +-> ", line):
            for ours, theirs in (("web", "c1"), ("alpha", "here"), ("beta", "there"), ("/var/lib/lxc", "/pool")):
                line = re.sub(rf"\b{ours}\b", theirs, line)
            assert line in found, f"{page.name} shows what check does not find: {line}"


def test_the_table_of_status_is_shown_with_its_columns() -> None:
    (head,) = [line for line in shown(PAGES[0]) if line.startswith("NAME ")]
    source = ast.parse(Path(status.__file__).read_text())
    assert head.split() in [ast.literal_eval(node) for node in ast.walk(source) if isinstance(node, ast.List)
                            and node.elts and all(isinstance(each, ast.Constant) for each in node.elts)]
