# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the other side may be silent, what counts as a word from it, and that both say one often enough.

Where time matters it is that of a `Script`, which goes on only while its stream is waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from migrator.errors.connection import ConnectionLost
from migrator.transfer import frames
from migrator.transfer.frames import Kind
from migrator.transfer.rpc import Connection, sign_of_life
from migrator.transfer.serve_requests import serve
from migrator.transfer.stream import Bytes, FileStream
from tests.migrator.threads import until_waits
from tests.migrator.wire import TIMEOUT, call, connected, frame, greeting, stream_pair

WORKING = frame(Kind.WORKING)
REPLY = frame(Kind.REPLY, b'{"id": 1, "fields": {"done": true}}')


class Script:
    """A stream from which pieces come, each so many seconds after the one before; then it is silent. It takes all."""

    def __init__(self, *pieces: tuple[float, bytes]) -> None:
        self.now = 1000.0
        self._limit = 0.0
        self._pieces = list(pieces)

    def clock(self) -> float:
        return self.now

    def settimeout(self, seconds: float) -> None:
        self._limit = seconds

    def readinto(self, view: memoryview) -> int:
        after, data = self._pieces.pop(0) if self._pieces else (float("inf"), b"")
        if after > self._limit:
            self.now += self._limit
            raise TimeoutError(f"the other side sent nothing for {self._limit:g} seconds")
        self.now += after
        count = min(len(view), len(data))
        view[:count] = data[:count]
        if data[count:]:
            self._pieces.insert(0, (0.0, data[count:]))
        return count

    def write(self, *buffers: Bytes) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def greeted(*pieces: tuple[float, bytes], name: str = "") -> Iterator[tuple[Connection, Script]]:
    """A connection whose other side has greeted, and says these things after that."""
    script = Script((0.0, greeting()), *pieces)
    with Connection(script, name=name, timeout=0.4, clock=script.clock) as connection:
        connection.hello()
        yield connection, script


# --- What ends a connection, and what does not ---


def test_long_work_is_not_silence() -> None:
    with greeted(*[(0.3, WORKING)] * 20, (0.3, REPLY)) as (connection, script):
        assert call(connection, "slow") == {"done": True}
    assert script.now == pytest.approx(1006.3)


def test_silence_is_the_end() -> None:
    with greeted((0.5, REPLY), name="hostb") as (connection, _), \
            pytest.raises(ConnectionLost, match=r"hostb .*0\.4 seconds"):
        call(connection, "anything")


def test_where_there_is_nothing_to_work_at_signs_of_life_do_not_prolong_the_wait() -> None:
    with greeted(*[(0.15, WORKING)] * 20) as (connection, script), \
            pytest.raises(ConnectionLost, match=r"did not continue within 0\.4 seconds"):
        connection.receive(within=connection.timeout)
    assert script.now == pytest.approx(1000.45)


def test_work_that_never_ends_has_a_limit() -> None:
    """Somebody is there, and says so for ever: whose container stands still meanwhile does not wait for ever."""
    with greeted(*[(0.3, WORKING)] * 10_000) as (connection, script):
        with pytest.raises(ConnectionLost, match=r"did not continue within 30 seconds"):
            call(connection, "restore", within=30)
        assert script.now == pytest.approx(1030.3, abs=0.31)


def test_an_answer_that_drips_has_a_limit() -> None:
    """It may be announced as long, as one of a slow line; but what comes byte by byte would take days."""
    answer = frame(Kind.REPLY, length=frames.CONTROL_MAX)
    with greeted((0.3, answer), *[(0.3, b" ")] * 10_000) as (connection, script):
        with pytest.raises(ConnectionLost, match=r"did not continue within 30 seconds"):
            call(connection, "state", within=30)
        assert script.now == pytest.approx(1030 + frames.CONTROL_MAX / 32768, abs=0.31)


def test_a_header_that_drips_has_a_limit() -> None:
    drips = [(0.3, REPLY[at : at + 1]) for at in range(len(REPLY))]
    with greeted(*drips) as (connection, script):
        with pytest.raises(ConnectionLost, match=r"did not continue within 1 seconds"):
            call(connection, "state", within=1)
        assert script.now == pytest.approx(1001.2)


def test_answers_to_earlier_requests_do_not_prolong_the_wait() -> None:
    with greeted(*[(0.3, REPLY)] * 10_000) as (connection, script):
        connection.request("earlier", {})
        with pytest.raises(ConnectionLost, match=r"did not continue within 30 seconds"):
            call(connection, "state", within=30)
        assert script.now == pytest.approx(1030.3, abs=0.31)


def test_an_answer_that_begins_in_time_may_come_over_a_slow_line() -> None:
    text = "x" * 400_000
    whole = frame(Kind.REPLY, b'{"id": 1, "fields": {"text": "%s"}}' % text.encode())
    pieces = [(0.2, whole[at : at + 8192]) for at in range(0, len(whole), 8192)]  # 40 KiB a second
    with greeted(*pieces) as (connection, script):
        assert call(connection, "state", within=0.3) == {"text": text}
        assert script.now > 1009


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_an_answer_that_has_come_is_read_however_late_it_is(seconds: float) -> None:
    with greeted((0.3, REPLY[:20]), (0.0, REPLY[20:])) as (connection, _):
        assert call(connection, "state", within=seconds) == {"done": True}


def test_no_greeting_at_all() -> None:
    script = Script()
    with Connection(script, timeout=0.2, clock=script.clock) as connection, pytest.raises(ConnectionLost):
        connection.hello()


def test_a_program_that_starts_slowly_is_waited_for_and_then_must_not_be_silent_for_so_long() -> None:
    script = Script((0.9, greeting()), (0.3, WORKING), (0.5, REPLY))
    with Connection(script, timeout=0.4, clock=script.clock) as connection:
        connection.hello(1.0)
        with pytest.raises(ConnectionLost, match=r"nothing for 0\.4 seconds"):
            call(connection, "anything")
    assert script.now == pytest.approx(1001.6)


def test_a_program_that_never_starts_is_given_up() -> None:
    script = Script((1.1, greeting()))
    with Connection(script, timeout=0.4, clock=script.clock) as connection, \
            pytest.raises(ConnectionLost, match="nothing for 1 seconds"):
        connection.hello(1.0)
    assert script.now == 1001.0


def test_once_it_has_begun_to_greet_it_is_not_starting_any_more() -> None:
    """However long it may take to start."""
    script = Script((0.9, greeting()[:3]), (0.5, greeting()[3:]))
    with Connection(script, timeout=0.4, clock=script.clock) as connection, pytest.raises(ConnectionLost):
        connection.hello(1.0)
    assert script.now == pytest.approx(1001.3)


def test_greeting_that_never_ends() -> None:
    """Each byte comes soon after the one before."""
    script = Script((0.0, greeting()[:14]), *[(0.05, b" ")] * 10_000)
    with Connection(script, timeout=0.4, clock=script.clock) as connection, \
            pytest.raises(ConnectionLost, match="greeting was not complete"):
        connection.hello()
    assert script.now == pytest.approx(1000.45)


@pytest.mark.parametrize(("wanted", "timeout"), [(0.3, 0.3), (0.01, 0.1), (900.0, 300.0)])
def test_the_server_is_as_patient_as_its_caller(wanted: float, timeout: float) -> None:
    script = Script((0.0, greeting(timeout=wanted)))
    with Connection(script, timeout=60, clock=script.clock) as connection:
        connection.hello()
        connection.adopt_timeout(0.1, 300)
        assert connection.timeout == timeout
        with pytest.raises(ConnectionLost, match=f"nothing for {timeout:g} seconds"):
            connection.receive()


# --- Signs of life ---


@pytest.mark.parametrize(("ours", "theirs", "interval"), [
    (15.0, 15.0, 3.75), (60.0, 0.4, 0.1), (0.4, 60.0, 0.1), (75.0, 75.0, 15.0), (300.0, 300.0, 15.0),
])
def test_signs_of_life_come_as_often_as_either_side_needs_them(ours: float, theirs: float, interval: float) -> None:
    assert sign_of_life(ours, theirs) == interval


def read(stream: FileStream, size: int) -> bytes:
    view, done = memoryview(bytearray(size)), 0
    while done < size:
        count = stream.readinto(view[done:])
        assert count
        done += count
    return bytes(view)


def signs(stream: FileStream, count: int) -> None:
    """Wait for so many, and nothing else."""
    for _ in range(count):
        assert read(stream, len(WORKING)) == WORKING


def past_greeting(stream: FileStream) -> None:
    read(stream, frames.greeting_length(read(stream, frames.GREETING.size)))


def test_who_works_and_who_has_nothing_to_say_are_both_heard() -> None:
    ours, theirs = stream_pair()
    theirs.settimeout(TIMEOUT)
    theirs.write(greeting(timeout=0.04), frame(Kind.REQUEST, b'{"id": 1, "op": "slow", "fields": {}}'))
    heard = threading.Event()

    def slow(_: dict[str, Any]) -> dict[str, Any]:
        heard.wait()
        return {"done": True}

    def run() -> None:
        with Connection(ours, timeout=TIMEOUT) as connection:
            connection.hello()
            serve(connection, {"slow": slow})

    server = threading.Thread(target=run)
    server.start()
    try:
        past_greeting(theirs)
        signs(theirs, 3)  # while it works
        heard.set()
        while (said := read(theirs, len(WORKING))) == WORKING:
            pass
        assert frames.parse_header(said)[0] is Kind.REPLY
        read(theirs, frames.parse_header(said)[2])
        signs(theirs, 3)  # while it waits for the next request
    finally:
        heard.set()
        theirs.close()
        server.join()


# --- Who takes nothing ---


class Full(FileStream):
    """The other side takes nothing `rounds` times for as long as it is waited for; `meanwhile` that happens."""

    rounds = 0

    def meanwhile(self) -> None: ...

    def _wait(self, poll: Any) -> bool:
        if poll is not self._writable or not self.rounds:
            return super()._wait(poll)
        self.rounds -= 1
        self.meanwhile()
        return False


def full_stream(rounds: int) -> tuple[Full, FileStream]:
    ours, theirs = stream_pair()
    full = Full(os.dup(ours._read_fd), os.dup(ours._write_fd))
    ours.close()
    full.rounds = rounds
    full.settimeout(TIMEOUT)
    return full, theirs


def test_a_peer_that_takes_nothing_is_the_end() -> None:
    ours, theirs = full_stream(1)
    theirs.write(greeting())
    with Connection(ours, timeout=TIMEOUT) as connection:
        connection.hello()
        with pytest.raises(ConnectionLost, match="took nothing"):
            call(connection, "anything", text="x" * 3_000_000)
        with pytest.raises(ConnectionLost):  # and stays so: half a frame is out
            connection.send(Kind.END)
    theirs.close()


def test_a_peer_that_is_busy_is_not_dead() -> None:
    """It takes nothing for longer than the limit, a slow disk say, but says all the time that it is there."""
    ours, theirs = full_stream(12)
    data, heard, taken = os.urandom(3_000_000), memoryview(bytearray(8)), bytearray()
    taker = threading.Thread(target=lambda: taken.extend(read(theirs, len(data))))

    def meanwhile() -> None:
        theirs.write(WORKING)
        assert ours.readinto(heard) == len(WORKING)
        if not ours.rounds:
            taker.start()

    ours.meanwhile = meanwhile  # type: ignore[method-assign]
    ours.write(data)
    taker.join()
    assert taken == data
    for stream in (ours, theirs):
        stream.close()


# --- Interrupts ---


def test_answer_that_nobody_waited_for_is_passed_over() -> None:
    """As after Ctrl-C: the next call, a rollback say, gets its own answer."""
    caught = threading.Event()

    def interrupted(fields: dict[str, Any]) -> dict[str, Any]:
        main = threading.main_thread()
        until_waits(main, "answer", "readinto")  # an interrupt in the middle of a frame ends a connection
        assert main.ident
        signal.pthread_kill(main.ident, signal.SIGINT)
        caught.wait()
        return fields

    with connected({"interrupted": interrupted, "echo": lambda fields: fields}) as (connection, _):
        try:
            with pytest.raises(KeyboardInterrupt):
                call(connection, "interrupted", first=1)
        finally:
            caught.set()
        assert call(connection, "echo", second=2) == {"second": 2}
