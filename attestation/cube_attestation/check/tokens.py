# SPDX-License-Identifier: Apache-2.0
"""``check token``: a service's token under the keys that were given, by the rules of that service."""

from __future__ import annotations

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from urllib.parse import urlsplit

from cube_attestation.anchors import nvidia as anchors
from cube_attestation.errors import BadInput
from cube_attestation.tokens import abi
from cube_attestation.tokens.appraise import TokenPolicy, appraise
from cube_attestation.tokens.verify import ISSUERS
from cube_attestation.verdict import ItemVerdict

from .result import Given, needed

_MAA = re.compile(r"[a-z0-9.-]{1,100}\.attest\.azure\.(?:net|us|cn)")
_ALGORITHMS = {"ES384": "nras", "PS384": "ita", "RS256": "maa"}


def check(given: Given) -> tuple[ItemVerdict, ...]:
    """The token's item, for a set one of each. Raises BadInput.

    Keys of options are the caller's word, and count as trusted for services without a pinned root; keys that come
    with the evidence never do. NRAS's keys must lead to NVIDIA's pinned intermediates.
    """
    material = given.material
    data = needed(material.tokens, "a token", "pass a compact JWS, or NRAS's list")
    token = _one(data)
    issuer = _issuer(token)
    trusted: list[abi.Key] = []
    offered: list[abi.Key] = []
    for i, part in enumerate((*material.keys, *material.offered_keys)):
        found = abi.load_keys(part, where=f"keys[{i}]")
        (trusted if i < len(material.keys) else offered).extend(found)
    for der in material.certificates:
        offered += abi.load_keys(der, where="certificate")
    pinned = frozenset(anchors.NRAS_ISSUERS) if issuer == "nras" else frozenset(key.spki for key in trusted)
    iss = token.claims.get("iss")
    names = ISSUERS[issuer].iss or (
        (iss,) if isinstance(iss, str) and _is_maa(iss) else ("https://….attest.azure.net",)
    )
    rules = TokenPolicy(issuer, names, pinned | frozenset(given.roots))
    return appraise(data, (*trusted, *offered), rules, given.now, nonce=_nonce(given, token.claims))


def issuer_of(data: bytes) -> str:
    """The service that a token or set is of, as it says itself. Raises BadInput."""
    return _issuer(_one(data))


def _one(data: bytes) -> abi.Token:
    return abi.parse_set(data).overall if abi.is_set(data) else abi.parse(data)


def _issuer(token: abi.Token) -> str:
    """Which service's rules hold: its name says so, or else the algorithm. Raises BadInput."""
    iss, alg = token.claims.get("iss"), token.header.get("alg")
    host = _host(iss)
    if host.endswith(".nvidia.com"):
        return "nras"
    if isinstance(iss, str) and _is_maa(iss):
        return "maa"
    if host == "confidentialcomputing.googleapis.com":
        return "confidential-space"
    if host.endswith(".intel.com"):
        return "ita"
    found = _ALGORITHMS.get(alg) if isinstance(alg, str) else None
    if found is None:
        raise BadInput(f"signed with {str(alg)[:20]!r}, which no known service uses", where="token")
    return found


def _host(iss: object) -> str:
    try:
        return (urlsplit(iss).hostname or "") if isinstance(iss, str) else ""
    except ValueError:
        return ""


def _is_maa(iss: str) -> bool:
    return iss.startswith("https://") and _MAA.fullmatch(_host(iss)) is not None


def _nonce(given: Given, claims: Mapping[str, object]) -> str | None:
    """The nonce as this token may write it: hex of either case, base64 of either alphabet, or its text."""
    nonce = given.nonce
    if nonce is None:
        return None
    forms = [nonce.hex(), nonce.hex().upper(), b64encode(nonce).decode(), urlsafe_b64encode(nonce).decode()]
    forms.append(forms[-1].rstrip("="))
    if nonce.isascii():
        forms.append(nonce.decode("ascii"))
    carried = _texts(claims, 0)
    return next((form for form in forms if form in carried), forms[0])


def _texts(value: object, depth: int) -> set[str]:
    """Every text among the claims."""
    if isinstance(value, str):
        return {value}
    if depth > abi.MAX_DEPTH or not isinstance(value, Mapping | list):
        return set()
    inner = value.values() if isinstance(value, Mapping) else value
    return {text for one in inner for text in _texts(one, depth + 1)}
