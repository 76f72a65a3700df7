# SPDX-License-Identifier: Apache-2.0
"""Is a token authentic? The issuer's one algorithm, a key that the caller vouches for, the signature.

Keys come from the caller only. A header's ``jku``, ``jwk``, ``x5u`` and ``x5c`` are never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cube_attestation.errors import BadInput
from cube_attestation.verdict import Reason
from cube_attestation.x509 import certificate, path

from . import abi


@dataclass(frozen=True)
class Issuer:
    """What is fixed for one service: JWS algorithm, form of key ids, and its name where it has only one."""

    algorithm: str
    kid: re.Pattern[str]
    iss: tuple[str, ...] = ()


# Microsoft's instances each have their own name, so a policy must name theirs
ISSUERS: Mapping[str, Issuer] = {
    "nras": Issuer(
        "ES384", re.compile(r"nv-eat-kid-[A-Za-z0-9-]{8,128}"), ("https://nras.attestation.nvidia.com",)
    ),
    "maa": Issuer("RS256", re.compile(r"[A-Za-z0-9+/_-]{8,128}={0,2}")),
    "confidential-space": Issuer(
        "RS256", re.compile(r"[A-Za-z0-9_-]{8,128}"), ("https://confidentialcomputing.googleapis.com",)
    ),
    "ita": Issuer(
        "PS384",
        re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{96})"),
        ("https://portal.trustauthority.intel.com", "https://portal.eu.trustauthority.intel.com"),
    ),
}


def verify(
    token: abi.Token, issuer: str, keys: Sequence[abi.Key], trusted: Collection[str], now: datetime
) -> tuple[Reason, ...]:
    """What keeps ``token`` from being one of ``issuer`` (a name in ISSUERS). Empty: nothing.

    ``trusted``: SPKI digests of signing keys, or of certificates above them, that are accepted; a key in ``keys``
    counts only if it leads there at ``now``. Raises BadInput for an unknown issuer.
    """
    if issuer not in ISSUERS:
        raise BadInput(f"{issuer[:40]!r} is none of {', '.join(ISSUERS)}", where="token issuer")
    known, header = ISSUERS[issuer], token.header
    if header.get("alg") != known.algorithm:
        return (
            Reason(
                "token.alg.not_allowed", f"signed with {_show(header.get('alg'))}, {issuer} uses {known.algorithm}"
            ),
        )
    if refused := sorted({"crit", "b64", "zip", "enc"} & set(header)):
        return (Reason("token.header.not_allowed", f"the header has {', '.join(refused)}"),)
    kid = header.get("kid")
    if not isinstance(kid, str) or not known.kid.fullmatch(kid):
        return (Reason("token.kid.invalid", f"key id {_show(kid)} is missing or none of {issuer}"),)
    named = [key for key in keys if key.kid == kid] or [key for key in keys if not key.kid]
    if not named:
        return (Reason("token.key.unknown", f"no key with id {kid[:80]} was given"),)
    problems: list[Reason] = []
    for key in named:
        problem = _untrusted(key, trusted, now)
        if problem is None:
            if _signed(token, key, known.algorithm):
                return ()
            problem = Reason("token.signature.invalid", f"key {kid[:80]} did not sign this token")
        problems.append(problem)
    return (min(problems, key=lambda reason: _ORDER.index(reason.code)),)


# Of several candidate keys, the most telling problem is reported
_ORDER = ("token.signature.invalid", "token.key.expired", "token.key.untrusted")


def _untrusted(key: abi.Key, trusted: Collection[str], now: datetime) -> Reason | None:
    """Why ``key`` does not count at ``now``: not vouched for, or outside its certificate's validity."""
    if key.spki not in trusted:
        certificates = tuple(map(certificate.parse, key.chain))
        if not certificates:
            return Reason("token.key.untrusted", f"key {key.spki} is not among the trusted ones")
        found = path.find(certificates[0], certificates[1:], trusted, now)
        if found.problem in ("expired", "not_yet_valid"):
            return Reason("token.key.expired", found.words)
        return Reason("token.key.untrusted", found.words) if found.problem else None
    if key.not_before is not None and key.not_after is not None and not key.not_before <= now <= key.not_after:
        words = f"the key's certificate is valid from {key.not_before:%Y-%m-%d} to {key.not_after:%Y-%m-%d}"
        return Reason("token.key.expired", words)
    return None


def _signed(token: abi.Token, key: abi.Key, algorithm: str) -> bool:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from joserfc import jws
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, RSAKey

    if isinstance(key.key, rsa.RSAPublicKey) == algorithm.startswith("ES"):
        return False
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    registry.max_header_length, registry.max_payload_length = abi.MAX_TOKEN, abi.MAX_TOKEN
    pem = key.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        imported = RSAKey.import_key(pem) if isinstance(key.key, rsa.RSAPublicKey) else ECKey.import_key(pem)
        jws.deserialize_compact(token.text, imported, algorithms=[algorithm], registry=registry)
    except (JoseError, ValueError):
        return False
    return True


def _show(value: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in repr(value)[:60])
