# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages between two hosts: those of docs/protocol.md, as they have always been, and nothing else."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import stages
from migrator.errors.connection import ProtocolError
from migrator.errors.containers import InvalidName
from migrator.preflight.facts.facts_message import AskFacts
from migrator.record.states import State
from migrator.remote.answering import Place
from migrator.transfer import messages
from migrator.transfer.messages import Held, KindTransfer, Own, Received, Transfer
from migrator.transfer.rpc import Takeover
from migrator.transfer.wire_codec import Message, Request, decoded, encoded

TREE = Path(__file__).parents[3]
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def of(kind: str) -> dict[type[Any], Any]:
    return {message: handler for stage in stages.load_all() for message, handler in getattr(stage, kind, {}).items()}


HANDLERS, RECEIVERS = of("HANDLERS"), of("RECEIVERS")


def fields(message: type[Message]) -> list[str]:
    """As the page has them: those that may lack in italics."""
    found = [f"*`{field.encode_name}`*" if not field.required else f"`{field.encode_name}`"
             for field in msgspec.structs.fields(message)]
    return sorted([*found, "`kind`"] if issubclass(message, KindTransfer) else found)


def cells(text: str) -> list[str]:
    return sorted(re.findall(r"\*?`\w+`\*?", text))


def test_the_page_has_each_message_with_its_fields() -> None:
    page = (TREE / "docs" / "protocol.md").read_text()
    table = page.partition("| request | fields | answer | what |\n| --- | --- | --- | --- |\n")[2].partition("\n\n")[0]
    told = {}
    for row in table.splitlines():
        request, sent, answer, what = (cell.strip() for cell in row.strip("|").split("|"))
        assert what
        told[tuple(re.findall(r"`([\w-]+)`", request))] = cells(sent), cells(answer)
    known: dict[tuple[str, ...], Any] = {
        (message.op,): (fields(message), fields(message.answer())) for message in HANDLERS}
    for message in RECEIVERS:
        known["transfer", message.__struct_config__.tag] = fields(message), sorted([*fields(Held), *fields(Received)])
    assert told == known
    for number, message in ((5, messages.Go), (16, messages.FileBegins)):
        (body,) = re.findall(rf"\| {number} \| \w+ \| `{{(.*?)}}`", page)
        assert re.findall(r'"(\w+)"', body) == list(message.__struct_fields__)


def test_each_message_has_who_answers_it() -> None:
    """And is answered with what its class says."""
    every = {each for each in vars(messages).values()
             if isinstance(each, type) and issubclass(each, Request) and "op" in vars(each)} | {AskFacts}
    assert every == {*HANDLERS, Transfer}
    assert set(RECEIVERS) == set(messages._KINDS.values())
    for message, handler in {**HANDLERS, **RECEIVERS}.items():
        hints = list(typing.get_type_hints(handler).values())
        accepts = typing.get_args(hints[1]) or (hints[1],)
        assert message in accepts, handler
        assert hints[-1] in ((Place,) if message in RECEIVERS else (message.answer(), Takeover)), handler


def test_fields_are_read_nowhere_else() -> None:
    """What comes over the wire is a message before anything else sees it."""
    asked = re.compile(r"(?<![.\w])fields(\[[\"']|\.get\()")  # an error has `.fields`, too
    found = {path.name for folder in ("migrator", "stages") for path in (TREE / folder).rglob("*.py")
             if asked.search(path.read_text())}
    assert found == {"messages.py"}


BEGIN = {
    "id": "0badc0de", "name": "web", "source_name": "web", "origin": "0badc0de", "moves": [], "lxcpath": "/var/lib/lxc",
    "lxcpath_given": False, "source_host": "hosta", "source_lxcpath": "/var/lib/lxc", "destination": "root@hostb",
    "config": "lxc.uts.name = web\n", "includes": {"/etc/common": "\udcff"}, "bridges": {"br0": "br1"},
    "disk_bytes": 1000, "mapped_root": 0, "one_shot": True, "memory": True, "held": [UUID], "usable": [],
}
# As they were sent before each was a type.
SENT: list[tuple[str, dict[str, Any]]] = [
    ("measure", {"data": ""}), ("lxcpath", {"lxcpath": None}), ("begin", BEGIN),
    ("subvolumes", {"name": "web", "lxcpath": "/var/lib/lxc", "origin": "0badc0de"}),
    ("transfer", {"kind": "disk", "id": "0badc0de", "round": 1, "behind": True,
                  "files": [{"name": "disk-1", "size": None}]}),
    ("transfer", {"kind": "increment", "uuid": UUID, "behind": False, "id": "0badc0de", "attempt": 1, "files": []}),
    ("transfer", {"kind": "images", "bytes": 4096, "id": "0badc0de", "attempt": 1,
                  "files": [{"name": "pages-1.img", "size": 4096}]}),
    ("received", {"id": "0badc0de", "round": 1, "uuid": UUID}), ("import", {"id": "0badc0de"}),
    ("state", {"id": "0badc0de"}), ("dump-begin", {"id": "0badc0de", "attempt": 1, "memory": True}),
    ("dump-drop", {"id": "0badc0de", "attempt": 1}), ("own", {"id": "0badc0de", "attempt": 1, "dad": {"eth0": "1"}}),
    ("own", {"id": "0badc0de", "attempt": 1, "dad": {}, "restore_within": 119.5}),
    ("restore", {"id": "0badc0de", "limit": 60.0}), ("source-state", {"id": "0badc0de", "never": True}),
    ("source-state", {"id": "0badc0de", "never": False, "within": 120.0}), ("running", {"id": "0badc0de"}),
    ("finish", {"id": "0badc0de"}),
    ("abandon", {"id": "0badc0de", "name": "web", "source_name": "web", "lxcpath": "/var/lib/lxc",
                 "source_host": "hosta", "held": [UUID], "gone": False}),
]
OPS = {message.op: message for message in HANDLERS}


def of_request(op: str, data: dict[str, Any]) -> Request[Any]:
    return messages.transfer(data) if op == "transfer" else decoded(OPS[op], data)


def plain(data: object) -> Any:
    """Lists for tuples, as JSON has no others; what is no Unicode stays as it is."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    return [plain(value) for value in data] if isinstance(data, list | tuple) else data


@pytest.mark.parametrize(("op", "data"), SENT, ids=[f"{op}-{number}" for number, (op, _) in enumerate(SENT)])
def test_what_goes_over_the_wire_is_as_it_was(op: str, data: dict[str, Any]) -> None:
    message = of_request(op, data)
    assert message.op == op and plain(encoded(message)) == data


def test_all_requests_are_tried() -> None:
    assert {op for op, _ in SENT} | {"facts"} == {*OPS, "transfer"}


OLD = {"begin": {"source_name", "origin", "moves", "lxcpath", "one_shot", "memory", "held", "usable"},
       "dump-begin": {"memory"}, "abandon": {"held", "gone", "source_name"}}


@pytest.mark.parametrize("op", OLD)
def test_what_older_versions_do_not_send_may_lack(op: str) -> None:
    (data,) = (data for each, data in SENT if each == op)
    message = decoded(OPS[op], {key: value for key, value in data.items() if key not in OLD[op]})
    assert message.id == "0badc0de" and getattr(message, "memory", True) is True


def test_what_newer_versions_send_is_passed_over() -> None:
    for op, data in SENT:
        assert of_request(op, data | {"colour": "green"}) == of_request(op, data)


@pytest.mark.parametrize(("op", "data"), SENT, ids=[f"{op}-{number}" for number, (op, _) in enumerate(SENT)])
def test_nothing_of_another_type_is_taken(op: str, data: dict[str, Any]) -> None:
    for key, value in data.items():
        for wrong in (None, True, 7, "x", ["x"], {"x": 1}, 1.5, -1, float("nan"), float("inf"), 10**400, "\udcff"):
            if type(wrong) is type(value) or (type(wrong), type(value)) == (int, float):
                continue
            try:
                message = of_request(op, data | {key: wrong})
            except (ProtocolError, InvalidName):
                continue
            taken = (op, key, wrong)
            assert (wrong is None and key in ("lxcpath",)) or (
                isinstance(wrong, str) and key == "lxcpath") or (wrong == 7 and key == "size"), (taken, message)
        required = {field.encode_name for field in msgspec.structs.fields(type(of_request(op, data))) if field.required}
        if key in required:
            with pytest.raises(ProtocolError):
                of_request(op, {each: data[each] for each in data if each != key})


@pytest.mark.parametrize(("changes", "good"), [
    ({"restore_within": 0}, True), ({"restore_within": 10**9}, True), ({"restore_within": -0.1}, False),
    ({"restore_within": "60"}, False), ({"dad": {"eth0": 1}}, True), ({"dad": {"eth0": None}}, False),
    ({"attempt": 10**30}, True), ({"attempt": True}, False), ({"id": "../../.."}, False), ({"\udcff": 1}, False),
])
def test_what_an_offer_may_say(changes: dict[str, Any], good: bool) -> None:
    data = {"id": "0badc0de", "attempt": 1, "dad": {}} | changes
    if good:
        decoded(Own, data)
        return
    with pytest.raises((ProtocolError, InvalidName)):
        decoded(Own, data)


@pytest.mark.parametrize("data", [None, [], "x", 7, {}])
def test_what_is_no_message(data: object) -> None:
    for message in (*HANDLERS, *RECEIVERS):
        if message.op != "measure" or data != {}:
            if message.op == "lxcpath" and data == {}:
                continue
            with pytest.raises(ProtocolError):
                decoded(message, data)


@pytest.mark.parametrize("kind", ["keys", "", None, 7, ["disk"], {}])
def test_data_of_another_kind(kind: object) -> None:
    with pytest.raises(ProtocolError, match="unknown kind"):
        messages.transfer({"kind": kind, "id": "0badc0de", "round": 1})


def test_answers_of_older_versions() -> None:
    assert decoded(messages.MigrationState, {"state": "owned"}) == messages.MigrationState(state=State.OWNED)
    assert decoded(messages.Begun, {"disk_bytes": 1, "subvolumes": []}).ticket == ""
    assert decoded(messages.Abandoned, {}).known is msgspec.UNSET
    assert decoded(messages.Finished, {"state": "a-later-one"}).stopped == ""
