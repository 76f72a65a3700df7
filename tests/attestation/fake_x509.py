# SPDX-License-Identifier: Apache-2.0
"""Certificates and revocation lists as bytes, right or wrong on purpose: serial 0, RSA-PSS, any extension."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cube_attestation.x509 import certificate as x509
from cube_attestation.x509 import der, keys

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
START, END = NOW - timedelta(days=365), NOW + timedelta(days=365)
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

ALGORITHMS = {name: algorithm for algorithm, name in reversed(keys.ALGORITHMS.items())}
SHA1_RSA = der.encode(der.SEQUENCE, der.encode(der.OID, der.oid("1.2.840.113549.1.1.5")), der.encode(der.NULL))


@functools.cache
def rsa_key(role: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@functools.cache
def ec_key(role: str, curve: type[ec.EllipticCurve] = ec.SECP384R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


def spki(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def name(common_name: str, organisation: str = "Fake", **more: str) -> bytes:
    """``more``: country, locality, state, unit."""

    def rdn(oid: str, text: str) -> bytes:
        pair = der.encode(der.SEQUENCE, der.encode(der.OID, der.oid(oid)), der.encode(der.UTF8, text.encode()))
        return der.encode(der.SET, pair)

    types = {"country": "2.5.4.6", "locality": "2.5.4.7", "state": "2.5.4.8", "unit": "2.5.4.11"}
    other = [rdn(types[which], text) for which, text in more.items()]
    return der.encode(der.SEQUENCE, *other, rdn("2.5.4.10", organisation), rdn("2.5.4.3", common_name))


def time(moment: datetime) -> bytes:
    if moment.year < 2050:
        return der.encode(der.UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return der.encode(der.GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def integer(value: int) -> bytes:
    size = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return der.encode(der.INTEGER, value.to_bytes(size, "big", signed=True))


def sign(key: PrivateKey, data: bytes, scheme: str, hash_name: str) -> bytes:
    digest: hashes.HashAlgorithm = {
        "sha1": hashes.SHA1(),
        "sha256": hashes.SHA256(),
        "sha384": hashes.SHA384(),
        "sha512": hashes.SHA512(),
    }[hash_name]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(digest))
    if scheme == "rsapss":
        return key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    return key.sign(data, padding.PKCS1v15(), digest)


def extension(oid: str | bytes, value: bytes, *, critical: bool = False) -> bytes:
    contents = oid if isinstance(oid, bytes) else der.oid(oid)
    flag = der.encode(der.BOOLEAN, b"\xff") if critical else b""
    return der.encode(der.SEQUENCE, der.encode(der.OID, contents), flag, der.encode(der.OCTET_STRING, value))


def basic_constraints(ca: bool, length: int | None = None) -> bytes:
    flag = der.encode(der.BOOLEAN, b"\xff") if ca else b""
    inner = der.encode(der.SEQUENCE, flag, integer(length) if length is not None else b"")
    return extension(x509.BASIC_CONSTRAINTS, inner, critical=True)


def key_usage(bits: int) -> bytes:
    return extension(x509.KEY_USAGE, der.encode(der.BIT_STRING, bytes((0, bits))), critical=True)


def extended_key_usage(*oids: str) -> bytes:
    inner = der.encode(der.SEQUENCE, *(der.encode(der.OID, der.oid(oid)) for oid in oids))
    return extension(x509.EXTENDED_KEY_USAGE, inner)


def crl_point(url: str) -> bytes:
    """CRL distribution points with one full name."""
    names = der.encode(0xA0, der.encode(0xA0, der.encode(0x86, url.encode())))
    return extension(x509.CRL_POINTS, der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, names)))


def authority_information(url: str) -> bytes:
    """Authority information access: where the issuer's certificate is."""
    access = der.encode(der.OID, der.oid("1.3.6.1.5.5.7.48.2")) + der.encode(0x86, url.encode())
    return extension("1.3.6.1.5.5.7.1.1", der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, access)))


CRL_POINT = extension(
    x509.CRL_POINTS,
    der.encode(
        der.SEQUENCE,
        der.encode(der.SEQUENCE, der.encode(0xA0, der.encode(0xA0, der.encode(0x86, b"https://fake.test/crl")))),
    ),
)


def ca_extensions(
    *, ca: bool = True, length: int | None = None, usage: int = 0x06, crl: bool = False
) -> list[bytes]:
    return [basic_constraints(ca, length), key_usage(usage), *([CRL_POINT] if crl else [])]


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    der: bytes
    key: PrivateKey
    subject: bytes

    @property
    def parsed(self) -> x509.Certificate:
        return x509.parse(self.der)

    @property
    def digest(self) -> str:
        return keys.spki_digest(spki(self.key))

    @property
    def pem(self) -> bytes:
        from base64 import encodebytes

        return b"-----BEGIN CERTIFICATE-----\n" + encodebytes(self.der) + b"-----END CERTIFICATE-----\n"


def issue(
    common_name: str,
    key: PrivateKey,
    issuer: Issued | None = None,
    *,
    extensions: Iterable[bytes] = (),
    serial: int = 1,
    start: datetime = START,
    end: datetime = END,
    scheme: tuple[str, str] = ("rsassa", "sha256"),
    algorithm: bytes | None = None,
    outer_algorithm: bytes | None = None,
    version: bytes = b"\x02\x01\x02",
    subject: bytes = b"",
) -> Issued:
    """A certificate for ``key`` signed by ``issuer`` or by itself with the ``scheme`` that goes with its key.

    ``subject`` is a whole name in place of ``common_name``.
    """
    signer = issuer.key if issuer else key
    if isinstance(signer, ec.EllipticCurvePrivateKey):
        scheme = ("ecdsa", scheme[1])
    identifier = algorithm or ALGORITHMS[scheme]
    subject = subject or name(common_name)
    listed = b"".join(extensions)
    tbs = der.encode(
        der.SEQUENCE,
        der.encode(0xA0, version),
        integer(serial),
        identifier,
        issuer.subject if issuer else subject,
        der.encode(der.SEQUENCE, time(start), time(end)),
        subject,
        spki(key),
        der.encode(0xA3, der.encode(der.SEQUENCE, listed)) if listed else b"",
    )
    signature = sign(signer, tbs, *scheme)
    outer = outer_algorithm or identifier
    return Issued(der.encode(der.SEQUENCE, tbs, outer, der.encode(der.BIT_STRING, b"\0", signature)), key, subject)


def revoke(
    issuer: Issued,
    serials: Iterable[int] = (),
    *,
    start: datetime = NOW - timedelta(days=5),
    end: datetime | None = NOW + timedelta(days=5),
    scheme: tuple[str, str] = ("rsassa", "sha256"),
    key: PrivateKey | None = None,
    entry_extensions: Mapping[int, bytes] | None = None,
    critical: bool = False,
) -> bytes:
    """A revocation list of ``issuer`` in DER."""
    entries = b"".join(
        der.encode(der.SEQUENCE, integer(serial), time(start), (entry_extensions or {}).get(serial, b""))
        for serial in serials
    )
    number = extension("2.5.29.20", integer(1))
    if critical:
        number += extension("2.5.29.27", integer(1), critical=True)
    tbs = der.encode(
        der.SEQUENCE,
        integer(1),
        ALGORITHMS[scheme],
        issuer.subject,
        time(start),
        time(end) if end else b"",
        der.encode(der.SEQUENCE, entries) if entries else b"",
        der.encode(0xA0, der.encode(der.SEQUENCE, number)),
    )
    signature = sign(key or issuer.key, tbs, *scheme)
    return der.encode(der.SEQUENCE, tbs, ALGORITHMS[scheme], der.encode(der.BIT_STRING, b"\0", signature))
