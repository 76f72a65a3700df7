# SPDX-License-Identifier: Apache-2.0
"""Keys that exist in this boot's memory only, and the certificates around them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cube_attestation import dsse
from cube_attestation.errors import BadInput


@dataclass(frozen=True)
class TlsKey:
    """The key that ends TLS in this boot. ``spki`` is its identity."""

    key: ec.EllipticCurvePrivateKey
    spki: str

    @classmethod
    def generate(cls) -> TlsKey:
        """A fresh P-256 key."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, dsse.spki_digest(key.public_key()))

    def private_pem(self) -> str:
        """PKCS #8 for Envoy's SDS file, which lives in memory and which Envoy alone may read."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def self_signed(self, hostnames: Sequence[str], now: datetime.datetime) -> str:
        """PEM certificate until an ``admit`` brings a leaf: evidence, not it, vouches for the key."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cube unverified")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hostnames]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


def leaf_spki(chain: str) -> str:
    """Identity of the first certificate's key in a PEM chain. Raises BadInput."""
    try:
        leaf, *_ = x509.load_pem_x509_certificates(chain.encode())
        return dsse.spki_digest(leaf.public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadInput("not a chain of PEM certificates", where="body.certificate") from error
