# SPDX-License-Identifier: GPL-2.0-or-later
"""Text from elsewhere, made safe for a terminal or a log.

A host's name, an error message or a process' command line may contain anything: escape sequences that clear the screen,
set its title or (on some terminals) type for the user, characters that reverse what follows (CVE-2021-42574), or a line
break and after it a line that looks like one of ours. What is not printable is shown as by Python's `ascii`.
"""

from __future__ import annotations

from typing import TextIO

LINE_MAX = 8192  # characters that are shown of one line
LINES_MAX = 200  # lines that are shown of one message
CONTINUES = "  | "  # what begins each line of a message but its first


def line(text: str) -> str:
    """In one line: a line end shows as `\\n`."""
    start = text[:LINE_MAX]
    shown = start if start.isprintable() else "".join(map(_shown, start))
    return shown if start == text else f"{shown}… ({len(text) - LINE_MAX} more characters)"


def message(text: str) -> str:
    """In several lines if `text` has them; nothing in it can pass for the beginning of another message."""
    lines = text.removesuffix("\n").replace("\t", "    ").split("\n", LINES_MAX)
    if len(lines) > LINES_MAX:
        lines[-1] = f"… ({lines[-1].count(chr(10)) + 1} more lines)"
    return f"\n{CONTINUES}".join(map(line, lines))


def text(text: str) -> str:
    """In as many lines as it has: for text put together here, from parts that went through `line`."""
    return "\n".join(map(line, text.split("\n")))


def encodable(text: str, stream: TextIO) -> str:
    """With the characters that the stream's encoding lacks escaped as well; Python would refuse to write them."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _shown(character: str) -> str:
    """To Python, all of Unicode's categories Other and Separator, except the space, are not printable."""
    return character if character.isprintable() else ascii(character)[1:-1]
