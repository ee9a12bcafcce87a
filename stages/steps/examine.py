# SPDX-License-Identifier: GPL-2.0-or-later
"""Examine both hosts and the container before anything is moved: what stands in the way, and what the move needs."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from migrator.base import log
from migrator.config import container_config
from migrator.copies import after_crash, origins
from migrator.errors.containers import ContainerNotRunning, MovedAway
from migrator.errors.jobs import Blocked
from migrator.host import lxc
from migrator.preflight import findings, survey
from migrator.preflight.checks import network_checks, place_checks
from migrator.preflight.checks.case import Case, PlanOptions
from migrator.preflight.facts import arp, container_facts, host_facts
from migrator.preflight.facts.container_facts import ContainerFacts
from migrator.preflight.facts.facts_message import AskFacts, HostAnswer
from migrator.preflight.facts.host_facts import HostFacts, Query
from migrator.preflight.findings import Finding, Severity, Verdict
from migrator.record import container_lock, next_commands
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.states import FROZEN, Role, State
from migrator.transfer import plan
from migrator.transfer.rpc import Connection
from migrator.transfer.wire_codec import decoded
from stages.steps.options import MoveRequest, NamedContainer, TargetOptions

STAGE = "check"


def moving(name: str, lxcpath: Path) -> Finding | None:
    """For a container past the point where it simply runs here: how it stands, and how to go on.

    Advice from its bare state would be to thaw or start it, and to remove its name on the destination, where it may be
    running by now.
    """
    with Journal(DEFAULT_PATH) as journal:
        migration = journal.latest(name, lxcpath)
        if migration is None:
            return None
        came = migration.role is Role.DESTINATION
        if not migration.ended and (came or migration.state in FROZEN):
            way = f"here from {migration.peer}" if came else f"to {next_commands.moved_to(migration)}"
            said = f"{name} is being moved {way} (migration {migration.id}, {migration.state})."
            next_ = (next_commands.command("wait", migration) if container_lock.of(name, lxcpath)
                     else after_crash.next_command(migration))
            return place_checks.UNDER_WAY.found(
                f"{said} {after_crash.note(migration)}".rstrip(),
                f"Next: {next_} -- see also: {next_commands.command('status', migration)}")
        if away := _moved_away(migration):
            return place_checks.MOVED_AWAY.found(str(away), away.hint)
    return None


def require_running(container: lxc.Container) -> None:
    """Raises ContainerNotRunning; or MovedAway, if it is what was left here of a container that has moved away.

    Nobody should be told to start that.
    """
    if (state := container.state) == "RUNNING":
        return
    with Journal(DEFAULT_PATH) as journal:
        migration = journal.latest(container.name, container.lxcpath)
    if away := migration and _moved_away(migration):
        raise away
    raise ContainerNotRunning(name=container.name, lxcpath=container.lxcpath, state=state)


def _moved_away(migration: Migration) -> MovedAway | None:
    if migration.state is not State.FINISHED or migration.role is Role.DESTINATION or not _is_fenced(migration):
        return None
    return MovedAway(name=migration.name, there=next_commands.moved_to(migration), id=migration.id,
                     host=next_commands.other_host(migration), back=next_commands.back(migration))


def _is_fenced(migration: Migration) -> bool:
    """Whether it is still that copy: once someone has removed the fence it is a container like any other."""
    with contextlib.suppress(OSError):
        text = container_config.text_of(migration.lxcpath / migration.name / "config")
        return container_config.fence_of(text) == migration.id
    return False


def shown(found: Iterable[Finding], sentence: str) -> str:
    """For people: the findings and what they mean; with -q only errors and warnings, so nothing if all is well."""
    if log.level == log.Level.QUIET:
        return findings.render(finding for finding in found if finding.severity is not Severity.INFO)
    return "\n".join(part for part in (findings.render(found), sentence) if part)


@dataclasses.dataclass(frozen=True)
class Look:
    """Both hosts and the container at one moment, and what was found about them."""

    source: HostFacts
    destination: HostFacts | None
    container: ContainerFacts
    options: PlanOptions
    findings: list[Finding]

    @property
    def disk_bytes(self) -> int:
        return max(0, self.container.rootfs.used)

    def instead(self, ignored: Collection[str]) -> Verdict | None:
        """What the verdict would be with --no-memory; None if that was given already or would not help either."""
        if not self.options.memory:
            return None
        options = dataclasses.replace(self.options, memory=False)
        found = survey.find(self.source, self.destination, self.container, options)
        verdict = findings.verdict(found, ignored)
        return None if verdict is Verdict.BLOCKED else verdict


def typed_instead(request: MoveRequest) -> str:
    return f"It can without its memory: {command(request)} -- {plan.price(request.container.name)}"


def command(request: MoveRequest) -> str:
    return _typed("migrate", request, "--no-memory")


def prepare_command(request: MoveRequest, found: Iterable[Finding]) -> str:
    """The command that makes a container movable: "" where nothing blocks it, or something that it leaves as it is.

    With --for-good it does so once the container has been restarted (`restart_command`).
    """
    blocking = [finding for finding in found if finding.severity is Severity.ERROR]
    if not blocking or not all(finding.unit or finding.denied for finding in blocking):
        return ""
    for_good = ["--for-good"] if any(finding.denied for finding in blocking) else []
    path = ["-P", request.container.given_lxcpath] if request.container.given_lxcpath else []
    return shlex.join(["migrator", "prepare-guest", request.container.name, *path, "--yes", *for_good])


def restart_command(container: NamedContainer) -> str:
    """How a container is started anew, with the seccomp profile that its configuration names now."""
    words = ["-P", container.given_lxcpath] if container.given_lxcpath else []
    return " && ".join(shlex.join([verb, *words, "-n", container.name]) for verb in ("lxc-stop", "lxc-start"))


def _typed(verb: str, request: MoveRequest, *more: str) -> str:
    """A command for exactly this container."""
    container = request.container
    path = ["-P", container.given_lxcpath] if container.given_lxcpath else []
    return shlex.join(["migrator", verb, container.name, *path, "-d", request.destination or "HOST", *more])


def look(target: TargetOptions, container: lxc.Container, there: Connection | None, *, full: bool,
         known_copy: bool = False, bridges: dict[str, str] | None = None, memory: bool = True) -> Look:
    """Gather the facts on both hosts at the same time, and draw the findings from them.

    `full` also counts the root file system's bytes, which takes a while for a large one, and looks for the other host
    on the container's bridge.
    """
    facts = container_facts.gather(container, full=full)
    asked = 0
    if there:
        query = survey.query(facts, target.lxcpath or "")
        begun = time.time()
        asked = there.send_request(_question(target, container, query))
    here = host_facts.gather(Query(str(container.lxcpath)))
    destination, offset = None, None
    options = PlanOptions(
        tunnel=_tunnel_warnings(there),
        disk_needed=0 if known_copy else None,  # part of it is there; prepare_data.begin counts what is not
        bridges=bridges if bridges is not None else dict(target.bridges), memory=memory,
        name=target.new_name,
    )
    if there:
        reply = decoded(HostAnswer, there.answer(asked))
        # By the name in its greeting, which has been checked.
        destination = dataclasses.replace(reply.facts, name=there.peer_host)
        # The other clock was read at some time between `begun` and now.
        offset = _offset(begun, destination.time, time.time())
        options = dataclasses.replace(options, clock_offset=offset, known_copy=known_copy or reply.fenced_copy)
        if full:
            questions = network_checks.to_ask(Case(here, destination, facts, options))
            answers = {key: who for key, each in questions.items() if (who := arp.who_has(*each)) is not None}
            options = dataclasses.replace(options, answers=answers)
    found = survey.find(here, destination, facts, options)
    return Look(here, destination, facts, options, found)


def _question(target: TargetOptions, container: lxc.Container, query: Query) -> AskFacts:
    """With what the destination needs to tell an earlier copy of this container from another container."""
    with Journal(DEFAULT_PATH) as journal:
        return AskFacts(query=query, lxcpath=target.lxcpath, name=target.new_name or container.name,
                        source_name=container.name,
                        origin=origins.origin(journal, container.name, container.lxcpath))


def _tunnel_warnings(there: Connection | None) -> tuple[str, ...]:
    """What this host's WireGuard lacks, if the destination is a paired peer."""
    if there is None or there.tunnel is None:
        return ()
    from tunnel import wireguard

    return tuple(wireguard.warnings(wireguard.backend()))


def _offset(begun: float, there: float, ended: float) -> float:
    """Seconds that the other clock is certainly ahead (negative: behind); 0 if the difference is within the round trip.
    """
    if begun <= there <= ended:
        return 0.0
    return there - ended if there > ended else there - begun


def before_stage(request: MoveRequest, ignore: Collection[str], container: lxc.Container, there: Connection, *,
                 full: bool = False, known_copy: bool = False, bridges: dict[str, str] | None = None,
                 memory: bool = True) -> Look:
    """The preflight of a stage: print the warnings, and raise Blocked for errors that --ignore does not name."""
    ignored = findings.check_ignored(ignore)
    looked = look(request.target, container, there, full=full, known_copy=known_copy, bridges=bridges, memory=memory)
    found = findings.apply_ignored(looked.findings, ignored)
    for finding in found:
        if finding.severity is Severity.WARNING:
            log.verbose(f"{finding.code}: {finding.message}")
    errors = [finding for finding in found if finding.severity is Severity.ERROR]
    if errors:
        text = "; ".join(f"{finding.code}: {finding.message}" for finding in errors)
        instead = looked.instead(ignored)
        raise Blocked(name=container.name, destination=there.peer_host, findings=text,
                      check=_typed(STAGE, request),
                      instead=typed_instead(request) if instead else "")
    return looked
