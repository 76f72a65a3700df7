# SPDX-License-Identifier: Apache-2.0
"""Intel's certificate chains and signatures, on the shared X.509 helpers.

Parsed certificates, lists and the answers to signature checks are kept by those helpers (keyed by all bytes that
went in, which no clock changes); dates are compared anew at every call. So a second check of the same chain is
cheap and never says anything that a fresh one would not.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from cube_attestation.x509 import certificate, crl, keys, path
from cube_attestation.x509.certificate import Certificate

_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")  # AlgorithmIdentifier


class Problem(NamedTuple):
    """Why something does not hold: the last part of a reason code, and a sentence."""

    why: str
    words: str


def verify(pem: bytes, anchors: Collection[str], now: datetime, *, where: str) -> tuple[Certificate, ...] | Problem:
    """Verify the chain in ``pem`` (leaf first) up to one of ``anchors`` at ``now``: the path, leaf to anchor.

    Every certificate given must be part of the path: the service never sends others. All keys are on P-256.
    Raises BadInput.
    """
    certificates = certificate.load(pem, where=where)
    found = path.find(certificates[0], certificates[1:], anchors, now)
    if found.problem:
        return Problem(found.problem if found.problem in _NAMED else "invalid", found.words)
    if len(found.certificates) != len(certificates):
        return Problem("invalid", f"the {where} holds certificates that are no part of the chain")
    if found.anchor.subject != found.anchor.issuer:
        # then it did not sign itself, and anyone could have written its dates
        return Problem(
            "invalid", f"{found.anchor.name} at the end of the {where} does not name itself as its issuer"
        )
    for one in found.certificates:
        if not keys.is_on(one.spki, "secp256r1") or one.algorithm != _ECDSA_SHA256:
            return Problem("invalid", f"{one.name} is not of ECDSA on P-256 with SHA-256")
    return found.certificates


# The other ways in which a path may not hold are one to a reader of codes; the sentence tells them apart
_NAMED = ("expired", "not_yet_valid", "untrusted_root")


def verify_crl(data: bytes, issuer: Certificate, *, where: str) -> crl.Crl | Problem:
    """Check that ``issuer`` signed this list; its times are the caller's to check. Raises BadInput."""
    found = crl.load(data, where=where)
    if found.issuer != issuer.subject:
        return Problem("wrong_issuer", f"the {where} is of {certificate.describe(found.issuer)}, not {issuer.name}")
    usage = issuer.key_usage()
    if usage is None or not usage & path.CRL_SIGN:
        return Problem("signature_invalid", f"{issuer.name} may not sign the {where}")
    if not keys.verify(issuer.spki, found.algorithm, found.tbs, found.signature):
        return Problem("signature_invalid", f"the {where} is not signed by {issuer.name}")
    return found


def signature_holds(spki: bytes, signature: bytes, content: bytes) -> bool:
    """ECDSA P-256 with SHA-256, ``signature`` as raw r‖s of 64 bytes, ``spki`` a DER SubjectPublicKeyInfo."""
    return keys.verify_raw(spki, "secp256r1", "sha256", content, signature)


def spki_of_point(point: bytes) -> bytes:
    """The SubjectPublicKeyInfo of x‖y (64 bytes) on P-256, whether or not that is a point of the curve."""
    return keys.ec_spki("secp256r1", b"\x04" + point)
