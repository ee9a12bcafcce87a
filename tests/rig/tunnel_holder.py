# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in a rig's host: has one end of a tunnel until it is interrupted, and tells as JSON lines what happens.

    tunnel_holder.py ROLE SESSION PEER-ADDRESS PEER-PORT OWN-PORT
    tunnel_holder.py sweep

Commands, one a line, are read from COMMANDS whenever it is there: `measure`, `stats`, `tune`, `endpoint ADDRESS PORT`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

from tunnel import wireguard
from tunnel.health import path_health
from tunnel.health.echo import Echo
from tunnel.interface import device, leftovers
from tunnel.interface.addresses import Role
from tunnel.tunnel_errors import TunnelError
from tunnel.wireguard import wireguard_keys

COMMANDS = Path("/tmp/holder.commands")


@dataclasses.dataclass(frozen=True)
class Keys:
    """Keys that the test and both hosts can make up."""

    role: str
    session: bytes

    @property
    def private_key(self) -> bytes:
        return hashlib.sha256(self.role.encode() + self.session).digest()

    @property
    def peer_public(self) -> bytes:
        peer = "responder" if self.role == "initiator" else "initiator"
        return wireguard_keys.public_key(dataclasses.replace(self, role=peer).private_key)

    @property
    def preshared(self) -> bytes:
        return hashlib.sha256(b"preshared" + self.session).digest()


@dataclasses.dataclass(frozen=True)
class Straight:
    """A path that needs no punching."""

    endpoint: tuple[str, int]
    local_port: int


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def hold(role: Role, session: bytes, path: Straight) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    leftovers.sweep()
    tell(event="begins")
    holding = asyncio.ensure_future(holds(role, session, path))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([holding, stopping], return_when=asyncio.FIRST_COMPLETED)
    holding.cancel()
    stopping.cancel()
    await asyncio.wait([holding])
    if not holding.cancelled():
        holding.result()
    tell(event="ended")


async def holds(role: Role, session: bytes, path: Straight) -> None:
    begun = time.monotonic()
    made = await device.up(Keys(role, session), path, role)
    try:
        echo = Echo.open(made.local_address, made.remote_address, made.echo_port)
        try:
            tell(event="up", seconds=time.monotonic() - begun, name=made.name, local=made.local_address,
                 remote=made.remote_address, port=made.port, echo=made.echo_port, mtu=made.mtu)  # fmt: skip
            took = await path_health.first_answer(made, echo, limit=600)
            tell(event="answer", seconds=took, after=time.monotonic() - begun)
            tell(event="tuned", mtu=await path_health.tune(made, echo, path.endpoint))
            watch = path_health.Watch(echo, dead)
            watching = asyncio.ensure_future(watch.run())
            try:
                while True:
                    await asyncio.sleep(0.05)
                    if COMMANDS.exists():
                        lines = COMMANDS.read_text().splitlines()
                        COMMANDS.unlink()
                        for line in lines:
                            await obey(line, made, echo, path)
            finally:
                watching.cancel()
        finally:
            echo.close()
    finally:
        await made.close()


async def dead(reason: str) -> None:
    tell(event="dead", reason=reason)
    await asyncio.sleep(0.3)


async def obey(line: str, made: device.Interface, echo: Echo, path: Straight) -> None:
    match line.split():
        case ["measure"]:
            tell(event="measured", **(await path_health.measure(echo, size=made.mtu - 48)).to_json())
        case ["stats"]:
            tell(event="stats", **dataclasses.asdict(await made.stats()))
        case ["tune"]:
            tell(event="tuned", mtu=await path_health.tune(made, echo, path.endpoint))
        case ["endpoint", address, port]:
            await made.set_endpoint((address, int(port)))
            tell(event="moved")


def main() -> int:
    try:
        if sys.argv[1] == "sweep":
            tell(event="swept", names=leftovers.sweep(), backend=wireguard.backend().kind)
        else:
            role, session, address, port, own = sys.argv[1:]
            asyncio.run(hold(cast(Role, role), bytes.fromhex(session), Straight((address, int(port)), int(own))))
    except TunnelError as error:
        tell(event="failed", error=error.to_json())
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
