# SPDX-License-Identifier: GPL-2.0-or-later
"""What README.md and docs/guide.md tell their reader to type: their code blocks, with the host that each line is for.

A code block is indented by four spaces (blocks between ``` are only shown). In it

    alpha# migrator status              is typed on the host of that name; lines without a prompt below it are output;
    apt-get install lxc                 in a block without any prompt: on every host that the text before it names;
    # /etc/network/interfaces           as the block's first line: the rest is that file's content.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from riglib import paths

FILES = ("README.md", "docs/guide.md")
"""Both count as one page for callers: each heading occurs in only one of them."""

INDENT = "    "
PROMPT = re.compile(r"([a-z]+)#\s+(\S.*)")
FILE = re.compile(r"# (/\S+)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
APT = "apt-get install "


@dataclass(frozen=True)
class Block:
    """One code block of the page."""

    section: str
    """The heading that it is under."""
    lines: tuple[str, ...]

    @property
    def file(self) -> str:
        """The file whose content this is; empty if it is not a file."""
        found = FILE.fullmatch(self.lines[0])
        return found[1] if found else ""

    @property
    def content(self) -> str:
        """The content of that file."""
        return "\n".join(self.lines[1:]) + "\n"

    @property
    def prompted(self) -> list[tuple[str, str]]:
        """Return the lines that are typed at a prompt, each with the name of its host."""
        return [(found[1], found[2]) for found in map(PROMPT.fullmatch, self.lines) if found]

    @property
    def plain(self) -> list[str]:
        """Return the lines of a block that is typed without a prompt; none if it is of another kind."""
        return [] if self.file or self.prompted else list(self.lines)


def blocks(text: str) -> list[Block]:
    """Return all code blocks of a page, in order."""
    found: list[Block] = []
    section, block = "", list[str]()
    for line in [*FENCED.sub("", text).splitlines(), "end"]:
        if line.startswith(INDENT):
            block.append(line.removeprefix(INDENT))
            continue
        if not line and block:
            block.append(line)  # it may be inside a block
            continue
        if block:
            found.append(Block(section, tuple("\n".join(block).rstrip().split("\n"))))
            block = []
        if line.startswith("#"):
            section = line.lstrip("# ")
    return found


def installation(text: str) -> list[str]:
    """Return the lines that install migrator on a host: the block that begins with the packages and contains pip."""
    (lines,) = [block.plain for block in blocks(text) if any("pip install" in line for line in block.plain)]
    return lines


def packages(text: str) -> list[str]:
    """Return every line of the page that installs Debian packages, also those in its text, without their comments."""
    inline = re.findall(rf"`({APT}[^`]+)`", text)
    typed = [line for block in blocks(text) for line in [*block.plain, *(line for _, line in block.prompted)]]
    return [line.partition("#")[0].strip() for line in [*typed, *inline] if line.startswith(APT)]


def read() -> str:
    """Return the page, the README first."""
    return "\n".join(Path(paths.TREE, name).read_text(encoding="utf-8") for name in FILES)
