# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's certificate chains: P-384 with SHA-384 throughout, verified paths kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.x509 import keys, path
from cube_attestation.x509.certificate import Certificate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

MAX_CACHED = 1024


class Window(Protocol):
    """Something verified that holds from one time to another."""

    @property
    def not_before(self) -> datetime: ...

    @property
    def not_after(self) -> datetime: ...


T = TypeVar("T", bound=Window)


class Verified(Generic[T]):
    """What was verified once, by digest of its bytes and by anchors, and used again only inside its window."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, frozenset[str]], T] = {}

    def get(self, data: bytes, anchors: frozenset[str], now: datetime, verify: Callable[[], T]) -> T:
        """The kept result, or ``verify()``; failures are never kept."""
        key = (hashlib.sha256(data).digest(), anchors)
        kept = self._kept.get(key)
        if kept is not None and kept.not_before <= now <= kept.not_after:
            return kept
        value = verify()
        if len(self._kept) >= MAX_CACHED:
            self._kept.clear()
        self._kept[key] = value
        return value

    def clear(self) -> None:
        self._kept.clear()


class Path(NamedTuple):
    """Leaf to root, every signature good; all certificates are valid between the two times."""

    certificates: tuple[Certificate, ...]
    not_before: datetime
    not_after: datetime


def verify_path(certificates: tuple[Certificate, ...], anchors: frozenset[str], now: datetime) -> Path:
    """From ``certificates[0]`` to an anchor at ``now``. Raises NotAuthentic, ``why`` of ``path.PROBLEMS``."""
    found = path.find(certificates[0], certificates[1:], anchors, now)
    if found.problem:
        raise NotAuthentic(found.words, why=found.problem)
    for certificate in found.certificates:
        p384_key(certificate)
        if keys.ALGORITHMS[certificate.algorithm] != ("ecdsa", "sha384"):
            raise NotAuthentic(f"{certificate.name} is not signed with ECDSA over SHA-384", why="weak")
    return Path(
        found.certificates,
        max(certificate.not_before for certificate in found.certificates),
        min(certificate.not_after for certificate in found.certificates),
    )


def p384_key(certificate: Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's P-384 key. Raises NotAuthentic for any other kind."""
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = keys.public_key(certificate.spki)
    except BadInput as error:
        raise NotAuthentic(f"{certificate.name}: {error.what}", why="weak") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise NotAuthentic(f"{certificate.name} has no P-384 key", why="weak")
    return key


def signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` (r ‖ s, 48 bytes each, big-endian) is ``key``'s over SHA-384 of ``data``."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    if len(signature) != 96:
        return False
    r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    try:
        key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True
