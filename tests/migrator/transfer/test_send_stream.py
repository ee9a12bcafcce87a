# SPDX-License-Identifier: GPL-2.0-or-later
"""Which commands a stream of another host's may have, and whom they may name, however it is cut into pieces."""

from __future__ import annotations

import itertools
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.errors.data import ReceiveFailed
from migrator.host import btrfs, subvolume_uuids
from migrator.transfer import send_stream
from migrator.transfer.send_stream import (
    CLONE,
    CLONE_PATH,
    CLONE_UUID,
    HEADER,
    LINK,
    PATH,
    PATH_LINK,
    PATH_TO,
    SNAPSHOT,
    START,
    SUBVOL,
    UUID,
)

SYMLINK, RENAME, SET_XATTR, WRITE, CHMOD, FALLOCATE, ENCODED_WRITE, END = 8, 9, 13, 15, 18, 23, 25, 21
XATTR_NAME, DATA = 13, 19
LARGEST = 65536 - 10  # bytes of a command behind its header (BTRFS_SEND_BUF_SIZE_V1)
OWN, PARENT, STRANGE = (bytes([number]) * 16 for number in (1, 2, 3))
KNOWN = {str(uuid.UUID(bytes=PARENT))}
Command = tuple[int, bytes]


def body(*attributes: tuple[int, bytes]) -> bytes:
    return b"".join(send_stream.ATTRIBUTE.pack(number, len(value)) + value for number, value in attributes)


def stream(*commands: Command, version: int = 1) -> bytes:
    """Each command's number and its body."""
    parts = [HEADER.pack(len(text), command, 0) + text for command, text in commands]
    return START.pack(send_stream.MAGIC, version) + b"".join(parts)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return (data[first:last] for first, last in itertools.pairwise(ends))


def passed(data: bytes, places: list[int]) -> bytes:
    return b"".join(send_stream.plain(cut(data, places), "/pool", KNOWN.__contains__))


def passed_before(refusal: str, data: bytes, places: list[int]) -> int:
    """How many bytes btrfs has got of a stream that is refused."""
    count = 0
    with pytest.raises(ReceiveFailed, match=refusal):
        for piece in send_stream.plain(cut(data, places), "/pool", KNOWN.__contains__):
            count += len(piece)
    return count


def made(name: bytes = OWN) -> Command:
    return SUBVOL, body((PATH, b"0badc0de.1"), (UUID, name))


def made_of(parent: bytes, name: bytes = OWN) -> Command:
    return SNAPSHOT, body((PATH, b"0badc0de.1"), (UUID, name), (CLONE_UUID, parent))


def clone(of: bytes) -> Command:
    return CLONE, body((PATH, b"file"), (CLONE_UUID, of), (CLONE_PATH, b"etc/shadow"))


def other(command: int, path: bytes, data: bytes) -> Command:
    return command, body((PATH, path), (DATA, data))


PLACES = st.lists(st.integers(0, 400), max_size=12)
OTHER = st.sampled_from(sorted(set(range(1, send_stream.LAST + 1)) - {SUBVOL, SNAPSHOT, CLONE}))
NAMES = st.lists(st.sampled_from([b"etc", b"...", b"..a", b".b", b"o257-6-0", b"\xff\n", b"a b"]), max_size=3)
COMMANDS = st.lists(
    st.builds(other, OTHER, NAMES.map(b"/".join), st.binary(max_size=40)) | st.just((END, b"")) |
    st.sampled_from([clone(OWN), clone(PARENT)]), max_size=6)
FIRST = st.sampled_from([made(), made_of(PARENT)])


@given(FIRST, COMMANDS, PLACES)
def test_a_plain_one_passes_as_it_is(first: Command, commands: list[Command], places: list[int]) -> None:
    data = stream(first, *commands, (END, b""))
    assert passed(data, places) == data


@given(COMMANDS, COMMANDS, PLACES, st.sampled_from([FALLOCATE, ENCODED_WRITE, 24, 26, 65535]))
def test_another_command_is_not_reached(before: list[Command], after: list[Command], places: list[int],
                                        command: int) -> None:
    """However few bytes it has, it may reserve terabytes."""
    good = stream(made(), *before)
    count = passed_before(f"command {command}", stream(made(), *before, (command, b"7 bytes"), *after), places)
    assert count < len(good) + HEADER.size, "btrfs has not the whole header of it"


@given(FIRST, COMMANDS, PLACES, OTHER, st.sampled_from([LARGEST + 1, (1 << 32) - 1]))
def test_a_length_is_refused_before_btrfs_makes_room_for_it(first: Command, before: list[Command], places: list[int],
                                                            command: int, length: int) -> None:
    good = stream(first, *before)
    data = good + HEADER.pack(length, command, 0) + b"what btrfs would wait for the rest of"
    count = passed_before(f"command {command} in its stream has {length} bytes", data, places)
    assert count < len(good) + HEADER.size, "btrfs has not the whole header of it"


@given(PLACES)
def test_the_longest_that_btrfs_makes_passes(places: list[int]) -> None:
    data = stream(made(), (WRITE, body((DATA, bytes(LARGEST - 4)))),
                  (CLONE, body((CLONE_UUID, PARENT), (DATA, bytes(LARGEST - 24)))))
    assert passed(data, places) == data


@given(FIRST, COMMANDS, COMMANDS, PLACES, st.sampled_from([clone(STRANGE), made_of(STRANGE), made_of(OWN)]))
def test_what_is_another_containers_is_not_taken(first: Command, before: list[Command], after: list[Command],
                                                 places: list[int], bad: Command) -> None:
    begin = stream(first, *before)
    of = uuid.UUID(bytes=OWN if bad == made_of(OWN) else STRANGE)
    count = passed_before(f"subvolume {of}", stream(first, *before, bad, *after), places)
    assert count < len(begin) + HEADER.size + len(bad[1]), "btrfs has not the whole of it"


@given(PLACES)
def test_the_name_of_another_does_not_make_it_its_own(places: list[int]) -> None:
    """Only the subvolume that is being made is taken from by its own name; with the next one that is looked for."""
    data = stream(made(STRANGE), clone(STRANGE), made(OWN), clone(STRANGE))
    assert passed_before(str(uuid.UUID(bytes=STRANGE)), data, places) < len(data)


@pytest.mark.parametrize(("command", "text", "refusal"), [
    (CLONE, body((CLONE_UUID, PARENT), (CLONE_UUID, STRANGE)), "malformed"),  # btrfs takes the last one
    (CLONE, body((PATH, b"file")), "malformed"),
    (CLONE, body((CLONE_UUID, PARENT[1:])), "malformed"),
    (CLONE, body((CLONE_UUID, PARENT)) + b"\0", "malformed"),
    (CLONE, body((CLONE_UUID, PARENT))[:-1], "malformed"),
    (CLONE, b"", "has 0 bytes"),
    (CLONE, body((DATA, b"x" * 65535), (CLONE_UUID, PARENT)), "has 65559 bytes"),
    (SUBVOL, body((PATH, b"0badc0de.1")), "malformed"),
    (SNAPSHOT, body((PATH, b"0badc0de.1"), (UUID, OWN)), "malformed"),
    (SNAPSHOT, body((PATH, b"0badc0de.1"), (CLONE_UUID, PARENT)), "malformed"),
])
def test_what_btrfs_might_read_in_another_way(command: int, text: bytes, refusal: str) -> None:
    passed_before(refusal, stream(made(), (command, text)), [])


OUTSIDE = (b"..", b"../x", b"a/../..", b"a/..", b".", b"a/.", b"./a", b"/", b"/x", b"a//b", b"link/", b"..\0", b"a\0b")
PATHS = [(CHMOD, PATH), (SET_XATTR, PATH), (WRITE, PATH), (RENAME, PATH), (RENAME, PATH_TO), (LINK, PATH),
         (LINK, PATH_LINK), (SYMLINK, PATH), (CLONE, PATH), (CLONE, CLONE_PATH), (SUBVOL, PATH), (SNAPSHOT, PATH)]


@pytest.mark.parametrize(("command", "which"), PATHS)
def test_no_path_leads_out_of_the_subvolume(command: int, which: int) -> None:
    for path in OUTSIDE:
        parts = {PATH: b"a/b", UUID: OWN, CLONE_UUID: PARENT, which: path}
        data = stream(made(), (command, body(*parts.items())))
        count = passed_before(f"command {command} in its stream has the path", data, [len(data) - 1])
        assert count < len(data), "btrfs has not the whole of it"


@pytest.mark.parametrize(("command", "which"), PATHS)
def test_the_root_has_a_path_of_nothing(command: int, which: int) -> None:
    """Its mode, owner, times and attributes come with it; where btrfs makes none of it, it refuses it itself."""
    data = stream(made(), (command, body((UUID, OWN), (CLONE_UUID, PARENT), (which, b""))))
    assert passed(data, []) == data


def test_other_parts_are_no_paths() -> None:
    data = stream(made(), (SYMLINK, body((PATH, b"a"), (PATH_LINK, b"../../etc"))),
                  (SET_XATTR, body((PATH, b""), (XATTR_NAME, b"user./../"), (DATA, b"/.."))))
    assert passed(data, []) == data


@pytest.mark.parametrize("first", [(CHMOD, body((PATH, b""))), clone(PARENT), (0, body((PATH, b"a")))])
def test_nothing_comes_before_the_subvolume(first: Command) -> None:
    """Its paths would begin at the folder that is received into."""
    passed_before(f"command {first[0]} in its stream comes before its subvolume", stream(first, made()), [])


@pytest.mark.parametrize("version", [0, 2, 3])
def test_another_version(version: int) -> None:
    """From the second one on, data has no length in a command, and goes to its end."""
    assert passed_before(f"version {version}", stream(made(), version=version), []) == 0


@given(st.binary(max_size=60), PLACES)
def test_what_is_no_stream_is_left_to_btrfs(data: bytes, places: list[int]) -> None:
    if not data.startswith(send_stream.MAGIC):
        assert passed(data, places) == data


@given(FIRST, COMMANDS, st.binary(max_size=200), PLACES)
def test_whatever_follows(first: Command, commands: list[Command], rest: bytes, places: list[int]) -> None:
    """It passes as it is, or is refused; nothing else."""
    data = stream(first, *commands) + rest
    try:
        assert passed(data, places) == data
    except ReceiveFailed as error:
        assert str(error)


# --- who has a uuid, as the kernel answers ---


def answer(*found: int) -> bytes:
    item = struct.pack(f"<{len(found)}Q", *found)
    key = subvolume_uuids._KEY.pack(*[0] * 9, 1 if found else 0, *[0] * 5)
    return (key + subvolume_uuids._HEADER.pack(7, 1, 2, 252, len(item)) + item).ljust(4096, b"\xff")


@pytest.mark.parametrize("found", [(), (257,), (257, 300, 1 << 40)])
def test_the_answer_to_a_search(found: tuple[int, ...]) -> None:
    assert subvolume_uuids.ids(answer(*found)) == set(found)


@pytest.mark.parametrize(("there", "expected"), [
    ({}, ["1"]), ({"1": (7, "")}, ["1"]), ({"1": (7, "2"), "2": (8, "3")}, ["1", "2", "3"]),
])
def test_what_it_is_a_snapshot_of(monkeypatch: pytest.MonkeyPatch, there: dict[str, tuple[int, str]],
                                  expected: list[str]) -> None:
    """As far back as something is there. What was received from it is not it."""
    def having(_: Path, uuid: str, types: tuple[int, ...]) -> set[int]:
        assert types == (251,)
        return {there[uuid][0]} if uuid in there else set()

    monkeypatch.setattr(subvolume_uuids, "_having", having)
    monkeypatch.setattr(btrfs, "info", lambda path: btrfs.Subvolume(path, "0", "", False, 1, parent_uuid="1"))
    monkeypatch.setattr(btrfs, "parent_of", lambda number, _: dict(there.values())[number])
    assert list(subvolume_uuids.ancestors(Path("rootfs"))) == expected


@pytest.mark.parametrize(("found", "good"), [
    ([], False), ([257], True), ([257, 258], True), ([300], False), ([257, 300], False),
])
def test_all_that_have_it_must_be_there(monkeypatch: pytest.MonkeyPatch, found: list[int], good: bool) -> None:
    """One that was removed by the same stream would leave the next one to be found."""
    monkeypatch.setattr(subvolume_uuids, "_having", lambda *_: set(found))
    monkeypatch.setattr(subvolume_uuids, "_right_in", lambda _: {257, 258})
    assert subvolume_uuids.are_all_in(send_stream, "any") is good  # type: ignore[arg-type]
