# SPDX-License-Identifier: Apache-2.0
"""Stored OCSP responses (RFC 6960): is a certificate revoked, as far as responses at hand say?

A response is signed by the certificate's issuer or by a responder that this very issuer certified for the purpose.
Age is measured against the caller's clock only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.verdict import Reason
from cube_attestation.x509 import certificate as x509
from cube_attestation.x509 import der, keys, path

from . import chains

if TYPE_CHECKING:
    from cryptography.x509 import ocsp

MAX_BYTES = 32 << 10
MAX_RESPONSES = 64
MAX_RESPONDERS = 8
OCSP_SIGNING = "1.3.6.1.5.5.7.3.9"
OCSP_CODES = {
    "signature_invalid": "nvidia.ocsp.signature_invalid",
    "untrusted_responder": "nvidia.ocsp.untrusted_responder",
}
HOLD = "certificateHold"
SKEW = timedelta(seconds=60)  # how far in the future a thisUpdate may lie


@dataclass(frozen=True)
class Status:
    """What one response says of one certificate. ``status``: good, revoked or unknown."""

    status: str
    this_update: datetime
    next_update: datetime | None
    revoked_at: datetime | None
    reason: str


@dataclass(frozen=True)
class Authentic:
    """What one authentic response says, while its responder's certificate is valid."""

    status: Status
    not_before: datetime
    not_after: datetime


_kept: chains.Verified[Authentic] = chains.Verified()


def load(data: bytes, *, where: str = "OCSP response") -> ocsp.OCSPResponse:
    """A successful response about exactly one certificate, as NVIDIA's responder gives them. Raises BadInput."""
    from cryptography.x509 import ocsp

    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=where)
    try:
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            name = response.response_status.name.lower()
            raise BadInput(f"the responder answered {name}", where=where, todo="fetch it again")
        _ = (list(response.extensions), response.certificates, response.signature_hash_algorithm)
        count = sum(1 for _ in response.responses)
        if count != 1:
            raise BadInput(f"about {count} certificates instead of one", where=where)
        _ = (list(response.single_extensions), response.hash_algorithm, response.certificate_status)
        _ = (response.this_update_utc, response.next_update_utc, response.revocation_time_utc)
    except BadInput:
        raise
    except Exception as error:  # the library raises many kinds for malformed responses
        raise BadInput(f"not an OCSP response: {str(error)[:100]}", where=where) from error
    return response


def index(responses: Sequence[bytes]) -> Mapping[int, tuple[bytes, ...]]:
    """Responses by the serial number that they are about. Raises BadInput for what is no response."""
    if len(responses) > MAX_RESPONSES:
        raise BadInput(f"more than {MAX_RESPONSES} responses", where="OCSP")
    found: dict[int, tuple[bytes, ...]] = {}
    for data in responses:
        serial = _asked(data).serial
        found[serial] = (*found.get(serial, ()), data)
    return found


def check(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    responses: Mapping[int, tuple[bytes, ...]],
    now: datetime,
    max_age: timedelta,
) -> list[Reason]:
    """Why ``certificate`` can't be relied on at ``now``; empty: an authentic, fresh response says good.

    Codes: ``collateral.ocsp.missing`` (nothing about it), ``collateral.expired``, ``collateral.not_yet_valid``,
    ``nvidia.ocsp.signature_invalid``, ``nvidia.ocsp.untrusted_responder``, ``nvidia.ocsp.revoked``,
    ``nvidia.ocsp.unknown``. A revocation counts even if it is old or a newer response says good; only a hold is
    lifted by a newer one.
    """
    known = _issuer(issuer)
    found: list[Status] = []
    broken: list[Reason] = []
    for data in responses.get(certificate.serial, ()):
        asked = _asked(data)
        if (asked.name_hash, asked.key_hash) != known.hashes.get(asked.algorithm):
            continue
        try:
            kept = _kept.get(data, known.anchors, now, partial(_verify, data, issuer, now))
            found.append(kept.status)
        except NotAuthentic as error:
            broken.append(Reason(OCSP_CODES[error.why], f"{certificate.name}: {error.what}"))
    if found:
        return _problem(found, certificate, now, max_age)
    if broken:
        return broken
    return [Reason("collateral.ocsp.missing", f"no OCSP response about {certificate.name}")]


def _problem(found: list[Status], certificate: x509.Certificate, now: datetime, max_age: timedelta) -> list[Reason]:
    """What authentic responses say against a certificate at ``now``."""
    newest = max(found, key=lambda status: status.this_update)
    end = newest.this_update + max_age
    if newest.next_update is not None:
        end = min(end, newest.next_update)
    revoked = [status for status in found if status.status == "revoked"]
    if not revoked and newest.status == "good" and newest.this_update - SKEW <= now <= end:
        return []
    who = certificate.name
    for status in revoked:
        if status is newest or status.reason != HOLD:
            when = f"{status.revoked_at:%Y-%m-%d}" if status.revoked_at else "an unknown date"
            words = f"{who} was revoked on {when} ({status.reason or 'no reason given'})"
            return [Reason("nvidia.ocsp.revoked", words)]
    if newest.status != "good":
        return [Reason("nvidia.ocsp.unknown", f"the responder does not know {who}")]
    if newest.this_update > now + SKEW:
        words = f"the OCSP response about {who} is of {newest.this_update:%Y-%m-%dT%H:%M:%SZ}, after the clock"
        return [Reason("collateral.not_yet_valid", words)]
    if now > end:
        words = f"the OCSP response about {who} was good until {end:%Y-%m-%dT%H:%M:%SZ}"
        return [Reason("collateral.expired", words)]
    return []


@dataclass(frozen=True)
class _Asked:
    """The CertID of a response."""

    serial: int
    algorithm: str
    name_hash: bytes
    key_hash: bytes


@lru_cache(maxsize=chains.MAX_CACHED)
def _asked(data: bytes) -> _Asked:
    response = load(data)
    return _Asked(
        response.serial_number,
        response.hash_algorithm.name,
        response.issuer_name_hash,
        response.issuer_key_hash,
    )


@dataclass(frozen=True)
class _Issuer:
    """How CertIDs name an issuer: hash algorithm → name hash and key hash."""

    anchors: frozenset[str]
    hashes: Mapping[str, tuple[bytes, bytes]]


@lru_cache(maxsize=chains.MAX_CACHED)
def _issuer(issuer: x509.Certificate) -> _Issuer:
    name, key = issuer.subject, _key_bits(issuer)
    return _Issuer(
        frozenset({issuer.spki_digest}),
        {
            algorithm: (hashlib.new(algorithm, name).digest(), hashlib.new(algorithm, key).digest())
            for algorithm in ("sha1", "sha256", "sha384", "sha512")
        },
    )


def _verify(data: bytes, issuer: x509.Certificate, now: datetime) -> Authentic:
    """Check who signed, then take the status."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    response = load(data)
    signer = _responder(response, issuer, now)
    hashed = response.signature_hash_algorithm
    if hashed is None or hashed.name not in ("sha256", "sha384", "sha512"):
        raise NotAuthentic("the OCSP response is not signed with SHA-2", why="signature_invalid")
    key = keys.public_key(signer.spki)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise NotAuthentic("the OCSP responder has no elliptic-curve key", why="untrusted_responder")
    try:
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(hashed))
    except InvalidSignature as error:
        words = f"the OCSP response is not signed by {signer.name}"
        raise NotAuthentic(words, why="signature_invalid") from error
    for extension in (*response.extensions, *response.single_extensions):
        if extension.critical:  # none that we would know changes what a status means
            words = f"the OCSP response has the critical extension {extension.oid.dotted_string}"
            raise NotAuthentic(words, why="signature_invalid")
    reason = response.revocation_reason
    status = Status(
        response.certificate_status.name.lower(),
        response.this_update_utc,
        response.next_update_utc,
        response.revocation_time_utc,
        reason.value if reason else "",
    )
    return Authentic(status, signer.not_before, signer.not_after)


def _responder(response: ocsp.OCSPResponse, issuer: x509.Certificate, now: datetime) -> x509.Certificate:
    """The issuer itself, or a certificate in the response that it issued for OCSP signing and that is valid."""
    from cryptography.hazmat.primitives.serialization import Encoding

    if _names(response, issuer):
        return issuer
    for embedded in response.certificates[:MAX_RESPONDERS]:
        try:
            candidate = x509.parse(embedded.public_bytes(Encoding.DER))
            named = _names(response, candidate) and OCSP_SIGNING in (candidate.extended_key_usage() or ())
            keys.public_key(candidate.spki)
        except BadInput:
            continue
        critical = {oid for oid, extension in candidate.extensions.items() if extension.critical}
        valid = candidate.not_before <= now <= candidate.not_after
        if named and valid and critical <= path.UNDERSTOOD and path.signed(candidate, issuer):
            return candidate
    words = f"no OCSP responder that {issuer.name} certified and that is valid now"
    raise NotAuthentic(words, why="untrusted_responder")


def _key_bits(certificate: x509.Certificate) -> bytes:
    """The subjectPublicKey bits, of which key hashes are made."""
    spki = der.Cursor(certificate.spki, "SubjectPublicKeyInfo").inner()
    spki.whole(der.SEQUENCE)
    return spki.bits()


def _names(response: ocsp.OCSPResponse, certificate: x509.Certificate) -> bool:
    """Whether the response's responder id is this certificate, by name or by key (RFC 6960: always SHA-1)."""
    if response.responder_name is not None:
        return response.responder_name.public_bytes() == certificate.subject
    bits = hashlib.sha1(_key_bits(certificate), usedforsecurity=False).digest()
    return response.responder_key_hash == bits
