# SPDX-License-Identifier: GPL-2.0-or-later
"""From what the other host sends to a typed message, and back.

Whether it has the fields, the types, the sizes and the names that belong there is looked at here, once, and nowhere
else. Fields that a message does not know are passed over: a newer version may send more.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from migrator.errors.connection import ProtocolError


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object."""

    @classmethod
    def look(cls, data: Mapping[str, Any]) -> None:
        """Raises ProtocolError for what is too much to be looked at field by field."""


class Answer(Message, frozen=True, kw_only=True):
    """The fields of a REPLY; those that nobody reads have defaults, as versions differ in them."""


A = TypeVar("A", bound=Answer)
M = TypeVar("M", bound=Message)


class Request(Message, Generic[A], frozen=True, kw_only=True):
    """The fields of a REQUEST for `op`, and of which type its last answer is. Raises InvalidName for a wrong name."""

    op: ClassVar[str]

    @classmethod
    def answer(cls) -> type[A]:
        """What the class is derived from says it."""
        (base,) = cls.__orig_bases__  # type: ignore[attr-defined]
        return typing.cast(type[A], typing.get_args(base)[0])


def encoded(message: Message | Mapping[str, Any]) -> Mapping[str, Any]:
    """As JSON takes it; what is UNSET is left out. What is no message is that already."""
    return typing.cast(Mapping[str, Any], msgspec.to_builtins(message)) if isinstance(message, Message) else message


def decoded(cls: type[M], data: object) -> M:
    """The message that `encoded` made; raises ProtocolError for anything else, and InvalidName for a wrong name."""
    what = (f"its request {cls.op}" if issubclass(cls, Request)
            else "its answer" if issubclass(cls, Answer) else f"its {cls.__name__}")
    try:
        cls.look(typing.cast(Mapping[str, Any], data))
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        raise ProtocolError(reason=f"in {what}: {error!s:.300}") from None
    except (UnicodeError, RecursionError, OverflowError):  # lone surrogates where a field's name should be
        raise ProtocolError(reason=f"the fields of {what} make no sense") from None
