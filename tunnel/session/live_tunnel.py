# SPDX-License-Identifier: GPL-2.0-or-later
"""An established tunnel: its interface, the watch over its path, and healing it.

The initiator decides: it notices that the path is dead, tells the peer through the rendezvous, and both punch again
under the live interface, from the very port that WireGuard uses; the transfer inside only sees a pause. The responder
waits to be told.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from migrator.base.clock import now
from migrator.base.strict_json import Malformed
from tunnel.candidates import candidate, gathering
from tunnel.candidates.outlook import Policy
from tunnel.health import path_health
from tunnel.health.echo import Echo
from tunnel.health.path_health import Quality, Watch
from tunnel.interface.device import Interface
from tunnel.punching.prober import Attempt, Path
from tunnel.punching.raw import RawPort
from tunnel.rendezvous.limits import Bucket, Rate
from tunnel.session import live_status, offers
from tunnel.session.channel import Channel
from tunnel.session.session_keys import SessionKeys
from tunnel.tunnel_errors import LeftoversRemain, PeerSilent, TunnelBroken, TunnelError

HEAL_LIMIT = 60.0  # seconds after which a path that stays dead is given up
HEAL_PATIENCE = 1.0  # seconds for a direct path before the relay is used, in a heal
HEAL_PUNCH = 6.0  # seconds for one punch
HEAL_PAUSE = 0.5
BACK_LIMIT = 2.0  # seconds for an echo over the healed path
TELL_INTERVAL = 2.0
ASK_AGAIN = (0.5, 0.7, 1.0, 2.0, 4.0)  # seconds to wait for an answer, for each try
UPGRADE_AFTER = (15.0, 60.0, 300.0)  # seconds on the relay until a direct path is looked for again
# For the punches that a peer asks for: each sends to wherever it says. The burst is what a heal takes in HEAL_LIMIT.
AGAIN_PACE = Rate(per_second=1 / 15, burst=12)


class Tunnel:
    """One end of a session's tunnel; `setup.open_tunnel` and `responder.accept` make it."""

    def __init__(self, channel: Channel, keys: SessionKeys, interface: Interface, echo: Echo, path: Path,
                 policy: Policy, setup_ms: float) -> None:
        self.peer = channel.peer
        self.role = channel.role
        self.path = path
        self.policy: Policy = policy
        self.setup_ms = setup_ms  # since the command began, signalling included
        self.heals = 0
        self.ended = asyncio.Event()  # the peer has closed it, or it is broken
        self.error: TunnelError | None = None  # why, if it is broken
        self.interface = interface
        self.echo = echo
        self._channel = channel
        self._keys = keys
        self._attempts = 0
        self._pace = Bucket(AGAIN_PACE, now)
        self._punching = asyncio.Lock()
        self._watch = Watch(echo, self._dead)
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def name(self) -> str:
        return self.interface.name

    @property
    def local_address(self) -> str:
        return self.interface.local_address

    @property
    def remote_address(self) -> str:
        return self.interface.remote_address

    @property
    def port(self) -> int:
        """The TCP port of the responder's listener, on its tunnel address."""
        return self.interface.port

    @property
    def secret(self) -> bytes:
        """What the listener asks for: any user of the initiator's host can reach a tunnel address."""
        return self._keys.secret

    @property
    def mtu(self) -> int:
        return self.interface.mtu

    async def start(self) -> None:
        """Begin to watch the path; the MTU is determined meanwhile."""
        work = (self._watch.run, self._listen, self._tune, self._tell)
        self._tasks = [asyncio.create_task(self._run(each)) for each in work]
        if self.role == "initiator" and self.path.kind == "relay" and self.policy == "prefer-direct":
            self._tasks.append(asyncio.create_task(self._run(self._upgrade)))

    async def measure(self, *, throughput: bool = True) -> Quality:
        """The current quality of the path."""
        return await path_health.measure(self.echo, throughput=throughput)

    async def close(self) -> None:
        """Close the tunnel and remove everything that belongs to it; safe to repeat. Raises LeftoversRemain."""
        if self._closed:
            return
        self._closed = True
        self.ended.set()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TunnelError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self._channel.send("close")
        self.echo.close()
        self.path.close()
        live_status.remove(self.name)
        try:
            await self.interface.close()
        finally:
            await self._channel.close()

    def to_json(self) -> dict[str, Any]:
        """What `migrator tunnel status` shows; nothing secret. `rtt_ms` is None while nothing comes back."""
        found = self._watch.quality()
        return {
            "peer": self.peer.name, "role": self.role, "interface": self.name, "backend": self.interface.backend.kind,
            "path": self.path.kind, "via": self.path.via, "reason": self.path.reason,
            "rtt_ms": None if found.rtt_ms is None else round(found.rtt_ms, 2), "loss": round(found.loss, 3),
            "connect_ms": self.path.connect_ms, "setup_ms": self.setup_ms, "mtu": self.mtu, "heals": self.heals,
        }

    async def _tell(self) -> None:
        """Keep the file that `migrator tunnel status` reads."""
        while True:
            live_status.write(self.name, self.to_json())
            await asyncio.sleep(TELL_INTERVAL)

    async def _run(self, work: Any) -> None:
        """One of the tasks; the tunnel ends with the first that fails."""
        try:
            await work()
        except TunnelError as error:
            if not self.ended.is_set():
                self.error = error
                self.ended.set()

    async def _tune(self) -> None:
        with contextlib.suppress(LeftoversRemain):
            await path_health.tune(self.interface, self.echo, self.path.endpoint)

    # --- A dead path ---

    async def _dead(self, reason: str) -> None:
        """Called by the watch; returns once the path is alive, or raises TunnelBroken."""
        if self.ended.is_set():
            return
        begun = now()
        self._channel.tell(f"the path to {self.peer.name} is dead ({reason})")
        why = reason
        while now() - begun < HEAL_LIMIT:
            if self._watch.silent < path_health.DEAD_AFTER:
                break  # it came back by itself, or the other side has healed it
            try:
                await self._channel.renew()
                if self.role == "initiator":
                    await self._punch_again(self.policy)
                    if await self._watch.back(BACK_LIMIT):
                        break
                    why = "the new path carries nothing"
            except (TunnelError, OSError) as error:
                why = str(error)
            await asyncio.sleep(HEAL_PAUSE if self.role == "initiator" else path_health.INTERVAL)
        else:
            raise TunnelBroken(name=self.peer.name, reason=f"{reason}, and healing failed: {why}")
        self.heals += 1
        self._channel.tell(f"the path to {self.peer.name} is alive again after {now() - begun:.1f} s: "
                           f"{self.path.kind}, {self.path.reason}")
        await self._tune()

    async def _upgrade(self) -> None:
        """Look for a direct path from time to time while the relay is used."""
        pauses = list(UPGRADE_AFTER)
        while self.path.kind == "relay":
            await asyncio.sleep(pauses.pop(0) if len(pauses) > 1 else pauses[0])
            with contextlib.suppress(TunnelError, OSError):
                await self._punch_again("direct-only")
                await self._tune()

    # --- Punching again ---

    async def _punch_again(self, policy: Policy) -> None:
        """The initiator's side; raises TunnelError and OSError."""
        async with self._punching:
            self._attempts += 1
            number = self._attempts
            raw = RawPort(self.path.local_port)
            try:
                local = await gathering.gather(raw, await self._channel.reflectors())
                token = None if policy == "direct-only" else await self._channel.relay_token()
                body = await self._asked_again(number, {"attempt": number, **offers.side(local, policy)})
                theirs = offers.read_side(body, _own())
                attempt = Attempt(local, theirs.remote(), self._keys.probe(number), "initiator", policy, token,
                                  limit=HEAL_PUNCH, patience=HEAL_PATIENCE, wide=False)
                with contextlib.closing(attempt):
                    attempt.start()
                    await self._channel.send("go", {"attempt": number})
                    await self._move(await attempt.result(keep=True))
            except Malformed as error:
                raise TunnelBroken(name=self.peer.name, reason=f"its answer is invalid: {error}") from None
            finally:
                raw.close()

    async def _asked_again(self, number: int, said: dict[str, Any]) -> dict[str, Any]:
        """Ask until it is ready; its connection to the rendezvous may have died too, and may just be reconnecting."""
        for wait in ASK_AGAIN:
            await self._channel.send("again", said)
            try:
                return await self._channel.receive("ready", timeout=wait, attempt=number)
            except PeerSilent as error:
                silent = error
        raise silent

    async def _listen(self) -> None:
        """Handle what the peer says through the rendezvous while the tunnel exists."""
        while True:
            body = await self._channel.receive(*(("close",) if self.role == "initiator" else ("close", "again")))
            if body["type"] == "close":
                self.ended.set()
                return
            with contextlib.suppress(TunnelError, OSError, Malformed, ValueError):
                await self._answer_again(body)

    async def _answer_again(self, body: dict[str, Any]) -> None:
        """The responder's side of `_punch_again`; raises ValueError if no path would satisfy both."""
        number, theirs = offers.read_attempt(body), offers.read_side(body, _own())
        if number <= self._attempts:
            return
        policy = offers.agreed(self.policy, theirs.policy)
        if not self._pace.take():
            return  # an honest peer asks for the same one a few times more
        self._attempts = number
        raw = RawPort(self.path.local_port)
        try:
            local = await gathering.gather(raw, await self._channel.reflectors())
            token = None if policy == "direct-only" else await self._channel.relay_token()
            attempt = Attempt(local, theirs.remote(), self._keys.probe(number), "responder", policy, token,
                              limit=HEAL_PUNCH, patience=HEAL_PATIENCE, wide=False)
            attempt.start()

            async def go() -> None:
                await self._channel.receive("go", timeout=HEAL_PUNCH, attempt=number)
                attempt.go()

            going = asyncio.create_task(go())
            try:
                await self._channel.send("ready", {"attempt": number, **offers.side(local, policy)})
                await self._move(await attempt.result(keep=True))
            finally:
                attempt.close()
                going.cancel()
                await asyncio.gather(going, return_exceptions=True)
        finally:
            raw.close()

    async def _move(self, path: Path) -> None:
        """Use another path from now on."""
        old, self.path = self.path, path
        try:
            await self.interface.set_endpoint(path.endpoint)
        finally:
            old.close()


def _own() -> set[str]:
    return {address for _, address in candidate.own_addresses()}
