# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of a move in README.md, drawn in light and in dark mode.

    python3 docs/picture.py >docs/picture.svg
"""

from __future__ import annotations

from html import escape

WIDTH, HEIGHT = 860, 350
LANE = 34
SOURCE, DESTINATION, CLIENT = 74, 204, 300
"""Where each lane begins, from the top: pixels."""

FROZEN, TOKEN, RESTORED, FINISHED = 420, 596, 650, 724
"""When it happens, from the left: pixels. Not to scale."""

STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.name { font-weight: 600; }
.verb { font-family: ui-monospace, monospace; font-size: 12px; fill: #57606a; }
.on { fill: #ffffff; font-weight: 600; }
.runs { fill: #1a7f37; }
.frozen { fill: #0969da; }
.kept { fill: #eaeef2; stroke: #8c959f; }
.line { stroke: #57606a; stroke-width: 1.5; fill: none; }
.gap { stroke-dasharray: 2 5; }
.token { fill: #bf8700; }
.back { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .verb { fill: #9198a1; }
  .on { fill: #ffffff; }
  .runs { fill: #238636; }
  .frozen { fill: #1f6feb; }
  .kept { fill: #21262d; stroke: #6e7681; }
  .line { stroke: #9198a1; }
  .token { fill: #d29922; }
  .back { fill: #0d1117; }
}
"""


def text(x: int, y: int, words: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def bar(lane: int, begin: int, end: int, kind: str, words: str) -> str:
    """What the container does on a host for a while."""
    label = text((begin + end) // 2, lane + LANE - 12, words, "" if kind == "kept" else "on")
    return f'<rect x="{begin}" y="{lane}" width="{end - begin}" height="{LANE}" rx="4" class="{kind}"/>{label}'


def arrow(x: int, down: bool, first: str, second: str = "") -> str:
    """What goes from one host to the other."""
    top, bottom = SOURCE + LANE + 4, DESTINATION - 4
    begin, end, head = (top, bottom, -7) if down else (bottom, top, 7)
    line = f'<path class="line" d="M{x} {begin}V{end}m-5 {head}l5 {-head}l5 {head}"/>'
    middle = (top + bottom) // 2
    return (line + text(x + 9, middle - (4 if second else -4), first, anchor="start")
            + text(x + 9, middle + 13, second, anchor="start"))


def picture() -> str:
    """The whole file."""
    token = (SOURCE + LANE + DESTINATION) // 2
    parts = [
        text(10, SOURCE + 22, "source", "name", "start"), text(10, DESTINATION + 22, "destination", "name", "start"),
        text(10, CLIENT + 5, "a client", "name", "start"),
        bar(SOURCE, 100, FROZEN, "runs", "runs"),
        bar(SOURCE, FROZEN, FINISHED, "frozen", "frozen, with all its memory"),
        bar(SOURCE, FINISHED, WIDTH - 10, "kept", "stopped, fenced"),
        bar(DESTINATION, 130, RESTORED, "kept", "what has arrived, checked; nothing runs"),
        bar(DESTINATION, RESTORED, WIDTH - 10, "runs", "runs"),
        arrow(140, True, "its disk,", "by btrfs send"), arrow(280, True, "what has", "changed since"),
        arrow(430, True, "memory (CRIU) and", "the last changes"),
        f'<path class="line" d="M{TOKEN} {SOURCE + LANE + 4}V{DESTINATION - 4}m-5 -7l5 7l5 -7"/>',
        f'<path class="token" d="M{TOKEN} {token - 12}l12 12l-12 12l-12 -12z"/>',
        text(TOKEN + 17, token + 4, "token", "name", "start"),
        arrow(FINISHED, False, "it runs"),
        text(220, SOURCE - 14, "prepare-data", "verb"), text(500, SOURCE - 14, "create-dump", "verb"),
        text(FINISHED + 30, SOURCE - 14, "finish", "verb"), text(290, DESTINATION + LANE + 20, "import-data", "verb"),
        text(RESTORED, DESTINATION + LANE + 20, "restore-dump", "verb"),
        f'<path class="line" d="M100 {CLIENT}H{FROZEN}"/><path class="line gap" d="M{FROZEN} {CLIENT}H{RESTORED}"/>'
        f'<path class="line" d="M{RESTORED} {CLIENT}H{WIDTH - 10}"/>',
        text((FROZEN + RESTORED) // 2, CLIENT + 20, "waits for an answer", "verb"),
        text(250, CLIENT + 20, "one TCP connection, never reopened", "verb"),
        text(100, 24, "migrator migrate", "verb", "start"),
        f'<path class="line" d="M230 20H{WIDTH - 10}m-7 -5l7 5l-7 5"/>',
        text(WIDTH - 10, HEIGHT - 8, "time, not to scale", "verb", "end"),
    ]
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
            f' aria-label="A container moves from the source to the destination">')
    back = f'<rect width="{WIDTH}" height="{HEIGHT}" class="back"/>'
    return "\n".join([head, f"<style>\n{STYLE}</style>", back, *parts, "</svg>\n"])


if __name__ == "__main__":
    print(picture(), end="")
