# SPDX-License-Identifier: GPL-2.0-or-later
"""Greetings, calls and frames; and what does not look like them."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import migrator
from migrator.errors import InternalError, MigratorError
from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.errors.data import NoSpace
from migrator.transfer import frames
from migrator.transfer.frames import Kind
from migrator.transfer.messages import Restore
from migrator.transfer.rpc import Connection, Takeover
from migrator.transfer.stream import FileStream
from tests.effort import tries
from tests.migrator.wire import TIMEOUT, Server, call, connected, ends_orderly, frame, greeting, stream_pair

# --- Calls ---


def test_call_and_answer() -> None:
    with connected({"echo": lambda fields: fields}) as (connection, _):
        fields: dict[str, Any] = {"text": "ü\n", "list": [1, None, {"a": True}]}
        assert call(connection, "echo", **fields) == fields
        assert call(connection, "echo") == {}
        assert connection.peer_program == migrator.__version__


def test_long_answer() -> None:
    text = "x" * 3_000_000
    with connected({"echo": lambda fields: fields}) as (connection, _):
        assert call(connection, "echo", text=text) == {"text": text}


def test_error_keeps_its_class_and_names_the_host() -> None:
    def full(_: dict[str, Any]) -> dict[str, Any]:
        raise NoSpace(where="/pool", free="1 MiB", needed="2 MiB", what="{braces}")

    with connected({"full": full, "echo": lambda fields: fields}) as (connection, _):
        with pytest.raises(NoSpace) as caught:
            call(connection, "full")
        assert str(caught.value) == f"{os.uname().nodename}: /pool has 1 MiB free, but 2 MiB is needed for {{braces}}."
        assert call(connection, "echo", still=1) == {"still": 1}


@pytest.mark.parametrize("wrong", [lambda _: 1 / 0, lambda _: {"not": {1, 2}}, lambda f: f["missing"],
                                   lambda _: {"long": "x" * (frames.CONTROL_MAX + 1)}])  # fmt: skip
def test_unexpected_exception_becomes_an_internal_error(wrong: Any) -> None:
    with connected({"wrong": wrong, "echo": lambda fields: fields}) as (connection, _):
        with pytest.raises(InternalError):
            call(connection, "wrong")
        assert call(connection, "echo", still=1) == {"still": 1}


def test_unknown_operation() -> None:
    with connected({}) as (connection, _), pytest.raises(ProtocolError, match="self-destruct"):
        call(connection, "self-destruct")


def test_too_long_request_is_not_sent() -> None:
    with connected({"echo": lambda fields: fields}) as (connection, _):
        with pytest.raises(InternalError):
            call(connection, "echo", text="x" * frames.CONTROL_MAX)
        assert call(connection, "echo", still=1) == {"still": 1}


def test_takeover_has_two_answers() -> None:
    def run(connection: Connection) -> dict[str, Any]:
        assert connection.receive().kind is Kind.END
        return {"second": 2}

    with connected({"take": lambda _: Takeover({"first": 1}, run), "echo": lambda f: f}) as (connection, _):
        request = connection.request("take", {})
        assert connection.answer(request) == {"first": 1}
        connection.send(Kind.END)
        assert connection.answer(request) == {"second": 2}
        assert call(connection, "echo", still=1) == {"still": 1}


def test_both_answers_of_a_takeover_are_waited_for_from_the_request_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first one has taken the second one has no more."""
    now, limits = [1000.0], []

    def answer(_: int, *, within: float) -> dict[str, Any]:
        limits.append(within)
        now[0] += 7.0
        return {}

    with connected({}) as (connection, _):
        monkeypatch.setattr(connection, "_clock", lambda: now[0])
        monkeypatch.setattr(connection, "answer", answer)
        monkeypatch.setattr(connection, "request", lambda *_: 1)
        monkeypatch.setattr(connection, "send_json", lambda *_: None)
        connection.call_and_go(Restore(id="0badc0de", limit=30.0), first=10.0, then=30.0, within=lambda: 5.0)
    assert limits == [10.0, 23.0]


def test_takeover_that_fails_answers_with_its_error() -> None:
    def run(_: Connection) -> dict[str, Any]:
        raise NoSpace(where="/pool", free=1, needed=2, what="it")

    with connected({"take": lambda _: Takeover({}, run), "echo": lambda f: f}) as (connection, _):
        request = connection.request("take", {})
        connection.answer(request)
        with pytest.raises(NoSpace):
            connection.answer(request)
        assert call(connection, "echo", still=1) == {"still": 1}


def test_takeover_that_meets_nonsense_ends_the_connection() -> None:
    def run(_: Connection) -> dict[str, Any]:
        raise ProtocolError(reason="nonsense")

    with connected({"take": lambda _: Takeover({}, run)}) as (connection, server):
        request = connection.request("take", {})
        connection.answer(request)
        with pytest.raises(ConnectionLost):
            connection.answer(request)
    assert isinstance(server.error, ProtocolError)


# --- Cuts ---


def test_end_in_the_middle_of_a_call() -> None:
    ours, theirs = stream_pair()
    theirs.write(greeting())
    theirs.close()
    with Connection(ours, timeout=TIMEOUT) as connection, pytest.raises(ConnectionLost):
        connection.hello()
        call(connection, "anything")


def test_closing_ends_the_server_orderly() -> None:
    with connected({}) as (_, server):
        pass
    assert server.error is None


def test_many_threads_may_send() -> None:
    total = 0

    def add(fields: dict[str, Any]) -> dict[str, Any]:
        nonlocal total
        total += fields["number"]
        return {}

    with connected({"add": add, "echo": lambda fields: fields}) as (connection, _):

        def ask() -> None:
            for number in range(50):
                connection.request("add", {"number": number})

        senders = [threading.Thread(target=ask) for _ in range(4)]
        for thread in senders:
            thread.start()
        for _ in range(200):
            assert connection.receive().kind is Kind.REPLY
        for thread in senders:
            thread.join()
        assert call(connection, "echo", last=1) == {"last": 1}
    assert total == 4 * sum(range(50))


# --- Greetings that are none ---


@pytest.mark.parametrize("sent, message", [
    (b"Welcome to host b!\nLast login: never\n", "Welcome"),
    (greeting(version=7), r"speaks version 7 .*9\.9.* speaks 1"),
    (greeting(version=7, body=b"\xff"), "speaks version 7"),
    (greeting(body=b"[]"), "object"),
    (greeting(body=b"{"), "JSON"),
    (greeting(body=b"{}"), "lacks"),
    (greeting(body=b'{"program": "", "host": "b", "timeout": 0}'), "timeout"),
    (greeting(body=b'{"program": "", "host": "b", "timeout": NaN}'), "JSON"),
    (greeting(body=b'{"program": "", "host": "b", "timeout": 1e999}'), "JSON"),
    (greeting(body=b'{"program": "", "host": "b", "timeout": "9"}'), "timeout"),
])  # fmt: skip
def test_bad_greeting(sent: bytes, message: str) -> None:
    ours, theirs = stream_pair()
    theirs.write(sent)
    with Connection(ours, timeout=TIMEOUT) as connection, pytest.raises(ProtocolError, match=message) as caught:
        connection.hello()
    assert "same version" in caught.value.hint
    theirs.close()


def test_length_of_a_greeting_is_bounded() -> None:
    ours, theirs = stream_pair()
    theirs.write(struct.pack("!8sHI", b"migrator", frames.VERSION, 0xFFFFFFFF))
    tracemalloc.start()
    with Connection(ours, timeout=TIMEOUT) as connection, pytest.raises(ProtocolError, match="4294967295"):
        connection.hello()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    theirs.close()


# --- Frames that are none ---


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("body", ['{"limit": %s}', '{"fields": {"limits": [1, %s]}}'])
def test_what_is_no_number_is_no_json(body: str, number: str) -> None:
    """RFC 8259 has none of them, Python reads them all: NaN is within no limits and outside of none."""
    with pytest.raises(ProtocolError, match="JSON"):
        frames.parse_json(memoryview((body % number).encode()))
    assert frames.parse_json(memoryview((body % "1.5e2").encode()))


@given(st.sampled_from([*Kind]), st.integers(0, 255), st.binary(max_size=20), st.integers(0, 63))
def test_no_header_is_one_bit_away_from_another(kind: Kind, flags: int, body: bytes, bit: int) -> None:
    """Or a damaged length would make us wait for what never comes."""
    whole = frames.header(kind, flags, [body])
    with contextlib.suppress(ProtocolError):
        assert frames.parse_header(whole) == (kind, flags, len(body))
    damaged = (int.from_bytes(whole, "big") ^ 1 << bit).to_bytes(8, "big")
    with pytest.raises(ProtocolError):
        frames.parse_header(damaged)


WRONG = [
    frame(0), frame(5), frame(255), frame(Kind.END, wrong=1),
    frame(Kind.REQUEST, length=frames.CONTROL_MAX + 1), frame(Kind.SEGMENT, length=0xFFFFFFFF),
    frame(Kind.WORKING, b"x"), frame(Kind.REQUEST), frame(Kind.REQUEST, b"[]"), frame(Kind.REQUEST, b"{}"),
    frame(Kind.REQUEST, b'{"id": 1, "op": 2, "fields": {}}'), frame(Kind.REQUEST, b"[" * 100_000),
    frame(Kind.REQUEST, b'{"id":' + b"9" * 10_000 + b"}"), frame(Kind.REPLY, b"{}"), frame(Kind.SEGMENT, b"x" * 40),
    frame(Kind.END), frame(Kind.ACK, bytes(8)),
]  # fmt: skip


@pytest.mark.parametrize("sent", WRONG, ids=range(len(WRONG)))
def test_bad_frame_ends_the_server(sent: bytes) -> None:
    ours, theirs = stream_pair()
    server = Server(theirs, {})
    ours.write(greeting() + sent)
    server.join()
    assert isinstance(server.error, ProtocolError)
    ours.close()


@pytest.mark.parametrize("answer", [
    frame(Kind.REPLY, b'{"id": 2, "fields": {}}'), frame(Kind.REPLY, b'{"id": 1}'), frame(Kind.ACK, bytes(8)),
    frame(Kind.REPLY, b'{"id": 1, "fields": []}'), frame(Kind.ERROR, b'{"id": 1, "error": "no"}'), frame(Kind.REQUEST),
])  # fmt: skip
def test_bad_answer(answer: bytes) -> None:
    ours, theirs = stream_pair()
    theirs.write(greeting() + answer)
    with Connection(ours, timeout=TIMEOUT) as connection:
        connection.hello()
        with pytest.raises(ProtocolError):
            call(connection, "anything")
    theirs.close()


@pytest.mark.parametrize("error", [
    {}, {"code": 7}, {"code": "no-such"}, {"code": "source-runs-again", "fields": {}},
    {"code": "no-space", "fields": 1}, {"code": "no-space", "fields": {"where": {"deep": [1]}}},
    {"code": "internal", "fields": {"reason": "{0.__class__}"}},
])  # fmt: skip
def test_bad_error_is_still_an_error(error: dict[str, Any]) -> None:
    ours, theirs = stream_pair()
    theirs.write(greeting() + frame(Kind.ERROR, json.dumps({"id": 1, "error": error}).encode()))
    with Connection(ours, timeout=TIMEOUT) as connection:
        connection.hello()
        with pytest.raises(MigratorError) as caught:
            call(connection, "anything")
        assert caught.value.host == "other"
        assert str(caught.value)
    theirs.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
json_bodies = st.dictionaries(st.sampled_from(["id", "op", "fields", "error", "x"]), json_values).map(
    lambda data: json.dumps(data).encode()
)
any_frames = st.builds(frame, st.sampled_from([*Kind, 0, 99]), st.binary(max_size=64) | json_bodies)
wires = st.lists(any_frames | st.binary(max_size=30), max_size=6).map(b"".join)


@settings(max_examples=tries(50, 1000), deadline=None)
@given(wires)
@example(frame(Kind.REQUEST, b'{"id": 1, "op": "echo", "fields": {}}') + b"\x01")
def test_a_server_survives_any_bytes(data: bytes) -> None:
    ours, theirs = stream_pair()
    server = Server(theirs, {"echo": lambda fields: fields})
    ours.write(greeting() + data)
    with contextlib.suppress(OSError):
        ours.close()
    server.join()
    assert ends_orderly(server.error)


@settings(max_examples=tries(50, 1000), deadline=None)
@given(st.one_of(wires, wires.map(lambda data: greeting() + data)))
def test_a_caller_survives_any_bytes(data: bytes) -> None:
    ours, theirs = stream_pair()
    theirs.write(data)
    theirs.close()
    with Connection(ours, timeout=TIMEOUT) as connection, contextlib.suppress(MigratorError):
        connection.hello()
        call(connection, "echo")


def test_lengths_are_not_believed() -> None:
    """A frame may claim to be long; memory is taken only within the limits of its kind."""
    tracemalloc.start()
    for kind in Kind:
        ours, theirs = stream_pair()
        server = Server(theirs, {})
        ours.write(greeting() + frame(kind, length=0x7FFFFFFF))
        server.join()
        assert isinstance(server.error, ProtocolError)
        ours.close()
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


# --- The stream of file descriptors ---


def test_stream_over_pipes() -> None:
    first, second = os.pipe(), os.pipe()
    ours, theirs = FileStream(first[0], second[1]), FileStream(second[0], first[1])
    for stream in (ours, theirs):
        stream.settimeout(TIMEOUT)
    data = os.urandom(1_000_000)
    writer = threading.Thread(target=ours.write, args=(b"", data[:3], b"", data[3:]))
    writer.start()
    received = bytearray()
    view = memoryview(bytearray(70_000))
    while len(received) < len(data):
        received += view[: theirs.readinto(view)]
    writer.join()
    assert received == data
    ours.close()
    ours.close()
    assert theirs.readinto(view) == 0
    theirs.close()


def test_stray_prints_do_not_reach_the_stream() -> None:
    import subprocess
    import sys

    code = (
        "import os, sys; from migrator.transfer.stream import FileStream; s = FileStream.from_stdio();"
        "print('stray', flush=True); os.system('echo child'); s.write(b'frame'); sys.exit(len(sys.stdin.read()))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"not for them", capture_output=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"frame", b"stray\nchild\n")
