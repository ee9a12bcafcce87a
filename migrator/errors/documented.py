# SPDX-License-Identifier: GPL-2.0-or-later
"""The form of every error that a user can meet.

The docstring of a class is its message and `cure` tells what to do; both are filled in with the fields that the error
was raised with. `migrator.errors` and `tunnel.tunnel_errors` have them, docs/errors.md the table of all.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DocumentedError(Exception):
    """{reason}"""

    status: ClassVar[int] = 2
    cure: ClassVar[str] = ""

    def __init__(self, /, **fields: Any) -> None:
        self.fields = fields
        self.host: str | None = None  # set when the error comes from the other host
        self.instead = ""  # advice from a caller that passes it on and knows better than its class
        super().__init__(self.message)

    @classmethod
    def code(cls) -> str:
        """The class's name in words joined by hyphens: what `--json` and the protocol call it."""
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("-")

    @property
    def message(self) -> str:
        return _fill(self.__doc__ or "", self.fields)

    @property
    def hint(self) -> str:
        """What to do. Where the other host has filled it in, it is shown as that host's words, not as our advice."""
        text = self.instead or _fill(self.cure, self.fields)
        return f"{self.host} says: {text}" if self.host and text and "{" in self.cure else text

    @property
    def exit_status(self) -> int:
        return self.status

    def __str__(self) -> str:
        return f"{self.host}: {self.message}" if self.host else self.message

    def to_json(self) -> dict[str, Any]:
        """The error as `--json` prints it and as the protocol carries it."""
        data: dict[str, Any] = {
            "code": self.code(),
            "message": self.message,
            "cure": self.hint,
            "status": self.exit_status,
            "fields": {key: str(value) for key, value in self.fields.items()},
        }
        if self.host:
            data["host"] = self.host
        return data


class _Blank(dict[str, Any]):
    """A field that the other host's older version did not send shows as its name, not as a KeyError.

    But for `path`, which is an option at the end of a command, and can be left out of it.
    """

    def __missing__(self, key: str) -> str:
        return "" if key == "path" else f"<{key}>"


def _fill(template: str, fields: dict[str, Any]) -> str:
    return " ".join(template.split()).format_map(_Blank(fields)).strip()
