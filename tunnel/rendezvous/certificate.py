# SPDX-License-Identifier: GPL-2.0-or-later
"""The server's certificate: given, or self-signed for peers that pin its fingerprint."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import os
import secrets
import ssl
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tunnel import metered_tls
from tunnel.identity import private_files
from tunnel.metered_tls import FROM_ENDS, FROM_PEERS
from tunnel.tunnel_errors import TunnelFileUnusable

LIFE = datetime.timedelta(days=365 * 20)  # the pin decides, so a date would only break things


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What TLS needs, for signalling and for the relay, and the SHA-256 that peers pin."""

    context: ssl.SSLContext
    relay_context: ssl.SSLContext
    sha256: bytes
    self_made: bool

    @classmethod
    def load(cls, certificate: Path | None, key: Path | None) -> Certificate:
        """Read both files; make them if neither exists; without names, make a certificate that lasts for this run.

        Raises TunnelFileUnusable.
        """
        if certificate is None or key is None:
            with _in_memory(b"".join(_make())) as both:
                return cls._read(both, both)
        if not certificate.exists() and not key.exists():
            made, secret = _make()
            private_files.write_private(key, secret.decode(), replace=False)
            private_files.write_private(certificate, made.decode(), replace=False)
        return cls._read(certificate, key)

    @classmethod
    def _read(cls, certificate: Path, key: Path) -> Certificate:
        made = [metered_tls.context(ssl.PROTOCOL_TLS_SERVER, allowance) for allowance in (FROM_PEERS, FROM_ENDS)]
        try:
            for each in made:
                # No tickets: with them, who records the traffic could link a peer's connections across its addresses.
                each.num_tickets = 0
                each.load_cert_chain(certificate, key, password=_no_password)
            found = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "they do not belong together"
            fix = "Both must be PEM files, and the key without a password. If neither exists both are created."
            raise TunnelFileUnusable(path=f"{certificate} with {key}", reason=reason, fix=fix) from None
        sha256 = hashlib.sha256(found.public_bytes(Encoding.DER)).digest()
        return cls(made[0], made[1], sha256, self_made=found.issuer == found.subject)


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[Path]:
    """A file that never reaches a disk, for `ssl`, which can only read keys from files."""
    with os.fdopen(os.memfd_create("migrator-certificate"), "wb") as file:
        file.write(data)
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")


def _no_password() -> str:
    raise ValueError("the key has a password")


def _make() -> tuple[bytes, bytes]:
    """A certificate and its key, in PEM. Its name means nothing: the pin covers the entire certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "migrator rendezvous")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(secrets.randbits(159) | 1)
        # A day back, for peers whose clocks are behind.
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
