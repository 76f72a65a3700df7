# SPDX-License-Identifier: Apache-2.0
"""Certificate chains up to a key that the caller pins (RFC 5280, section 6, what device chains need of it).

The anchor is always named by SPKI digest and comes from the caller; certificates only carry its bytes. The generic
verifier of the cryptography package refuses device chains (critical TCG names, RSA-PSS), hence this one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from . import dsse
from .errors import BadInput

if TYPE_CHECKING:
    from cryptography import x509

MAX_DEPTH = 8
MAX_CERTIFICATES = 24
MAX_BYTES = 64 << 10

# What can be wrong, from "nearly a chain" to "not even that"; the most telling one is reported.
PROBLEMS = ("expired", "not_yet_valid", "constraints", "weak", "signature", "untrusted_root")


@dataclass(frozen=True)
class Chain:
    """The outcome: ``path`` from leaf to anchor when ``problem`` is empty; ``words`` says what is wrong."""

    path: tuple[x509.Certificate, ...]
    problem: str = ""
    words: str = ""


def load_der(data: bytes, *, where: str) -> x509.Certificate:
    """One DER certificate and nothing after it. Raises BadInput."""
    from cryptography import x509

    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=where)
    try:
        certificate = x509.load_der_x509_certificate(data)
        certificate.public_key()
        _ = list(certificate.extensions)  # malformed parts show only when they are read, so read all of them here
        _ = (certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string())
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        _ = (certificate.signature_hash_algorithm, certificate.serial_number)
    except Exception as error:  # the library raises many kinds for malformed certificates
        raise BadInput(f"not a certificate: {str(error)[:100]}", where=where) from error
    return certificate


def load_pem_chain(data: bytes, *, where: str) -> tuple[x509.Certificate, ...]:
    """PEM certificates one after the other; an empty file is an empty chain. Raises BadInput."""
    from .fields import decode_base64

    if len(data) > MAX_CERTIFICATES * MAX_BYTES:
        raise BadInput("too large for a chain", where=where)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise BadInput("not PEM", where=where) from error
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    at = len(text) - len(text.lstrip())
    found: list[x509.Certificate] = []
    while at < len(text):
        stop = text.find(end, at)
        if stop < 0 or not text.startswith(begin, at) or len(found) >= MAX_CERTIFICATES:
            raise BadInput(f"not PEM certificates (at most {MAX_CERTIFICATES})", where=where)
        der = decode_base64("".join(text[at + len(begin) : stop].split()), where=where)
        found.append(load_der(der, where=f"{where}[{len(found)}]"))
        at = stop + len(end)
        while at < len(text) and text[at].isspace():
            at += 1
    return tuple(found)


def verify_chain(
    leaf: x509.Certificate,
    issuers: Sequence[x509.Certificate],
    anchors: Collection[str],
    now: datetime,
) -> Chain:
    """Find a path from ``leaf`` over ``issuers`` to one whose SPKI digest is in ``anchors``, all valid at ``now``.

    The leaf itself is no anchor. Several issuers may share a subject with different keys: all are tried.
    """
    best: list[Chain] = []
    budget = [200]  # tries; a crafted set of look-alikes must not explode

    def walk(path: tuple[x509.Certificate, ...]) -> Chain | None:
        child = path[-1]
        problem = _own_problem(child, len(path) - 1, now)
        if problem:
            best.append(Chain(path, *problem))
            return None
        if len(path) > 1 and dsse.spki_digest(child.public_key()) in anchors:
            return Chain(path)
        named = [c for c in issuers if c.subject == child.issuer and c not in path]
        if not named or len(path) >= MAX_DEPTH:
            words = f"{name(child)} is not accepted, and its issuer is not in the chain"
            if child.subject == child.issuer:
                words = f"the root {name(child)} is none of the accepted ones"
            best.append(Chain(path, "untrusted_root", words))
            return None
        for issuer in named:
            budget[0] -= 1
            if budget[0] < 0:
                return None
            if not _issued(child, issuer):
                best.append(Chain(path, "signature", f"{name(child)} is not signed by {name(issuer)}"))
                continue
            found = walk((*path, issuer))
            if found is not None:
                return found
        return None

    found = walk((leaf,))
    if found is not None:
        return found
    return min(best, key=lambda chain: PROBLEMS.index(chain.problem))


def name(certificate: x509.Certificate) -> str:
    """A certificate's subject for people, or its serial number when the subject is empty."""
    text = certificate.subject.rfc4514_string() or f"serial {certificate.serial_number:x}"
    return "".join(c if c.isprintable() else "?" for c in text)[:120]


def _issued(child: x509.Certificate, issuer: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        child.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _own_problem(certificate: x509.Certificate, depth: int, now: datetime) -> tuple[str, str] | None:
    """What is wrong with one certificate at ``depth`` above the leaf, whoever issued it."""
    from cryptography import x509

    if now < certificate.not_valid_before_utc:
        return "not_yet_valid", f"{name(certificate)} is valid from {certificate.not_valid_before_utc:%Y-%m-%d}"
    if now > certificate.not_valid_after_utc:
        return "expired", f"{name(certificate)} was valid until {certificate.not_valid_after_utc:%Y-%m-%d}"
    hashed = certificate.signature_hash_algorithm
    if hashed is None or hashed.name not in ("sha256", "sha384", "sha512"):
        return "weak", f"{name(certificate)} is signed over {hashed.name if hashed else 'no digest'}"
    if (weak := _weak_key(certificate)) is not None:
        return "weak", f"{name(certificate)} has {weak}"
    known = (
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.SubjectAlternativeName,
        x509.CertificatePolicies,
    )
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, known):
            return (
                "constraints",
                f"{name(certificate)} has the unknown critical extension {extension.oid.dotted_string}",
            )
    if depth == 0:
        return None
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return "constraints", f"{name(certificate)} is no CA (no basic constraints)"
    if not basic.ca or (basic.path_length is not None and basic.path_length < depth - 1):
        return "constraints", f"{name(certificate)} may not issue at this depth"
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
    if not usage.key_cert_sign:
        return "constraints", f"{name(certificate)} may not sign certificates"
    return None


def _weak_key(certificate: x509.Certificate) -> str | None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return None if key.key_size >= 2048 else f"an RSA key of {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if key.curve.name in ("secp256r1", "secp384r1", "secp521r1") else f"a key on {key.curve.name}"
    return f"a key of type {type(key).__name__}"
