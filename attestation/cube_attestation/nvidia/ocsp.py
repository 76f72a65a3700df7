# SPDX-License-Identifier: Apache-2.0
"""Stored OCSP responses (RFC 6960): is a certificate revoked, as far as responses at hand say?

A response is signed by the certificate's issuer or by a responder that this very issuer certified for the purpose.
Age is measured against the caller's clock only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import NamedTuple

from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.verdict import Reason
from cube_attestation.x509 import certificate as x509
from cube_attestation.x509 import der, keys, path

from . import chains

MAX_BYTES = 32 << 10
MAX_RESPONSES = 64
MAX_RESPONDERS = 8
OCSP_SIGNING = "1.3.6.1.5.5.7.3.9"
OCSP_CODES = {
    "signature_invalid": "nvidia.ocsp.signature_invalid",
    "untrusted_responder": "nvidia.ocsp.untrusted_responder",
}
HOLD = "certificateHold"
_WHAT = "OCSP response"
_ENUMERATED = 0x0A
_BASIC, _NONCE = der.oid("1.3.6.1.5.5.7.48.1.1"), der.oid("1.3.6.1.5.5.7.48.1.2")
_RESPONSE_STATUS = {
    b"\1": "malformed_request", b"\2": "internal_error", b"\3": "try_later", b"\5": "sig_required",
    b"\6": "unauthorized",
}  # fmt: skip
_REASONS = {
    b"\0": "unspecified", b"\1": "keyCompromise", b"\2": "cACompromise", b"\3": "affiliationChanged",
    b"\4": "superseded", b"\5": "cessationOfOperation", b"\6": HOLD, b"\x08": "removeFromCRL",
    b"\x09": "privilegeWithdrawn", b"\x0a": "aACompromise",
}  # fmt: skip
_HASHES = {
    der.encode(der.SEQUENCE, der.encode(der.OID, der.oid(dotted)), null): name
    for name, dotted in (("sha1", "1.3.14.3.2.26"), *keys.SHA2.items())
    for null in (b"", der.encode(der.NULL))
}  # how a CertID names its hash, with or without parameters
SKEW = timedelta(seconds=60)  # how far in the future a thisUpdate may lie


class Status(NamedTuple):
    """What one response says of one certificate. ``status``: good, revoked or unknown."""

    status: str
    this_update: datetime
    next_update: datetime | None
    revoked_at: datetime | None
    reason: str


class Authentic(NamedTuple):
    """What one authentic response says, while its responder's certificate is valid."""

    status: Status
    not_before: datetime
    not_after: datetime


_kept: chains.Verified[Authentic] = chains.Verified()


class Response(NamedTuple):
    """A successful response about one certificate (RFC 6960, 4.2.1). ``algorithm`` and names are whole elements."""

    serial: int
    hash_algorithm: str
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    status: Status
    responder_name: bytes | None
    responder_key_hash: bytes | None
    extensions: Mapping[bytes, x509.Extension]
    single_extensions: Mapping[bytes, x509.Extension]
    tbs: bytes
    algorithm: bytes
    signature: bytes
    certificates: tuple[bytes, ...]

    def nonce(self) -> bytes | None:
        """The request's nonce (RFC 8954), if the response carries one. Raises BadInput."""
        found = self.extensions.get(_NONCE)
        return None if found is None else _alone(found.value, der.OCTET_STRING)


def load(data: bytes, *, where: str = "OCSP response") -> Response:
    """A successful response about exactly one certificate, as NVIDIA's responder gives them. Raises BadInput."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=where)
    try:
        return _read(data)
    except BadInput as error:
        raise BadInput(error.what, where=where, todo=error.todo) from error


@lru_cache(maxsize=MAX_RESPONSES)
def _read(data: bytes) -> Response:
    outer = der.Cursor(data, _WHAT)
    whole = outer.inner()
    outer.done()
    code = whole.take(_ENUMERATED)
    if code != b"\0":
        name = _RESPONSE_STATUS.get(code, "another status")
        raise BadInput(f"the responder answered {name}", where=_WHAT, todo="fetch it again")
    explicit = whole.inner(0xA0)
    whole.done()
    typed = explicit.inner()
    explicit.done()
    if typed.oid() != _BASIC:
        raise BadInput("not a basic response", where=_WHAT)
    basic = der.Cursor(typed.take(der.OCTET_STRING), _WHAT)
    typed.done()
    parts = basic.inner()
    basic.done()
    tbs, algorithm, signature = parts.whole(der.SEQUENCE), parts.whole(der.SEQUENCE), parts.bits()
    certificates = _certificates(parts.inner(0xA0)) if parts.more() else ()
    parts.done()
    return _response(tbs, algorithm, signature, certificates)


def _response(tbs: bytes, algorithm: bytes, signature: bytes, certificates: tuple[bytes, ...]) -> Response:
    """ResponseData, with what signs it."""
    body = der.Cursor(tbs, _WHAT).inner()
    if body.peek() == 0xA0 and body.take(0xA0) != b"\x02\x01\0":
        raise BadInput("not of version 1", where=_WHAT)
    named = body.peek() == 0xA1
    responder = body.inner(0xA1 if named else 0xA2)
    name = responder.whole(der.SEQUENCE) if named else None
    key_hash = None if named else responder.take(der.OCTET_STRING)
    responder.done()
    _generalized(body)  # producedAt
    answers = body.inner()
    single = answers.inner() if answers.more() else None
    if single is None or answers.more():
        raise BadInput("not about one certificate", where=_WHAT)
    extensions = x509.read_extensions(body.inner(0xA1), _WHAT) if body.more() else {}
    body.done()
    asked = single.inner()
    hash_algorithm = _HASHES.get(asked.whole(der.SEQUENCE))
    if hash_algorithm is None:
        raise BadInput("names its issuer with an unknown hash", where=_WHAT)
    name_hash, issuer_key_hash = asked.take(der.OCTET_STRING), asked.take(der.OCTET_STRING)
    serial = asked.integer()
    asked.done()
    status = _status(single)
    single_extensions = x509.read_extensions(single.inner(0xA1), _WHAT) if single.more() else {}
    single.done()
    return Response(
        serial, hash_algorithm, name_hash, issuer_key_hash, status, name, key_hash, extensions, single_extensions,
        tbs, algorithm, signature, certificates,
    )  # fmt: skip


def _status(single: der.Cursor) -> Status:
    """CertStatus, thisUpdate and nextUpdate."""
    tag, revoked_at, reason = single.peek(), None, ""
    if tag == 0xA1:
        revoked = single.inner(tag)
        revoked_at = _generalized(revoked)
        if revoked.more():
            explicit = revoked.inner(0xA0)
            code = explicit.take(_ENUMERATED)
            explicit.done()
            if code not in _REASONS:
                raise BadInput("an unknown reason of revocation", where=_WHAT)
            reason = _REASONS[code]
        revoked.done()
    elif tag not in (0x80, 0x82) or single.take(tag):
        raise BadInput("a malformed status", where=_WHAT)
    this_update, next_update = _generalized(single), None
    if single.peek() == 0xA0:
        explicit = single.inner(0xA0)
        next_update = _generalized(explicit)
        explicit.done()
    return Status(
        {0x80: "good", 0xA1: "revoked", 0x82: "unknown"}[tag], this_update, next_update, revoked_at, reason
    )


def _generalized(cursor: der.Cursor) -> datetime:
    if cursor.peek() != der.GENERALIZED_TIME:
        raise BadInput("a malformed time", where=_WHAT)
    return cursor.time()


def _certificates(explicit: der.Cursor) -> tuple[bytes, ...]:
    inner = explicit.inner()
    explicit.done()
    found: list[bytes] = []
    while inner.more():
        if len(found) >= MAX_RESPONDERS:
            raise BadInput(f"more than {MAX_RESPONDERS} certificates", where=_WHAT)
        found.append(inner.whole(der.SEQUENCE))
    return tuple(found)


def _alone(data: bytes, tag: int) -> bytes:
    cursor = der.Cursor(data, _WHAT)
    content = cursor.take(tag)
    cursor.done()
    return content


def index(responses: Sequence[bytes]) -> Mapping[int, tuple[bytes, ...]]:
    """Responses by the serial number that they are about. Raises BadInput for what is no response."""
    if len(responses) > MAX_RESPONSES:
        raise BadInput(f"more than {MAX_RESPONSES} responses", where="OCSP")
    found: dict[int, tuple[bytes, ...]] = {}
    for data in responses:
        serial = load(data).serial
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
        asked = load(data)
        if (asked.issuer_name_hash, asked.issuer_key_hash) != known.hashes.get(asked.hash_algorithm):
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


class _Issuer(NamedTuple):
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
    response = load(data)
    signer = _responder(response, issuer, now)
    if response.algorithm not in keys.ALGORITHMS:
        raise NotAuthentic("the OCSP response is not signed with SHA-2", why="signature_invalid")
    if not any(keys.is_on(signer.spki, curve) for curve in keys.CURVES):
        raise NotAuthentic("the OCSP responder has no elliptic-curve key", why="untrusted_responder")
    if not keys.verify(signer.spki, response.algorithm, response.tbs, response.signature):
        raise NotAuthentic(f"the OCSP response is not signed by {signer.name}", why="signature_invalid")
    for oid, extension in (*response.extensions.items(), *response.single_extensions.items()):
        if extension.critical:  # none that we would know changes what a status means
            words = f"the OCSP response has the critical extension {der.dotted(oid)}"
            raise NotAuthentic(words, why="signature_invalid")
    return Authentic(response.status, signer.not_before, signer.not_after)


def _responder(response: Response, issuer: x509.Certificate, now: datetime) -> x509.Certificate:
    """The issuer itself, or a certificate in the response that it issued for OCSP signing and that is valid."""
    if _names(response, issuer):
        return issuer
    for embedded in response.certificates:
        try:
            candidate = x509.parse(embedded)
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


def _names(response: Response, certificate: x509.Certificate) -> bool:
    """Whether the response's responder id is this certificate, by name or by key (RFC 6960: always SHA-1)."""
    if response.responder_name is not None:
        return response.responder_name == certificate.subject
    bits = hashlib.sha1(_key_bits(certificate), usedforsecurity=False).digest()
    return response.responder_key_hash == bits
