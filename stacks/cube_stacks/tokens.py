# SPDX-License-Identifier: Apache-2.0
"""Personal access tokens: made offline by a domain's key, checked inside the machine (formats §8)."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cube_attestation import domains
from cube_attestation.domains import TokenKey, thumbprint

from cube_stacks.keys import SigningKey
from cube_stacks.state import read_record, state_folder, write_record

PREFIX = "pat_"
TYPE = "cube-pat+jwt"
SCOPES = domains.SCOPES
INFERENCE = tuple(scope for scope in SCOPES if scope.startswith("llm_"))  # a token's, unless said otherwise
MAXIMUM_LIFE = timedelta(days=365)
_JTI = re.compile(r"[A-Za-z0-9_-]{8,64}")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token_key(key: SigningKey) -> TokenKey:
    """The public half as a domain's configuration carries it; `kid` is its RFC 7638 thumbprint."""
    numbers = key.public_key.public_numbers()
    x, y = (_b64(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return TokenKey(thumbprint(x, y), x, y)


def issue(
    key: SigningKey, environment: str, domain: str, scopes: Sequence[str], life: timedelta, now: datetime
) -> tuple[str, dict[str, Any]]:
    """A token of the domain with the id `domain`, and its claims (the `jti` is what a revocation names).

    ValueError: a scope that there is not, or a life that is not between one second and 365 days.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ValueError(f"scopes {unknown or 'are missing'}: choose among {', '.join(SCOPES)}")
    if not timedelta(seconds=1) <= life <= MAXIMUM_LIFE:
        raise ValueError(f"a token lives between 1 second and {MAXIMUM_LIFE.days} days, not {life}")
    issued = int(now.astimezone(UTC).timestamp())
    claims: dict[str, Any] = {
        "iss": f"cube:{domain}",
        "aud": environment,
        "domain": domain,
        "scopes": sorted(set(scopes)),
        "iat": issued,
        "exp": issued + int(life.total_seconds()),
        "jti": secrets.token_urlsafe(16),
    }
    header = {"alg": "ES256", "kid": token_key(key).kid, "typ": TYPE}
    body = ".".join(_b64(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
    r, s = decode_dss_signature(key.sign(body.encode()))
    return PREFIX + body + "." + _b64(r.to_bytes(32, "big") + s.to_bytes(32, "big")), claims


def _revocations(environment: str, domain: str) -> Path:
    return state_folder(environment) / "revoked" / f"{domain}.json"


def revoked(environment: str, domain: str) -> list[str]:
    """The `jti`s that the operator revoked for the domain named `domain`, in order."""
    record = read_record(_revocations(environment, domain)) or {}
    return sorted(str(jti) for jti in record.get("revoked", []))


def revoke(environment: str, domain: str, jti: str) -> list[str]:
    """Add `jti` to the revocations that every later domain set carries; returns all of the domain's."""
    if not _JTI.fullmatch(jti):
        raise ValueError(f"{jti!r} is not a token id; `cube token issue` prints it as jti")
    every = sorted({*revoked(environment, domain), jti})
    write_record(_revocations(environment, domain), {"revoked": every})
    return every
