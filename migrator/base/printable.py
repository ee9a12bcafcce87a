# SPDX-License-Identifier: GPL-2.0-or-later
"""Text from elsewhere as a terminal or a log may be shown it.

A host's name, an error's words or a process' command line may hold anything: escape sequences that clear the screen,
set its title or (in some terminals) type for the user, characters that reverse what follows (CVE-2021-42574), a line
end and behind it a line that looks like one of ours. What is not printable is shown as Python's `ascii` would.
"""

from __future__ import annotations

from typing import TextIO

LINE_MAX = 8192  # characters that are shown of one line
LINES_MAX = 200  # that are shown of one message
CONTINUES = "  | "  # what begins each line of a message but its first


def line(text: str) -> str:
    """In one line: a line end shows as `\\n`."""
    start = text[:LINE_MAX]
    shown = start if start.isprintable() else "".join(map(_shown, start))
    return shown if start == text else f"{shown}… ({len(text) - LINE_MAX} more characters)"


def message(text: str) -> str:
    """In several lines where `text` has them; nothing in it can pass for the beginning of another message."""
    lines = text.removesuffix("\n").replace("\t", "    ").split("\n", LINES_MAX)
    if len(lines) > LINES_MAX:
        lines[-1] = f"… ({lines[-1].count(chr(10)) + 1} more lines)"
    return f"\n{CONTINUES}".join(map(line, lines))


def text(text: str) -> str:
    """In as many lines as it has: for what is put together here, out of parts that went through `line`."""
    return "\n".join(map(line, text.split("\n")))


def encodable(text: str, stream: TextIO) -> str:
    """With the characters that the stream's encoding lacks escaped too; Python would refuse to write them."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _shown(character: str) -> str:
    """Not printable is, to Python, all of Unicode's categories Other and Separator but the blank."""
    return character if character.isprintable() else ascii(character)[1:-1]
