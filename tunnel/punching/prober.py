# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the punching state machine on real sockets, and the relay beside it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Literal

from tunnel.candidates import nat
from tunnel.candidates.candidate import Candidate
from tunnel.candidates.gathering import Local
from tunnel.candidates.nat import Endpoint
from tunnel.candidates.outlook import Policy
from tunnel.punching.actions import RELAY, RELAY_ENDPOINT, Action, Config, Done, Failed, OpenSockets, Send
from tunnel.punching.probes import Role
from tunnel.punching.punch import Punch
from tunnel.relay import relay_messages
from tunnel.relay.relay_client import Joining, RelayToken
from tunnel.relay.relay_proxy import TcpPath
from tunnel.tunnel_errors import NoPath

LIMIT = 10.0  # seconds until a punch is given up
TCP_AFTER = 0.6  # seconds without an answer from the relay by UDP after which TCP is tried
TCP_LIMIT = 8.0


@dataclasses.dataclass(frozen=True)
class Remote:
    """The other side, according to its offer (`candidate.sane`)."""

    candidates: Sequence[Candidate]
    nat: nat.Kind


@dataclasses.dataclass(frozen=True)
class Path:
    """A path to the peer, for WireGuard to use from `local_port`; `connect_ms` counts from the start of the punch.

    `via`: "udp", or "tcp" for a relay that is reached through a local proxy, which `close` ends.
    """

    kind: Literal["direct", "relay"]
    endpoint: Endpoint
    local_port: int
    reason: str
    connect_ms: float
    via: Literal["udp", "tcp"] = "udp"
    rtt_ms: float = 0.0
    proxy: TcpPath | None = dataclasses.field(default=None, compare=False, repr=False)

    def close(self) -> None:
        """End what carries the path on this host; safe to repeat."""
        if self.proxy:
            self.proxy.close()


class Attempt:
    """A punch in progress. `start` begins it, `go` says that the initiator has begun too, `result` waits for it."""

    def __init__(self, local: Local, remote: Remote, key: bytes, role: Role, policy: Policy = "prefer-direct",
                 relay: RelayToken | None = None, *, limit: float = LIMIT, patience: float = LIMIT,
                 wide: bool = True) -> None:
        config = Config(
            role=role, key=key, remote=remote.candidates, local_nat=local.nat.kind, remote_nat=remote.nat,
            policy=policy, opener_ttl=local.opener_ttl, limit=limit, patience=patience, wide=wide,
        )
        self._sender = local.sender
        self._relay = relay if policy != "direct-only" else None
        self._joining = Joining(relay) if relay else None
        self._tcp: TcpPath | None = None
        self._tcp_first = local.nat.kind == "blocked"
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._machine = Punch(config, self._begun)
        self._ended: asyncio.Future[Done | Failed] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    def start(self) -> None:
        """Send the first packets."""
        self._sender.receiver = self._received
        if self._relay:
            self._tasks.append(self._loop.create_task(self._join()))
        self._act(self._machine.tick(self._loop.time()))

    def go(self) -> None:
        """The initiator has begun."""
        self._act(self._machine.go(self._loop.time()))

    async def result(self, *, keep: bool = False) -> Path:
        """The path; raises NoPath. Its UDP port is free afterwards, unless the sender is to be kept."""
        path: Path | None = None
        try:
            ended = await self._ended
            if isinstance(ended, Failed):
                raise NoPath(reason=ended.reason)
            path = self._path(ended, (self._loop.time() - self._begun) * 1000)
            return path
        finally:
            self._stop(path, keep=keep)

    def close(self) -> None:
        """End it and close its sender, unless `result` has done so already."""
        if not self._stopped:
            self._stop(None, keep=False)

    def _path(self, done: Done, connect_ms: float) -> Path:
        port = self._sender.port(max(done.via, 0))
        endpoint, via, proxy = done.endpoint, "udp", None
        if done.kind == "relay":
            assert self._relay is not None  # noqa: S101
            endpoint = self._relay.udp
            if self._tcp:
                proxy, via, endpoint = self._tcp, "tcp", self._tcp.proxy(port)
        return Path(done.kind, endpoint, port, done.reason, round(connect_ms, 1), "tcp" if via == "tcp" else "udp",
                    round(done.rtt * 1000, 2), proxy)

    def _stop(self, path: Path | None, *, keep: bool) -> None:
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        if self._timer:
            self._timer.cancel()
        if self._tcp and (path is None or path.proxy is None):
            self._tcp.close()
        if self._relay and self._joining and self._joining.joined and (path is None or path.kind != "relay"):
            self._sender.send(0, self._relay.udp, self._joining.leave())
        self._sender.receiver = None
        if not keep:
            self._sender.close()

    # --- The machine's inputs and outputs ---

    def _received(self, via: int, source: Endpoint, data: bytes) -> None:
        now = self._loop.time()
        if self._relay and source == self._relay.udp and via == 0:
            if data.startswith(relay_messages.MAGIC):
                self._relay_said(data, now)
            elif not self._tcp:
                self._act(self._machine.received(RELAY, RELAY_ENDPOINT, data, now))
        else:
            self._act(self._machine.received(via, source, data, now))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, OpenSockets):
                opened = self._sender.more(action.count)
                self._act(self._machine.opened(opened, self._loop.time()))
            elif not self._ended.done():
                self._ended.set_result(action)
        if self._timer:
            self._timer.cancel()
        if not self._ended.done():
            self._timer = self._loop.call_at(self._machine.wake, self._tick)

    def _tick(self) -> None:
        self._act(self._machine.tick(self._loop.time()))

    def _send(self, action: Send) -> None:
        if action.via != RELAY:
            self._sender.send(action.via, action.to, action.data, action.ttl)
        elif self._tcp:
            self._tcp.send(action.data)
        elif self._relay:
            self._sender.send(0, self._relay.udp, action.data)

    # --- The relay ---

    async def _join(self) -> None:
        """Join the relay by UDP, and if it does not answer, by TCP; a relay that fails counts as absent."""
        assert self._relay is not None and self._joining is not None  # noqa: S101
        begun = self._loop.time()
        while not self._tcp_first and not self._joining.refused:
            now = self._loop.time()
            if not self._joining.joined and now - begun > TCP_AFTER:
                break
            if now >= self._joining.due:
                self._sender.send(0, self._relay.udp, self._joining.datagram(now))
            await asyncio.sleep(max(0.01, min(self._joining.due - now, TCP_AFTER / 4)))
        if self._joining.refused:
            return
        with contextlib.suppress(OSError):
            self._tcp = await TcpPath.open(self._relay, self._by_tcp, TCP_LIMIT)
            self._act(self._machine.relay_ready(self._loop.time()))

    def _relay_said(self, data: bytes, now: float) -> None:
        assert self._joining is not None  # noqa: S101
        was = self._joining.joined
        answer = self._joining.received(data, now)
        if answer and answer.cookie and self._relay:
            self._sender.send(0, self._relay.udp, self._joining.datagram(now))
        if self._joining.joined and not was:
            self._act(self._machine.relay_ready(now))

    def _by_tcp(self, data: bytes) -> None:
        self._act(self._machine.received(RELAY, RELAY_ENDPOINT, data, self._loop.time()))


async def run(local: Local, remote: Remote, key: bytes, role: Role, policy: Policy = "prefer-direct",
              relay: RelayToken | None = None, *, limit: float = LIMIT) -> Path:
    """Punch from beginning to end; raises NoPath. For callers that need to do nothing in between."""
    attempt = Attempt(local, remote, key, role, policy, relay, limit=limit)
    attempt.start()
    return await attempt.result()
