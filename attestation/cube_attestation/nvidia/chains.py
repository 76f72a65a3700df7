# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's certificate chains: P-384 with SHA-384 throughout, verified paths kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from cube_attestation import x509chain
from cube_attestation.errors import NotAuthentic

if TYPE_CHECKING:
    from cryptography import x509
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


@dataclass(frozen=True)
class Path:
    """Leaf to root, every signature good; all certificates are valid between the two times."""

    certificates: tuple[x509.Certificate, ...]
    not_before: datetime
    not_after: datetime


def verify_path(certificates: tuple[x509.Certificate, ...], anchors: frozenset[str], now: datetime) -> Path:
    """From ``certificates[0]`` to an anchor at ``now``. Raises NotAuthentic; ``why`` is x509chain's problem."""
    if not certificates:
        raise NotAuthentic("no certificates", why="untrusted_root")
    chain = x509chain.verify_chain(certificates[0], certificates[1:], anchors, now)
    if chain.problem:
        raise NotAuthentic(chain.words, why=chain.problem)
    for certificate in chain.path:
        p384_key(certificate)
        hashed = certificate.signature_hash_algorithm
        if hashed is None or hashed.name != "sha384":
            raise NotAuthentic(f"{x509chain.name(certificate)} is not signed with SHA-384", why="weak")
    return Path(
        chain.path,
        max(certificate.not_valid_before_utc for certificate in chain.path),
        min(certificate.not_valid_after_utc for certificate in chain.path),
    )


def p384_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's P-384 key. Raises NotAuthentic for any other kind."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise NotAuthentic(f"{x509chain.name(certificate)} has no P-384 key", why="weak")
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
