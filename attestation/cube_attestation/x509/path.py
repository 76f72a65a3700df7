# SPDX-License-Identifier: Apache-2.0
"""From a certificate to a pinned key (RFC 5280, section 6, what device certificates need of it).

Anchors are SPKI digests that the caller gives; certificates only carry their bytes. Time is checked exactly at
every call; only signatures and parsed bytes, which no clock changes, are kept between calls.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from cube_attestation.errors import BadInput

from . import keys
from .certificate import (
    BASIC_CONSTRAINTS,
    CRL_POINTS,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    POLICIES,
    SUBJECT_ALT_NAME,
    Certificate,
    describe,
)
from .crl import Crl
from .der import dotted

MAX_DEPTH = 8
MAX_TRIES = 64
UNDERSTOOD = frozenset((BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE, SUBJECT_ALT_NAME, POLICIES))
KEY_CERT_SIGN, CRL_SIGN = 0x04, 0x02

# From "nearly a path" to "not even that"; the most telling one is reported.
PROBLEMS = ("revoked", "expired", "not_yet_valid", "constraints", "weak", "signature_invalid", "untrusted_root")
CRL_CODES = {
    "missing": "collateral.crl.missing",
    "expired": "collateral.expired",
    "not_yet_valid": "collateral.not_yet_valid",
    "too_old": "collateral.too_old",
    "signature_invalid": "collateral.crl.signature_invalid",
}


class Path(NamedTuple):
    """``certificates`` from leaf to anchor if ``problem`` (one of PROBLEMS) is empty; ``words`` explains it."""

    certificates: tuple[Certificate, ...]
    problem: str = ""
    words: str = ""

    @property
    def anchor(self) -> Certificate:
        return self.certificates[-1]


def find(
    leaf: Certificate,
    issuers: Sequence[Certificate],
    anchors: Collection[str],
    now: datetime,
    *,
    understood: frozenset[bytes] = UNDERSTOOD,
) -> Path:
    """A path from ``leaf`` over ``issuers`` to one whose SPKI digest is in ``anchors``, every one valid at ``now``.

    The leaf itself is no anchor. Several issuers may share a subject and have different keys: all are tried, within
    MAX_TRIES. ``understood`` are OID contents of extensions that may be critical. An anchor that names itself as
    issuer must have signed itself, so that its dates can be relied on. Raises BadInput for a clock without a zone.
    """
    if now.tzinfo is None:
        raise BadInput("the clock has no zone", where="now", todo="pass an aware datetime")
    failed: list[Path] = []
    tries = [MAX_TRIES]

    def walk(path: tuple[Certificate, ...]) -> Path | None:
        child = path[-1]
        problem = _own_problem(child, len(path) - 1, now, understood)
        if problem is not None:
            failed.append(Path(path, *problem))
            return None
        if len(path) > 1 and child.spki_digest in anchors:
            if child.subject == child.issuer and not signed(child, child):
                failed.append(Path(path, "signature_invalid", f"{child.name} does not hold its own signature"))
                return None
            return Path(path)
        named = [issuer for issuer in issuers if _may_issue(child, issuer) and issuer not in path]
        if not named or len(path) >= MAX_DEPTH:
            words = f"no accepted issuer for {child.name}: {describe(child.issuer)}"
            failed.append(Path(path, "untrusted_root", words))
            return None
        for issuer in named:
            tries[0] -= 1
            if tries[0] < 0:
                break
            if not signed(child, issuer):
                failed.append(Path(path, *_why_unsigned(child, issuer)))
                continue
            found = walk((*path, issuer))
            if found is not None:
                return found
        return None

    found = walk((leaf,))
    if found is not None:
        return found
    return min(failed, key=lambda path: PROBLEMS.index(path.problem))


def signed(child: Certificate, issuer: Certificate) -> bool:
    """Whether ``issuer``'s key made ``child``'s signature."""
    return keys.verify(issuer.spki, child.algorithm, child.tbs, child.signature)


def _why_unsigned(child: Certificate, issuer: Certificate) -> tuple[str, str]:
    try:
        keys.public_key(issuer.spki)
    except BadInput as error:
        return "weak", f"{issuer.name}: {error}"
    return "signature_invalid", f"{child.name} is not signed by {issuer.name}"


def _may_issue(child: Certificate, issuer: Certificate) -> bool:
    """Names chain, and the key identifiers do where both are there."""
    if issuer.subject != child.issuer:
        return False
    try:
        wanted, offered = _identifiers(child)[1], _identifiers(issuer)[0]
    except BadInput:
        return False
    return wanted is None or offered is None or wanted == offered


@lru_cache(maxsize=256)
def _powers(certificate: Certificate) -> tuple[bool, int | None, int | None]:
    """Whether it is a CA, its path length, its key usage; its key is one that is accepted. Raises BadInput."""
    keys.public_key(certificate.spki)
    return (*certificate.basic_constraints(), certificate.key_usage())


@lru_cache(maxsize=256)
def _identifiers(certificate: Certificate) -> tuple[bytes | None, bytes | None]:
    return certificate.key_identifiers()


def _own_problem(
    certificate: Certificate, depth: int, now: datetime, understood: frozenset[bytes]
) -> tuple[str, str] | None:
    """What is wrong with one certificate at ``depth`` above the leaf, whoever issued it."""
    if now < certificate.not_before:
        return "not_yet_valid", f"{certificate.name} is valid from {certificate.not_before:%Y-%m-%d %H:%M:%SZ}"
    if now > certificate.not_after:
        return "expired", f"{certificate.name} was valid until {certificate.not_after:%Y-%m-%d %H:%M:%SZ}"
    if certificate.algorithm not in keys.ALGORITHMS:
        return "weak", f"{certificate.name} is signed with an algorithm that is not accepted"
    for oid, extension in certificate.extensions.items():
        if extension.critical and oid not in understood:
            return "constraints", f"{certificate.name} has the unknown critical extension {dotted(oid)}"
    try:
        ca, length, usage = _powers(certificate)
    except BadInput as error:
        return "weak" if error.where == "SubjectPublicKeyInfo" else "constraints", f"{certificate.name}: {error}"
    if depth == 0:
        return None
    if not ca:
        return "constraints", f"{certificate.name} is not a CA"
    if length is not None and length < depth - 1:
        return "constraints", f"{certificate.name} may not issue at this depth"
    if usage is not None and not usage & KEY_CERT_SIGN:
        return "constraints", f"{certificate.name} may not sign certificates"
    return None


def _signed_list(crl: Crl, issuer: Certificate) -> bool:
    """Whether ``issuer`` may sign lists and signed this one."""
    usage = issuer.key_usage()
    if usage is not None and not usage & CRL_SIGN:
        return False
    return keys.verify(issuer.spki, crl.algorithm, crl.tbs, crl.signature)


class Revocation(NamedTuple):
    """What the lists say. ``revoked`` names a certificate or is empty; ``problems``: (key of CRL_CODES, words)."""

    revoked: str
    problems: tuple[tuple[str, str], ...]


def check_revocation(
    path: Sequence[Certificate],
    crls: Sequence[Crl],
    now: datetime,
    *,
    max_age: timedelta | None = None,
) -> Revocation:
    """Look up every certificate of ``path`` that names a CRL distribution point, the anchor excepted.

    The list must be by that certificate's issuer in the path and in force at ``now``; the oldest acceptable one is
    ``max_age`` old. A list that is not in force still revokes.
    """
    problems: list[tuple[str, str]] = []
    for child, issuer in pairwise(path):
        mine = [crl for crl in crls if crl.issuer == child.issuer]
        good = [crl for crl in mine if _signed_list(crl, issuer)]
        if any(child.serial in crl.revoked for crl in good):
            return Revocation(child.name, ())
        if CRL_POINTS not in child.extensions:
            continue
        if not good:
            what = "signature_invalid" if mine else "missing"
            words = "the list is not signed by" if mine else "there is no list by"
            problems.append((what, f"{words} {issuer.name}, which issued {child.name}"))
            continue
        newest = max(good, key=lambda crl: crl.this_update)
        if now < newest.this_update:
            problems.append(("not_yet_valid", f"the list of {issuer.name} is from {newest.this_update:%Y-%m-%d}"))
        elif now > newest.next_update:
            problems.append(("expired", f"the list of {issuer.name} was good until {newest.next_update:%Y-%m-%d}"))
        elif max_age is not None and now - newest.this_update > max_age:
            problems.append(("too_old", f"the list of {issuer.name} is from {newest.this_update:%Y-%m-%d}"))
    return Revocation("", tuple(problems))
