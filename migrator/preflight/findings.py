# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings: what stands in the way of a move, how serious it is, and what to do about it.

Each kind of finding is a `Code`, defined next to the check that reports it; docs/findings.md is generated from them.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re
from collections.abc import Collection, Iterable
from typing import Any

from migrator.base import printable
from migrator.errors import UsageError


class Severity(enum.StrEnum):
    ERROR = "error"  # the move would fail, or something would be lost
    WARNING = "warning"  # it may fail, or something will be different afterwards
    INFO = "info"


class Verdict(enum.StrEnum):
    READY = "ready"
    WARNINGS = "warnings"
    BLOCKED = "blocked"


@dataclasses.dataclass(frozen=True)
class Finding:
    code: str
    severity: Severity
    message: str  # one sentence with the facts in it
    cure: str  # what to type or do; "" if there is nothing to do
    unit: str = ""  # of the container's systemd: `migrator prepare-guest` does away with it by restarting that
    denied: bool = False  # `prepare-guest --for-good` denies it to the container, from that one's next start on

    def to_json(self) -> dict[str, str]:
        return {
            "code": self.code, "severity": self.severity.value, "message": self.message, "cure": self.cure,
        }


@dataclasses.dataclass(frozen=True)
class Code:
    """A kind of finding. `explanation` is for the documents: why it matters, and what that is based on.

    One that is `memory_only` stands in the way only of the memory: with --no-memory it does not exist.
    """

    name: str
    severity: Severity
    explanation: str
    memory_only: bool = False

    def found(self, message: str, cure: str = "", *, severity: Severity | None = None,
              unit: str = "", denied: bool = False) -> Finding:
        return Finding(self.name, severity or self.severity, message, cure, unit, denied)


_codes: dict[str, Code] = {}


def define(name: str, severity: Severity, explanation: str, *, memory_only: bool = False) -> Code:
    """A new kind of finding; its name must be new."""
    if name in _codes:
        raise ValueError(f"finding {name} is defined twice")
    _codes[name] = Code(name, severity, " ".join(explanation.split()), memory_only)
    return _codes[name]


def codes() -> dict[str, Code]:
    """Every kind of finding, by name, of the modules imported so far (`migrator.preflight.survey` imports all)."""
    return dict(sorted(_codes.items()))


def without_memory(findings: Iterable[Finding]) -> list[Finding]:
    """Those that still matter if no memory is moved."""
    return [finding for finding in findings if not _codes[finding.code].memory_only]


def check_ignored(names: Iterable[str]) -> frozenset[str]:
    """The codes that `--ignore` names; raises UsageError, suggesting similar codes, for one that does not exist."""
    names = frozenset(names)
    for name in sorted(names):
        if name not in _codes:
            near = difflib.get_close_matches(name, _codes, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(reason=f"--ignore {name}: there is no finding with that code{hint}")
    return names


def apply_ignored(findings: Iterable[Finding], ignored: Collection[str]) -> list[Finding]:
    """The findings, with each error that the user accepts turned into a warning that says so."""
    return [
        dataclasses.replace(finding, severity=Severity.WARNING,
                            message=f"{finding.message} (Blocks a move; accepted with --ignore {finding.code}.)")
        if finding.severity == Severity.ERROR and finding.code in ignored else finding
        for finding in findings
    ]


def verdict(findings: Iterable[Finding], ignored: Iterable[str] = ()) -> Verdict:
    """What the findings mean for the move. Raises UsageError for a code in `ignored` that does not exist."""
    severities = {finding.severity for finding in apply_ignored(findings, check_ignored(ignored))}
    if Severity.ERROR in severities:
        return Verdict.BLOCKED
    return Verdict.WARNINGS if Severity.WARNING in severities else Verdict.READY


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, in the order in which they were found."""
    return sorted(findings, key=lambda finding: list(Severity).index(finding.severity))


_STYLES = {Severity.ERROR: "\033[31;1m", Severity.WARNING: "\033[33;1m", Severity.INFO: "\033[2m"}
_HEADS = re.compile(rf"^(?:{'|'.join(Severity)})(?= +[a-z0-9-]+: )", re.MULTILINE)


def render(findings: Iterable[Finding]) -> str:
    """The findings for people: severity, code and sentence, then the cure, one below the other.

    Names of files and processes come from the container and may contain line breaks.
    """
    lines = []
    for finding in ordered(findings):
        lines.append(f"{finding.severity.value:<8} {finding.code}: {printable.line(finding.message)}")
        if finding.cure:
            lines.append(f"{'':8} -> {printable.line(finding.cure)}")
    return "\n".join(lines)


def painted(text: str) -> str:
    """The output of `render`, with its severities in colour."""
    return _HEADS.sub(lambda found: f"{_STYLES[Severity(found[0])]}{found[0]}\033[0m", text)


def to_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [finding.to_json() for finding in ordered(findings)]


def catalogue() -> str:
    """docs/findings.md."""
    lines = [
        "# Findings of the preflight",
        "",
        "Made from the code with `python3 -m migrator.preflight.survey > docs/findings.md`; a test compares them.",
        "",
        "An *error* blocks a migration unless its exact code is named with `--ignore CODE`. A *warning* does not, but",
        "changes the exit status of `migrator check`. The table shows the usual severity of a code; where a finding is",
        "milder or more severe than that, its message says why. Codes that concern the memory *only* are not reported",
        "with `--no-memory`, which stops the container and starts it again there.",
        "",
        "| code | usually | memory | why it matters |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| `{code.name}` | {code.severity.value} | {'only' if code.memory_only else ''} | {code.explanation} |"
              for code in codes().values()]
    return "\n".join(lines) + "\n"
