# SPDX-License-Identifier: Apache-2.0
"""Signed documents: DSSE envelopes with ECDSA P-256 and SHA-256 (formats §0).

The signature entry carries the signer's public key (``key``, base64 DER SubjectPublicKeyInfo), so that a verifier
who knows only key digests can check it years later. The key is used only if its digest is among the allowed ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from . import jcs
from .errors import BadInput, NotAuthentic
from .fields import DIGEST, Fields, decode_base64, encode_base64
from .x509.keys import public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

IMAGE_MANIFEST = "application/vnd.cube.image-manifest+json"
LAUNCH = "application/vnd.cube.launch+json"
CONTROL = "application/vnd.cube.control+json"
RECEIPT = "application/vnd.cube.receipt+json"
AUDIT_HEAD = "application/vnd.cube.audit-head+json"

_BEGIN, _END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
_MAX_PAYLOAD = 16 << 20


@runtime_checkable
class Signer(Protocol):
    """A P-256 key wherever it lives (file, PKCS#11, cloud KMS)."""

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo of the public half."""

    def sign(self, data: bytes) -> bytes:
        """DER ECDSA signature with SHA-256 over ``data``."""


@dataclass(frozen=True)
class LocalSigner:
    """A Signer around a private key in memory."""

    key: ec.EllipticCurvePrivateKey

    @property
    def spki(self) -> bytes:
        return spki(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


class Verified(NamedTuple):
    """What a good envelope says: the parsed payload, its exact bytes and who signed."""

    payload: jcs.Json
    raw: bytes
    keyid: str

    @property
    def digest(self) -> str:
        return digest(self.raw)


def digest(data: bytes) -> str:
    """``sha256:<hex>`` of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def spki(key: PublicKeyTypes) -> bytes:
    """DER SubjectPublicKeyInfo of a public key."""
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def spki_from_pem(pem: str, *, where: str = "public key") -> bytes:
    """DER of one PEM ``PUBLIC KEY`` block (not parsed further). Raises BadInput."""
    text = pem.strip()
    body = text[len(_BEGIN) : -len(_END)]
    if not text.startswith(_BEGIN) or not text.endswith(_END) or not body[:1].isspace() or "-" in body:
        raise BadInput("not one PEM block of type PUBLIC KEY", where=where)
    return decode_base64("".join(body.split()), where=where)


def spki_digest(key: PublicKeyTypes | bytes) -> str:
    """A key's identity: ``sha256:<hex>`` over its DER SubjectPublicKeyInfo (given as such or as a key object)."""
    return digest(key if isinstance(key, bytes) else spki(key))


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: exactly the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: object, key: Signer | ec.EllipticCurvePrivateKey) -> dict[str, jcs.Json]:
    """The envelope of ``payload`` (written as canonical JSON) signed by ``key``."""
    signer = key if isinstance(key, Signer) else LocalSigner(key)
    raw = jcs.dumps(payload)
    public = signer.spki
    signature: dict[str, jcs.Json] = {
        "keyid": digest(public),
        "key": encode_base64(public),
        "sig": encode_base64(signer.sign(pae(payload_type, raw))),
    }
    return {"payloadType": payload_type, "payload": encode_base64(raw), "signatures": [signature]}


def peek(envelope: object, payload_type: str, *, where: str = "envelope") -> Verified:
    """The payload without any check of who signed it (``keyid`` is empty). For reading, never for trusting."""
    raw, _ = _open(envelope, payload_type, where)
    return Verified(jcs.loads(raw, canonical=True, where=where), raw, "")


def verify(
    envelope: object,
    payload_type: str,
    keys: Iterable[bytes | str | ec.EllipticCurvePublicKey],
    *,
    where: str = "envelope",
) -> Verified:
    """Check that one of ``keys`` signed ``envelope`` and return its payload. Parameters and errors: ``signer``."""
    keyid = signer(envelope, payload_type, keys, where=where)
    return peek(envelope, payload_type, where=where)._replace(keyid=keyid)


def signer(
    envelope: object,
    payload_type: str,
    keys: Iterable[bytes | str | ec.EllipticCurvePublicKey],
    *,
    where: str = "envelope",
) -> str:
    """The key id of the one of ``keys`` that signed ``envelope``; its payload is not looked into.

    ``keys``: public key objects, their DER SubjectPublicKeyInfo, or only their digests (``sha256:…``).
    Raises BadInput for a malformed envelope, NotAuthentic (``why``: ``invalid`` or ``untrusted_key``) otherwise.
    """
    allowed: dict[str, bytes | None] = {}
    for key in keys:
        if isinstance(key, str):
            if not DIGEST.fullmatch(key):
                raise BadInput(f"{key[:80]!r} is no key digest", where=where)
            allowed.setdefault(key, None)
        else:
            der = key if isinstance(key, bytes) else spki(key)
            allowed[digest(der)] = der
    raw, signatures = _open(envelope, payload_type, where)
    known = False
    for keyid, sig, carried in signatures:
        if keyid not in allowed:
            continue
        der_or_none = allowed[keyid] or carried
        if der_or_none is None or digest(der_or_none) != keyid:
            continue
        known = True
        if _holds(der_or_none, sig, pae(payload_type, raw), where):
            return keyid
    if known:
        raise NotAuthentic("the signature does not hold", why="invalid", where=where)
    signers = ", ".join(keyid for keyid, _, _ in signatures) or "nobody"
    raise NotAuthentic(f"signed by {signers}, none of the accepted keys", why="untrusted_key", where=where)


def _open(envelope: object, payload_type: str, where: str) -> tuple[bytes, list[tuple[str, bytes, bytes | None]]]:
    fields = Fields(envelope, where)
    kind = fields.text("payloadType", limit=200)
    if kind != payload_type:
        raise BadInput(f"payload type {kind!r}, expected {payload_type!r}", where=fields.path("payloadType"))
    raw = fields.base64("payload", _MAX_PAYLOAD)
    signatures: list[tuple[str, bytes, bytes | None]] = []
    for i, entry in enumerate(fields.array("signatures", 8)):
        part = Fields(entry, f"{where}.signatures[{i}]")
        carried = part.base64("key", 1024) if part.has("key") else None
        signatures.append((part.digest("keyid"), part.base64("sig", 1024), carried))
        part.done()
    fields.done()
    return raw, signatures


def _holds(der: bytes, signature: bytes, data: bytes, where: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = public_key(der)
    except BadInput as error:
        raise BadInput(f"the signer's key can't be read: {error.what}", where=where) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadInput("the signer's key is not on P-256", where=where)
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
