# SPDX-License-Identifier: GPL-2.0-or-later
"""Converts what the other host sends to a typed message, and back.

Whether a message has the right fields, types, sizes and names is checked here, once, and nowhere else. Unknown fields
are ignored: a newer version may send more.
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
        """Raise ProtocolError for what is too much to be checked field by field."""


class Answer(Message, frozen=True, kw_only=True):
    """The fields of a REPLY; those that nobody reads have defaults, because versions differ in them."""


A = TypeVar("A", bound=Answer)
M = TypeVar("M", bound=Message)


class Request(Message, Generic[A], frozen=True, kw_only=True):
    """The fields of a REQUEST for `op`, and the type of its last reply. Raises InvalidName for an invalid name."""

    op: ClassVar[str]

    @classmethod
    def answer(cls) -> type[A]:
        """The reply's type, taken from the type argument of the base class."""
        (base,) = cls.__orig_bases__  # type: ignore[attr-defined]
        return typing.cast(type[A], typing.get_args(base)[0])


def encoded(message: Message | Mapping[str, Any]) -> Mapping[str, Any]:
    """In a form that JSON takes, without what is UNSET; something that is not a Message has that form already."""
    return typing.cast(Mapping[str, Any], msgspec.to_builtins(message)) if isinstance(message, Message) else message


def decoded(cls: type[M], data: object) -> M:
    """The message that `encoded` made; raises ProtocolError for anything else, and InvalidName for an invalid name."""
    what = (f"its request {cls.op}" if issubclass(cls, Request)
            else "its answer" if issubclass(cls, Answer) else f"its {cls.__name__}")
    try:
        cls.look(typing.cast(Mapping[str, Any], data))
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        raise ProtocolError(reason=f"in {what}: {error!s:.300}") from None
    except (UnicodeError, RecursionError, OverflowError):  # lone surrogates in place of a field's name
        raise ProtocolError(reason=f"the fields of {what} make no sense") from None
