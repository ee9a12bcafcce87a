# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's results: build/demo.json, the sentences about what went wrong, and the table.

build/demo.json is an object. Times are in ms if the key says so, otherwise in seconds; sizes are in bytes.

| key | |
| --- | --- |
| `frozen_ms` | the move stage by stage: how long the container stood still, from freeze to thaw |
| `floor_ms` | what CRIU alone needed for an equal container, dumped and restored by hand on one host without any network: the median; null if it was not measured |
| `ratio` | `frozen_ms` / `floor_ms`; null without a floor |
| `longest_gap_ms` | the client's longest wait for an answer around this move; 0 is less than 50 ms |
| `seconds` | of all the commands of the move |
| `bytes` | that were sent: `full`, disk rounds while it ran; `increment` and `memory`, disk changes and memory while it was frozen |
| `stages` | a list of `name`, `seconds` |
| `one_command` | the way back by `migrator migrate`: `frozen_ms`, `floor_ms`, `ratio`, `longest_gap_ms`, `seconds`, `bytes` |
| `nat` | the move between two hosts behind NAT: `frozen_ms`, `floor_ms`, `ratio`, `seconds`, `bytes`, `floor`, `server`, `left`, and of the way there `path`, `reason`, `rtt_ms`, `connect_ms`, `mtu` |
| `whole_system` | the way there of a container with systemd: `frozen_ms`, `floor_ms`, `ratio`, `longest_gap_ms` of any of its clients, `seconds`, `bytes`; `back`, the same of the way back; and of both `clients`, `rows`, `system`, `left`. Here `floor_ms` is the dump and the restore of that very move, as CRIU cannot restore such a container by itself |
| `clients` | of each service: `answers`, `longest_gap_ms`, and `problem`, what was lost or wrong, or null |
| `rows` | committed by the transaction that was open |
| `system` | `units` that were active before; those that were `restarted` or have `failed` since; `booted_anew` (true if it is another boot); `problem`, or null |
| `floor` | each round of the floor: lists `dump_ms`, `restore_ms` |
| `client` | one connection during both moves: `requests`, `lost` and `wrong` answers, `longest_gap_ms` in all, and `problem`, why it broke, or null |
| `server` | after all moves: `values_verified`, `values_wrong`, `started_anew` (true if its memory is of another start), `problem`, or null |
| `values_verified` | the same figure once more |
| `left` | what migrator left on the hosts after `migrator cleanup`: a list of `HOST: WHAT` |
| `load` | the load average afterwards |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from bench import waits
from bench.floor import Rounds, floor_ms, ratio


class Bytes(TypedDict):
    full: int
    increment: int
    memory: int


class Move(TypedDict):
    frozen_ms: float
    floor_ms: float | None
    ratio: float | None
    seconds: float
    bytes: Bytes


class WatchedMove(Move):
    longest_gap_ms: float


class Client(TypedDict):
    requests: int
    lost: int
    wrong: int
    longest_gap_ms: float
    problem: str | None


class Server(TypedDict):
    values_verified: int
    values_wrong: int
    started_anew: bool
    problem: str | None


class Stage(TypedDict):
    name: str
    seconds: float


class NatMove(Move):
    path: str
    reason: str
    rtt_ms: float
    connect_ms: float
    mtu: int
    floor: Rounds
    server: Server
    left: list[str]


class Service(TypedDict):
    answers: int
    longest_gap_ms: float
    problem: str | None


class System(TypedDict):
    units: int
    restarted: list[str]
    failed: list[str]
    booted_anew: bool
    problem: str | None


class WholeSystem(WatchedMove):
    back: WatchedMove
    clients: dict[str, Service]
    rows: int
    system: System
    left: list[str]


class ThereAndBack(WatchedMove):
    stages: list[Stage]
    one_command: WatchedMove
    floor: Rounds
    client: Client
    server: Server
    values_verified: int
    left: list[str]


class Figures(ThereAndBack):
    whole_system: WholeSystem
    nat: NatMove
    load: float


# --- from what the hosts say ----------------------------------------------------------------------------------


def move(source: Mapping[str, Any], destination: Mapping[str, Any], seconds: float, rounds: Rounds) -> Move:
    """A move according to the journals of both its hosts (`migrator status --json`); the hosts share one clock."""
    frozen = round((destination["restored_at"] - source["frozen_at"]) * 1000, 1)
    least = floor_ms(rounds)
    sent = source["bytes"]
    return {"frozen_ms": frozen, "floor_ms": least, "ratio": ratio(frozen, least), "seconds": round(seconds, 3),
            "bytes": {"full": sent["full"], "increment": sent["increment"], "memory": sent["memory"]}}


def watched_move(seen: Mapping[str, Any], source: Mapping[str, Any], destination: Mapping[str, Any], seconds: float,
                 rounds: Rounds) -> WatchedMove:
    """The same with the client's longest wait, from what redis_client.py has `seen`."""
    gap = waits.longest(seen["gaps"], source["frozen_at"], destination["restored_at"])
    return {**move(source, destination, seconds, rounds), "longest_gap_ms": gap}


def client_of(seen: Mapping[str, Any], after: Mapping[str, Any]) -> Client:
    """What the client has seen; an answer that it received, but that the server does not know about, is lost too."""
    forgotten = max(0, seen["requests"] - after["count"]) if "count" in after else 0
    return {"requests": seen["requests"], "lost": seen["lost"] + forgotten, "wrong": seen["wrong"],
            "longest_gap_ms": seen["longest_gap_ms"], "problem": seen["problem"]}


def server_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> Server:
    """The server after all moves, compared with `before` them; both are answers of vagrant/guests/probe.py."""
    problem = after.get("problem")
    if not after["running"]:
        problem = f"its container is {after['state']}"
    return {"values_verified": after.get("values", 0), "values_wrong": after.get("bad", 0),
            "started_anew": "start" in after and after["start"] != before["start"], "problem": problem}


def system_move(seen: Mapping[str, Any], source: Mapping[str, Any], destination: Mapping[str, Any],
                seconds: float) -> WatchedMove:
    """A move of the whole system, with the longest wait of any of its clients."""
    gaps = [gap for client in seen.values() for gap in client["gaps"]]
    return watched_move({"gaps": gaps}, source, destination, seconds, criu_in(source, destination))


def criu_in(source: Mapping[str, Any], destination: Mapping[str, Any]) -> Rounds:
    """The dump and the restore of a move as a round of the floor, according to the events in both journals."""
    dump = [event["figures"]["dump_seconds"] for event in source["events"] if "figures" in event]
    restore = [event for event in destination["events"] if event["step"] == "restore" and "state" not in event]
    begun, done = restore[-2:]
    return {"dump_ms": [round(dump[-1] * 1000, 1)], "restore_ms": [round((done["time"] - begun["time"]) * 1000, 1)]}


def services_of(seen: Mapping[str, Any]) -> dict[str, Service]:
    return {name: {"answers": told["answers"], "longest_gap_ms": told["longest_gap_ms"], "problem": told["problem"]}
            for name, told in seen.items()}


def system_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> System:
    """The whole system after its moves, compared with `before` them: answers of vagrant/guests/probe.py.

    Empty mounts with credentials are unmounted by the move.
    """
    problem = after.get("problem")
    if not after["running"]:
        problem = f"it is {after['state']}"
    elif not after["intact"] and not problem:
        problem = f"its counter or its systemd, which is {after.get('system')}, is not as it was"
    units, now = before["units"], after.get("units", {})
    anew = [] if problem else [name for name in units
                               if not name.startswith("run-credentials-") and now.get(name) != units[name]]
    return {"units": len(units), "restarted": anew, "failed": sorted({*after.get("failed", ())} - {*before["failed"]}),
            "booted_anew": not problem and after["boot"] != before["boot"], "problem": problem}


# --- the verdict ----------------------------------------------------------------------------------------------


def wrong(figures: Figures) -> list[str]:
    """What was lost, wrong or left behind, one sentence each. How long something took is never wrong."""
    client = figures["client"]
    found = []
    if client["problem"]:
        found.append(f"the client's connection broke: {client['problem']}")
    if client["lost"]:
        found.append(f"{counted(client['lost'], 'answer')} to the client got lost")
    if client["wrong"]:
        found.append(f"{counted(client['wrong'], 'answer')} to the client had the wrong content")
    found += [f"stage by stage and back: {line}" for line in wrong_server(figures["server"])]
    found += [f"through two NATs: {line}" for line in wrong_server(figures["nat"]["server"])]
    system = figures["whole_system"]
    found += [f"the whole system: {name}: {told['problem']}" for name, told in system["clients"].items()
              if told["problem"]]
    found += [f"the whole system: {line}" for line in wrong_system(system["system"])]
    left = (*figures["left"], *system["left"], *figures["nat"]["left"])
    found += [f"left behind on {line}" for line in left]
    return found


def wrong_server(server: Server) -> list[str]:
    found = []
    if server["problem"]:
        found.append(f"the server is not as it was: {server['problem']}")
    if server["started_anew"]:
        found.append("the server was started anew: what it had in memory is gone")
    if server["values_wrong"]:
        found.append(f"{counted(server['values_wrong'], 'value')} of {number(server['values_verified'])} on the server"
                     " had the wrong content")
    if not server["problem"] and not server["values_verified"]:
        found.append("the server has none of its values")
    return found


def wrong_system(system: System) -> list[str]:
    found = [f"it is not as it was: {system['problem']}"] if system["problem"] else []
    if system["booted_anew"]:
        found.append("it was booted anew")
    found += [f"{unit} was restarted" for unit in system["restarted"]]
    return found + [f"{unit} has failed" for unit in system["failed"]]


def unchanged(system: System) -> str:
    return "; ".join(wrong_system(system)) or (f"all {number(system['units'])} units that were active still are, none"
                                               " was restarted, none has failed, and it is the same boot.")


def in_words(server: Server) -> str:
    return "; ".join(wrong_server(server)) or (f"each of the {number(server['values_verified'])} is as it was, and the"
                                               " server was not started anew.")


# --- the table ------------------------------------------------------------------------------------------------

HEAD = (("", "", "", "", "client's", "", "", "sent while", "sent while", ""),
        ("", "frozen", "floor", "ratio", "longest wait", "lost", "wrong", "it ran", "frozen", "took"))
NONE = "-"


def table(figures: Figures) -> str:
    """One row per move, then the times of the stages, then what the words mean."""
    client, nat = figures["client"], figures["nat"]
    lost, ended = number(client["lost"]), bool(client["problem"])
    bad = number(client["wrong"] + figures["server"]["values_wrong"])
    system = figures["whole_system"]
    broken = sum(bool(each["problem"]) for each in system["clients"].values())
    changed = number(len(wrong_system(system["system"])))
    moves = aligned([
        *HEAD,
        row("stage by stage", figures, waited(figures, broken=ended), lost, bad),
        row("back in one command", figures["one_command"], waited(figures["one_command"], broken=ended), lost, bad),
        row("whole system", system, waited(system, broken=bool(broken)), number(broken), changed),
        row("whole system, back", system["back"], waited(system["back"], broken=bool(broken)), number(broken), changed),
        row("through two NATs", nat, NONE, NONE, number(nat["server"]["values_wrong"])),
    ])
    stages = aligned([["stage", *(stage["name"] for stage in figures["stages"])],
                      ["took", *(f"{stage['seconds']:.2f} s" for stage in figures["stages"])]])
    return f"{moves}\n\n{stages}\n\n{legend(figures)}"


def row(name: str, move: Move, waited: str, lost: str, bad: str) -> list[str]:
    sent = move["bytes"]
    return [name, milliseconds(move["frozen_ms"]), milliseconds(move["floor_ms"]), factor(move["ratio"]), waited, lost,
            bad, mebibytes(sent["full"]), mebibytes(sent["increment"] + sent["memory"]), f"{move['seconds']:.2f} s"]


def waited(move: WatchedMove, *, broken: bool) -> str:
    if move["longest_gap_ms"]:
        return milliseconds(move["longest_gap_ms"])
    return "broken" if broken else f"< {float(waits.WORTH_A_NOTE):.2f} s"  # nobody waited, if it was broken


def legend(figures: Figures) -> str:
    client, nat, floor = figures["client"], figures["nat"], figures["floor"]
    system = figures["whole_system"]
    return "\n".join([
        "frozen  from the freeze on one host until the container runs on the other",
        f"floor   what CRIU alone needs, by hand, on one host, without a network: the median of "
        f"{len(floor['dump_ms'])} times",
        "ratio   frozen / floor",
        f"lost    of {number(client['requests'])} answers on one connection, which lasted through the first two moves",
        f"wrong   of these answers, and of the {number(figures['server']['values_verified'])} values on the server "
        f"({number(nat['server']['values_verified'])} behind NAT)",
        "whole system:",
        "floor   the dump and the restore of that very move, as CRIU alone cannot restore such a container",
        f"lost    of {len(system['clients'])} clients' connections, which lasted through both moves, one with a"
        " transaction open",
        f"wrong   of the {number(system['system']['units'])} units of its systemd",
        "behind NAT:",
        "-       the container's address stays behind: nobody is connected to it during the move",
    ])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell: the first one left-aligned, figures right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) if column else cell.ljust(width)
                               for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
                     for row in rows)


def number(count: int) -> str:
    return f"{count:,}"


def counted(count: int, what: str) -> str:
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f} ms"


def factor(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
