# SPDX-License-Identifier: GPL-2.0-or-later
"""A page of docs/ that is written by hand except for its figures: these are placed between two marks."""

from __future__ import annotations

from pathlib import Path


def put(text: str, page: Path, part: str = "figures") -> None:
    """Write `text` between the two marks of a part of the page; if it has none, they are added at its end."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    old = page.read_text() if page.exists() else ""
    if begin not in old:
        old += f"{begin}\n{end}\n"
    before, _, rest = old.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
