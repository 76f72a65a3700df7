# SPDX-License-Identifier: Apache-2.0
"""Intel's certificates and CRLs, verified once and remembered.

What is remembered is keyed by the digest of the bytes and by the anchors (or the certificate that signed). A chain
holds only while the clock lies between the latest notBefore and the earliest notAfter of its path: outside of it,
all is checked again. So a hit never says anything that a fresh check would not.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cube_attestation import dsse, x509chain
from cube_attestation.errors import BadInput

T = TypeVar("T")


class Cache(Generic[T]):
    """A bounded memory of verified things, the oldest forgotten first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        return self._entries.get(key)

    def put(self, key: Hashable, value: T) -> None:
        self._entries[key] = value
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()


@dataclass(frozen=True)
class Path:
    """A chain that holds: leaf first, anchor last, the leaf's key and its SPKI digest."""

    certificates: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePublicKey
    spki: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True)
class Crl:
    """A CRL whose signature holds."""

    crl: x509.CertificateRevocationList
    issued: datetime
    next_update: datetime


@dataclass(frozen=True)
class Problem:
    """Why something does not hold: the last part of a reason code, and a sentence."""

    why: str
    words: str


_PATHS: Cache[Path] = Cache(256)
_CRLS: Cache[Crl] = Cache(64)


def clear() -> None:
    """Forget everything (for measurements and tests)."""
    _PATHS.clear()
    _CRLS.clear()


def load(pem: bytes, *, where: str) -> tuple[x509.Certificate, ...]:
    """A PEM chain as Intel writes it: maybe a NUL at its end. Raises BadInput."""
    return x509chain.load_pem_chain(pem.rstrip(b"\0"), where=where)


def verify(pem: bytes, anchors: Collection[str], now: datetime, *, where: str) -> Path | Problem:
    """Verify the chain in ``pem`` (signer first) up to one of ``anchors`` at ``now``. Raises BadInput.

    Every certificate given must be part of the path: the service never sends others.
    """
    memory = (hashlib.sha256(pem).digest(), tuple(sorted(anchors)))
    known = _PATHS.get(memory)
    if known is not None and known.not_before <= now <= known.not_after:
        return known
    certificates = load(pem, where=where)
    if not certificates:
        return Problem("missing", f"the {where} has no certificates")
    chain = x509chain.verify_chain(certificates[0], certificates[1:], anchors, now)
    if chain.problem:
        return Problem(_WHY[chain.problem], chain.words)
    if len(chain.path) != len(certificates):
        return Problem("invalid", f"the {where} holds certificates that are no part of the chain")
    key = chain.path[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return Problem("invalid", f"{x509chain.name(chain.path[0])} has no key on P-256")
    path = Path(
        chain.path,
        key,
        dsse.spki_digest(key),
        max(c.not_valid_before_utc for c in chain.path),
        min(c.not_valid_after_utc for c in chain.path),
    )
    _PATHS.put(memory, path)
    return path


_WHY = {
    "expired": "expired",
    "not_yet_valid": "not_yet_valid",
    "constraints": "invalid",
    "weak": "invalid",
    "signature": "invalid",
    "untrusted_root": "untrusted_root",
}


def verify_crl(der: bytes, issuer: x509.Certificate, *, where: str) -> Crl | Problem:
    """Check that ``issuer`` signed this CRL; its times are the caller's to check. Raises BadInput."""
    memory = (hashlib.sha256(der).digest(), issuer.fingerprint(hashes.SHA256()))
    known = _CRLS.get(memory)
    if known is not None:
        return known
    try:
        crl = x509.load_der_x509_crl(der)
        issued, next_update = crl.last_update_utc, crl.next_update_utc
        critical = [extension.oid.dotted_string for extension in crl.extensions if extension.critical]
        algorithm = crl.signature_hash_algorithm
        name = crl.issuer
    except Exception as error:  # the library raises many kinds for malformed CRLs
        raise BadInput(f"not a CRL: {str(error)[:100]}", where=where) from error
    if name != issuer.subject:
        return Problem("wrong_issuer", f"the {where} is of {name.rfc4514_string()}, not {x509chain.name(issuer)}")
    if critical or next_update is None:
        what = f"the critical extension {critical[0]}" if critical else "no nextUpdate"
        return Problem("invalid", f"the {where} has {what}")
    if not isinstance(algorithm, hashes.SHA256 | hashes.SHA384):
        return Problem("invalid", f"the {where} is not signed over SHA-256")
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is None or not usage.crl_sign:
        return Problem("invalid", f"{x509chain.name(issuer)} may not sign CRLs")
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not crl.is_signature_valid(key):
        return Problem("signature_invalid", f"the {where} is not signed by {x509chain.name(issuer)}")
    found = Crl(crl, issued, next_update)
    _CRLS.put(memory, found)
    return found


def signature_holds(key: ec.EllipticCurvePublicKey, signature: bytes, content: bytes) -> bool:
    """ECDSA P-256 with SHA-256, ``signature`` as raw r‖s of 64 bytes."""
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    try:
        key.verify(encode_dss_signature(r, s), content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def public_key(point: bytes) -> ec.EllipticCurvePublicKey | None:
    """The P-256 key x‖y (64 bytes), or None when it is no point on the curve."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    except ValueError:
        return None
