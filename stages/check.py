# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare both hosts and the container: will the move work, and if not, what fixes it?

Nothing is changed. Without -d only this host and the container are examined. The exit status is 0 when all is ready,
1 when there are warnings, and 30 when something blocks the move. With -q only errors and warnings are printed, and
nothing when there are none.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses

from msgspec import to_builtins

from migrator.base.result import Result
from migrator.config import consent
from migrator.copies import origins
from migrator.errors import EXIT_OK, EXIT_WARNINGS
from migrator.errors.jobs import Blocked
from migrator.host import lxc
from migrator.preflight import findings
from migrator.preflight.facts import host_facts
from migrator.preflight.facts.facts_message import AskFacts, HostAnswer
from migrator.preflight.facts.host_facts import Query
from migrator.preflight.findings import Verdict
from migrator.record import migration_paths
from migrator.record.grant import FACTS_MAX
from migrator.remote.answering import Handlers, Service
from migrator.remote.other_host import connected
from migrator.transfer import bandwidth, plan
from migrator.transfer.messages import Measure
from stages.steps import arguments, examine, move_arguments
from stages.steps.options import MoveRequest

PATHS_MAX = 100  # a caller who is not root learns the existence of this many paths at a time

NAME = "check"
HELP = "will this container survive the move? (on the source)"


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    request: MoveRequest
    ignore: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_request(parser, required=False)
    move_arguments.add_no_memory(parser)
    move_arguments.add_ignore(parser)


def options(args: argparse.Namespace) -> CheckOptions:
    return CheckOptions(arguments.request(args), tuple(args.ignore))


# --- on the source --------------------------------------------------------------------------------------------


def run(options: CheckOptions) -> Result:
    arguments.require_root(NAME)
    request = options.request
    name, lxcpath, memory = request.container.name, request.container.lxcpath, not request.no_memory
    ignored = findings.check_ignored(options.ignore)
    container = lxc.Container(name, lxcpath)
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(connected(request.connect, request.destination)) if request.destination else None
        looked = examine.look(request.target, container, there, full=True, memory=memory)
    # Last: nothing keeps others from freezing it meanwhile, which they record first.
    moves = examine.moving(name, lxcpath)
    found = [moves] if moves else findings.apply_ignored(looked.findings, ignored)
    verdict = findings.verdict(found)
    status = {Verdict.READY: EXIT_OK, Verdict.WARNINGS: EXIT_WARNINGS, Verdict.BLOCKED: Blocked.status}[verdict]
    words = {Verdict.READY: f"{name} is ready to move.", Verdict.WARNINGS: f"{name} can move; see the warnings.",
             Verdict.BLOCKED: f"{name} cannot move as it is."}
    prepare = "" if moves else examine.prepare_command(request, found)
    instead = looked.instead(ignored) if verdict is Verdict.BLOCKED and not moves else None
    # What is denied from the next start on, that start must still bring.
    restart = (examine.restart_command(request.container)
               if prepare and any(finding.denied for finding in found) else "")
    if prepare:
        words[verdict] += f" Make it movable with: {prepare}" + (f" -- and restart it: {restart}" if restart else "")
    elif instead:
        words[verdict] += f" {examine.typed_instead(request)}"
    return Result(
        {"name": name, "destination": request.destination or None, "verdict": verdict, "memory": memory,
         "without_memory": {"verdict": instead, "command": examine.command(request), "price": plan.price(name)}
         if instead else None,
         "prepare": prepare or None, "restart": restart or None,
         "findings": findings.to_json(found),
         "facts": to_builtins({"source": looked.source, "container": looked.container,
                               "destination": looked.destination})},
        examine.shown(found, words[verdict]),
        status,
        paint=findings.painted,
    )


# --- on the destination ---------------------------------------------------------------------------------------


def facts(service: Service, asked: AskFacts) -> HostAnswer:
    """What this host is like, for the source's preflight."""
    query, lxcpath = asked.query, service.lxcpath(asked.lxcpath)
    if service.grant.restricted:
        query = _narrowed(service, query)
    here = migration_paths.Layout(lxcpath, asked.name, "")
    renamed = asked.source_name not in ("", here.name) or service.grant.restricted
    fenced = origins.is_own_copy(service.journal, here, service.origin(asked.origin), renamed=renamed)
    found = host_facts.gather(dataclasses.replace(query, lxcpath=str(lxcpath)))
    found = dataclasses.replace(found, hooks_fix=service.grant.hooks_fix)
    return HostAnswer(facts=found, fenced_copy=fenced)


def _narrowed(service: Service, query: Query) -> Query:
    """Limits the query to what a caller who is not root may ask about; raises NotAllowed.

    Such a caller may ask about the existence of paths that a container can need without reaching out of it; about any
    other path only if it may bring containers that reach out, which could find out as well.
    """
    service.looks += 1
    if service.looks > FACTS_MAX:
        raise service.grant.refusal("it has asked for this host's facts too often over one connection")
    paths, includes = query.paths, query.includes
    if not service.grant.hooks:
        paths, includes = (tuple(filter(consent.may_be_asked, each)) for each in (paths, includes))
    return dataclasses.replace(query, paths=paths[:PATHS_MAX], includes=includes)


HANDLERS: Handlers = {AskFacts: facts, Measure: bandwidth.answer}
