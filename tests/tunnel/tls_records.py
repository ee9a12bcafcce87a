# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS 1.3 by hand: records as an attacker makes them, which no library would send."""

from __future__ import annotations

import asyncio
import ssl
import struct
import tempfile
from collections.abc import Callable
from typing import TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

HANDSHAKE, DATA = 22, 23  # types of content
KEY_UPDATE = b"\x18\0\0\1\1"  # which asks for one in return
TICKET = b"\4" + struct.pack(">I", 121)[1:] + bytes(8) + b"\x08" + bytes(8) + struct.pack(">H", 100) + bytes(102)

T = TypeVar("T")


class Attacker:
    """One end of a connection. What it reads, and says in good order, goes through `ssl`; then it makes records."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext,
                 *, server: bool = False) -> None:
        self._reader = reader
        self._writer = writer
        self._side = "SERVER" if server else "CLIENT"
        self._keys = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        context.keylog_filename = self._keys.name
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server)
        self._sent = 0  # records with the present key
        self._secret = b""
        self.came = 0  # bytes of TLS'

    @classmethod
    async def connected(cls, host: str, port: int) -> Attacker:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        made = cls(*await asyncio.open_connection(host, port), context)
        await made.greet()
        return made

    async def greet(self) -> None:
        """TLS' handshake."""
        await self._through(self._tls.do_handshake)
        for line in self._keys.read().splitlines():
            if line.startswith(f"{self._side}_TRAFFIC_SECRET_0 "):
                self._secret = bytes.fromhex(line.split()[2])

    async def _through(self, step: Callable[[], T]) -> T:
        while True:
            try:
                found = step()
                self._writer.write(self._out.read())
                return found
            except ssl.SSLWantReadError:
                self._writer.write(self._out.read())
                if not (data := await self._reader.read(65536)):
                    raise ConnectionResetError from None
                self.came += len(data)
                self._in.write(data)

    async def read(self, until: bytes = b"") -> bytes:
        """What comes, up to the data that has that in it; raises ConnectionError at the end."""
        found = b""
        while not found or until not in found:
            if not (data := await self._through(lambda: self._tls.read(65536))):
                raise ConnectionResetError
            found += data
        return found

    def say(self, data: bytes) -> None:
        """One record, in good order; not after any that was made by hand."""
        self._tls.write(data)
        self._sent += 1
        self._writer.write(self._out.read())

    def record(self, content: bytes, kind: int = DATA, padding: int = 0) -> bytes:
        """The next record."""
        size = len(content) + 1 + padding + 16
        header = struct.pack(">BHH", 23, 0x303, size)
        nonce = int.from_bytes(self._derived(b"iv", 12)) ^ self._sent
        key = self._derived(b"key", 32 if self._hash.digest_size == 48 else 16)
        self._sent += 1
        made = header + AESGCM(key).encrypt(nonce.to_bytes(12), content + bytes([kind]) + bytes(padding), header)
        if kind == HANDSHAKE and content == KEY_UPDATE:
            self._secret, self._sent = self._derived(b"traffic upd", self._hash.digest_size), 0
        return made

    async def flood(self, records: bytes) -> None:
        """Send that; the other end may have ended the connection meanwhile."""
        self._writer.write(records)
        await asyncio.sleep(0)

    async def ended(self) -> bool:
        """Whether the other end ends the connection before it sends any data."""
        try:
            await self.read()
        except (ConnectionError, ssl.SSLError):
            return True
        return False

    def close(self) -> None:
        self._writer.transport.abort()
        self._keys.close()

    @property
    def _hash(self) -> hashes.HashAlgorithm:
        name = self._tls.cipher()
        assert name is not None
        return hashes.SHA384() if name[0].endswith("SHA384") else hashes.SHA256()

    def _derived(self, label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack(">HB", size, len(label)) + label + b"\0"
        return HKDFExpand(self._hash, size, info).derive(self._secret)
