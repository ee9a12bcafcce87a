# SPDX-License-Identifier: GPL-2.0-or-later
"""What README.md and docs/guide.md tell their reader to type: their code blocks, with the host that each line is for.

A code block is indented by four spaces (what stands between ``` is only shown). In it

    alpha# migrator status              is typed on the host of that name; what has no prompt below it is output;
    apt-get install lxc                 in a block without any prompt: on every host that the text before it names;
    # /etc/network/interfaces           as the block's first line: the rest is that file's content.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from riglib import paths

FILES = ("README.md", "docs/guide.md")
"""Both are one page to whoever reads them here: a headline stands in one of them alone."""

INDENT = "    "
PROMPT = re.compile(r"([a-z]+)#\s+(\S.*)")
FILE = re.compile(r"# (/\S+)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
APT = "apt-get install "


@dataclass(frozen=True)
class Block:
    """One code block of the page."""

    section: str
    """The heading that it stands under."""
    lines: tuple[str, ...]

    @property
    def file(self) -> str:
        """The file whose content this is; empty if it is none."""
        found = FILE.fullmatch(self.lines[0])
        return found[1] if found else ""

    @property
    def content(self) -> str:
        """What belongs in that file."""
        return "\n".join(self.lines[1:]) + "\n"

    @property
    def prompted(self) -> list[tuple[str, str]]:
        """Return the lines that are typed at a prompt, each with the host's name in it."""
        return [(found[1], found[2]) for found in map(PROMPT.fullmatch, self.lines) if found]

    @property
    def plain(self) -> list[str]:
        """Return the lines of a block that is typed without a prompt; none if it is of another kind."""
        return [] if self.file or self.prompted else list(self.lines)


def blocks(text: str) -> list[Block]:
    """Return all code blocks of a page, in its order."""
    found: list[Block] = []
    section, block = "", list[str]()
    for line in [*FENCED.sub("", text).splitlines(), "end"]:
        if line.startswith(INDENT):
            block.append(line.removeprefix(INDENT))
            continue
        if not line and block:
            block.append(line)  # may lie within a block
            continue
        if block:
            found.append(Block(section, tuple("\n".join(block).rstrip().split("\n"))))
            block = []
        if line.startswith("#"):
            section = line.lstrip("# ")
    return found


def installation(text: str) -> list[str]:
    """Return the lines that install migrator on a host: the block that begins with the packages and has pip in it."""
    (lines,) = [block.plain for block in blocks(text) if any("pip install" in line for line in block.plain)]
    return lines


def packages(text: str) -> list[str]:
    """Return every line of the page that installs Debian packages, in its text too, without what is said of it."""
    inline = re.findall(rf"`({APT}[^`]+)`", text)
    typed = [line for block in blocks(text) for line in [*block.plain, *(line for _, line in block.prompted)]]
    return [line.partition("#")[0].strip() for line in [*typed, *inline] if line.startswith(APT)]


def read() -> str:
    """Return the page, the README first."""
    return "\n".join(Path(paths.TREE, name).read_text(encoding="utf-8") for name in FILES)
