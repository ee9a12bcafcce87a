# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error a user can meet: a message, a cure, a number of its own, and the way over the wire and back."""

from __future__ import annotations

import errno
import json
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from migrator import errors
from migrator.errors import InternalError, Interrupted, MigratorError, convert
from migrator.errors.connection import HostUnreachable
from migrator.errors.containers import AlreadyMigrating
from migrator.errors.convert import by_code, from_json
from migrator.errors.data import NoSpace
from migrator.errors.outcomes import OutcomeError, SourceRunsAgain, SourceStateUnknown, SourceStillFrozen
from tests.effort import tries

CLASSES = [cls for cls in by_code().values() if cls not in (MigratorError, OutcomeError)]
ANSWERS = [cls for cls in CLASSES if not issubclass(cls, OutcomeError)]

# Where nothing general can be said: the message's reason is all there is.
WITHOUT_CURE = {"usage-error", "command-timeout", "config-invalid", "send-failed",
                "snapshot-failed", "read-failed"}


def fields_of(cls: type[MigratorError]) -> dict[str, str]:
    """A value for each field that the class's message and cure mention."""
    found = {name for text in (cls.__doc__ or "", cls.cure) for _, name, _, _ in string.Formatter().parse(text) if name}
    return {name: f"<{name}>" for name in found}


def made(cls: type[MigratorError]) -> MigratorError:
    if issubclass(cls, OutcomeError):
        fields = {name: value for name, value in fields_of(cls).items() if not name.startswith("cause")}
        return cls(HostUnreachable(destination="hostb", reason="no route"), **fields)
    return cls(**fields_of(cls))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.code())
def test_message_and_cure(cls: type[MigratorError]) -> None:
    error = made(cls)
    assert cls.__doc__ and "__doc__" in vars(cls), "the docstring is the message"
    assert error.message
    assert "{" not in error.message + error.hint
    assert "\n" not in error.message + error.hint
    assert "  " not in error.message + error.hint
    if cls.code() in WITHOUT_CURE:
        assert not cls.cure
    else:
        assert cls.cure, "name the cure, or list the class in WITHOUT_CURE"


def test_each_cause_has_a_status_of_its_own() -> None:
    # An outcome with --no-memory is the same outcome in other words.
    numbered = [cls for cls in CLASSES if cls.status != errors.EXIT_USAGE and cls.__base__ not in CLASSES]
    assert len({cls.status for cls in numbered}) == len(numbered)
    others = {cls.code() for cls in CLASSES if cls.status == errors.EXIT_USAGE}
    assert others == {"usage-error", "internal-error"}


def test_statuses_keep_to_their_bands() -> None:
    assert {cls.status for cls in CLASSES if issubclass(cls, OutcomeError)} == {3, 4, 5}
    for cls in ANSWERS:
        assert cls.status == errors.EXIT_USAGE or 10 <= cls.status < 100


def test_codes_are_unique_and_readable() -> None:
    assert len(by_code()) == len(set(by_code().values()))
    assert {"not-root", "no-space", "host-key-changed", "source-still-frozen", "ssh-refused"} <= by_code().keys()
    assert all(code == code.lower() and " " not in code for code in by_code())


@pytest.mark.parametrize("cls", ANSWERS, ids=lambda cls: cls.code())
def test_there_and_back(cls: type[MigratorError]) -> None:
    """What the other host sends is the same error here, and names that host."""
    sent = made(cls)
    got = from_json(json.loads(json.dumps(sent.to_json())), "hostb")
    assert type(got) is cls
    said = f"hostb says: {sent.hint}" if "{" in cls.cure else sent.hint
    assert (got.message, got.hint, got.host) == (sent.message, said, "hostb")
    assert str(got) == f"hostb: {sent.message}"
    assert got.to_json()["host"] == "hostb"


def test_an_outcome_of_the_other_host_is_no_outcome_here() -> None:
    """`the source runs again` is a thing that only the source can say."""
    for cls in (SourceRunsAgain, SourceStillFrozen, SourceStateUnknown):
        got = from_json(made(cls).to_json(), "hostb")
        assert type(got) is InternalError


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=tries(30, 500))
@example({"code": "no-space", "fields": {"self": "x", "cls": "y", "": "z"}})
@given(st.dictionaries(st.sampled_from(["code", "message", "fields", "status", "host"]), anything))
def test_whatever_the_other_host_sends_is_an_error(data: dict[str, object]) -> None:
    error = from_json(data, "hostb")
    assert isinstance(error, MigratorError)
    assert error.host == "hostb"
    json.dumps(error.to_json())
    assert isinstance(str(error) + error.hint, str)


def test_the_end_of_a_command_that_an_older_host_does_not_send_is_left_out() -> None:
    """So that it can be typed: a shell takes <path> for a file."""
    sent = AlreadyMigrating(name="web", peer="hosta", id="0badc0de", next="migrator rollback web", path="-P /pool")
    data = sent.to_json()
    del data["fields"]["path"]
    for each, ends in ((sent.to_json(), " -P /pool"), (data, "web")):
        hint = from_json(each, "hostb").hint
        assert hint.endswith(ends) and "<" not in hint



def test_what_comes_from_outside_is_not_formatted_again() -> None:
    error = from_json({"code": "no-space", "fields": {"where": "{free}", "free": "{0.__class__}", "what": "x"}}, "b")
    assert str(error) == "b: {free} has {0.__class__} free, but <needed> is needed for x."


def test_an_outcome_shows_its_cause_and_the_cures_of_both() -> None:
    cause = NoSpace(where="/pool", free="1 MiB", needed="2 MiB", what="this")
    error = SourceRunsAgain(cause, name="web", next="migrator create-dump web -d hostb")
    assert error.message == f"{cause.message} The container web was thawed and keeps running here."
    assert error.hint == f"{cause.hint} Try again with: migrator create-dump web -d hostb"
    assert error.exit_status == 3
    assert error.to_json()["cause"] == cause.to_json()


def test_an_interruption_ends_like_its_signal() -> None:
    error = Interrupted(signal="SIGTERM", number=15)
    assert error.exit_status == 143
    assert str(error) == "Interrupted by SIGTERM."


def test_what_others_raise_becomes_an_error_of_ours() -> None:
    full = convert.as_ours(OSError(errno.ENOSPC, "No space left on device", "/pool/x"), "import")
    assert (full.code(), full.status) == ("disk-full", 58)
    assert "/pool/x" in full.message
    assert convert.as_ours(full) is full
    other = convert.as_ours(PermissionError(errno.EACCES, "Permission denied"), "import")
    assert isinstance(other, InternalError)
    assert "PermissionError in import" in other.message
