# SPDX-License-Identifier: GPL-2.0-or-later
"""What peers tell each other inside sealed offers, as JSON objects; parsed strictly.

| type      | sender    | more                                              | says                                   |
| --------- | --------- | ------------------------------------------------- | -------------------------------------- |
| offer     | initiator | wg, eph, nat, candidates, policy, program         | let us open a session                  |
| answer    | responder | the same                                          | yes                                    |
| refusal   | responder | reason, code (of the error)                       | no                                     |
| go        | initiator | attempt                                           | I have begun to punch                  |
| up        | responder |                                                   | WireGuard listens here: begin          |
| again     | initiator | attempt, nat, candidates, policy                  | the path is dead: let us punch again   |
| ready     | responder | attempt, nat, candidates, policy                  | yes                                    |
| close     | either    |                                                   | the session has ended                  |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tunnel.candidates import candidate, nat
from tunnel.candidates.candidate import Candidate
from tunnel.candidates.gathering import Local
from tunnel.candidates.outlook import POLICIES, Policy
from tunnel.punching.prober import Remote
from tunnel.session.session_keys import KEY_SIZE, Public

Type = Literal["offer", "answer", "refusal", "go", "up", "again", "ready", "close"]
TYPES: tuple[Type, ...] = ("offer", "answer", "refusal", "go", "up", "again", "ready", "close")
ATTEMPTS_MAX = 1_000_000


@dataclasses.dataclass(frozen=True)
class Side:
    """What one side says about where it can be reached."""

    candidates: tuple[Candidate, ...]
    nat: nat.Kind
    policy: Policy

    def remote(self) -> Remote:
        return Remote(self.candidates, self.nat)


def type_of(body: dict[str, Any]) -> Type:
    """What kind of message this is; raises Malformed."""
    found = strict_json.text(body, "type", 16)
    for each in TYPES:
        if each == found:
            return each
    raise Malformed("its type is unknown")


def side(local: Local, policy: Policy) -> dict[str, Any]:
    """This side, for an offer, an answer, `again` and `ready`."""
    return {
        "nat": local.nat.kind, "policy": policy, "candidates": [each.to_json() for each in local.candidates],
    }


def read_side(body: dict[str, Any], own: Collection[str]) -> Side:
    """The peer's side; `own` are this host's addresses, which cannot be the peer's. Raises Malformed."""
    sent = strict_json.items(body, "candidates", candidate.RAW_MAX)
    kind = strict_json.text(body, "nat", 16)
    policy = strict_json.text(body, "policy", 16)
    return Side(tuple(candidate.sane(sent, own)), _one_of(kind, nat.KINDS, "nat"), _one_of(policy, POLICIES, "policy"))


def keys(public: Public) -> dict[str, Any]:
    return {"wg": strict_json.encode(public.wireguard), "eph": strict_json.encode(public.ephemeral)}


def read_keys(body: dict[str, Any], identity: bytes) -> Public:
    """The peer's public keys; raises Malformed."""
    return Public(identity, strict_json.exactly(body, "wg", KEY_SIZE), strict_json.exactly(body, "eph", KEY_SIZE))


def read_attempt(body: dict[str, Any]) -> int:
    """Which punch of the session the message is about; raises Malformed."""
    return strict_json.integer(body, "attempt", 0, ATTEMPTS_MAX)


def agreed(ours: Policy, theirs: Policy) -> Policy:
    """The policy that satisfies both; raises ValueError if there is none."""
    if {ours, theirs} == {"direct-only", "relay-only"}:
        raise ValueError(f"this side wants {ours}, the other {theirs}")
    return theirs if ours == "prefer-direct" else ours


def _one_of(value: str, known: Collection[Any], what: str) -> Any:
    if value not in known:
        raise Malformed(f"its {what} is unknown")
    return value
