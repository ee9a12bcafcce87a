# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors made from others: from an exception of ours or of a library, or from what the other host has sent."""

from __future__ import annotations

import errno
import itertools
from typing import Any

from migrator.errors import (
    InternalError,
    Interrupted,
    MigratorError,
    connection,
    containers,
    data,
    jobs,
    memory,
    outcomes,
    ownership,
    this_host,
)
from migrator.errors.documented import DocumentedError

SUBJECTS = (containers, data, jobs, memory, connection, outcomes, ownership, this_host)  # so that their classes exist


FIELDS_MAX = 32  # of an error from the other host
FIELD_MAX = 4000  # characters in each


def as_ours(error: BaseException, doing: str = "") -> DocumentedError:
    """The error itself if users know its class, otherwise as they shall see it. `doing` says when it happened."""
    if isinstance(error, DocumentedError):
        return error
    ours: MigratorError
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        ours = data.DiskFull(reason=f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    else:
        kind = f"{type(error).__name__} in {doing}" if doing else type(error).__name__
        ours = InternalError(reason=f"{kind}: {str(error)[:1000]}")
    ours.__cause__ = error  # for the traceback of --debug
    return ours


def by_code() -> dict[str, type[MigratorError]]:
    """Every error class under its code: how an error from the other host finds its class again."""
    found: dict[str, type[MigratorError]] = {}
    waiting: list[type[MigratorError]] = [MigratorError]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        found[cls.code()] = cls
    return found


def from_json(sent: dict[str, Any], host: str) -> MigratorError:
    """The error that the other host sent, as an exception that names that host."""
    cls = by_code().get(str(sent.get("code")), InternalError)
    fields = sent.get("fields")
    if sent.get("code") == Interrupted.code():  # it was interrupted there, not here
        cls, fields = MigratorError, {"reason": str(sent.get("message"))[:1000]}
    if issubclass(cls, outcomes.OutcomeError) or not isinstance(fields, dict):
        cls, fields = InternalError, {"reason": str(sent.get("message"))[:1000]}
    named = {"host": host[:255]} if issubclass(cls, memory.NamesLog) else {}  # an older version does not send it
    some = itertools.islice(fields.items(), FIELDS_MAX)
    error = cls(**named | {str(key)[:100]: str(value)[:FIELD_MAX] for key, value in some})
    error.host = host[:255]
    return error
