# SPDX-License-Identifier: Apache-2.0
"""What a domain set may say beside models and tokens: names of its own, issuers, limits (formats §4)."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from cube_attestation import domains
from cube_attestation.errors import BadInput
from hypothesis import given
from hypothesis import strategies as st

ID = "e44314cd-707b-4cb9-8502-17a34803f0f7"
KEY = {"kty": "EC", "crv": "P-256", "kid": "k1", "x": "A" * 43, "y": "A" * 43}
ISSUER = {"issuer": "https://login.example/r", "audiences": ["cube"], "keys": [KEY], "claims": {"groups": "llm"}}


def body(**changes: Any) -> dict[str, Any]:
    tokens: dict[str, Any] = {"keys": [], "revoked": []}
    return {"domains": [{"id": ID, "name": "acme", "models": ["smollm2"], "tokens": tokens, **changes}]}


def test_names_of_a_domains_own() -> None:
    found = domains.parse(body(models=["smollm2", "chat=smollm2", "ns/m:1=big"]), models={"smollm2", "big"})
    assert found.domains[0].mapping == {"smollm2": "smollm2", "chat": "smollm2", "ns/m:1": "big"}


def test_all_of_it_comes_out_as_it_went_in() -> None:
    limits = {"max_body_bytes": 2048, "requests_per_minute": 60, "concurrent_requests": 4}
    whole = body(issuers=[ISSUER], limits=limits)
    again = {"domains": [domain.to_json() for domain in domains.parse(whole).domains]}
    assert domains.parse(again).domains == domains.parse(whole).domains
    assert domains.parse(again).domains[0].limits.to_json() == limits
    plain = body()
    assert [domain.to_json() for domain in domains.parse(plain).domains] == plain["domains"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ["a=smollm2", "a=big"]}, "two models"),
        ({"models": ["smollm2", "x=nothing"]}, "no model nothing"),
        ({"models": ["a=b=c"]}, "models"),
        ({"models": ["=smollm2"]}, "models"),
        ({"limits": {"requests_per_minute": 0}}, "requests_per_minute"),
        ({"limits": {"concurrent_requests": 2000}}, "concurrent_requests"),
        ({"limits": {"tokens": 1}}, "unknown member tokens"),
        ({"issuers": [ISSUER, ISSUER]}, "occurs twice"),
        ({"issuers": [{**ISSUER, "issuer": "http://login.example"}]}, "issuer"),
        ({"issuers": [{**ISSUER, "issuer": f"cube:{ID}"}]}, "issuer"),
        ({"issuers": [{**ISSUER, "audiences": []}]}, "audience"),
        ({"issuers": [{**ISSUER, "keys": [KEY, KEY]}]}, "same kid"),
        ({"issuers": [{**ISSUER, "keys": [{**KEY, "d": "A" * 43}]}]}, "unknown member d"),
        ({"issuers": [{**ISSUER, "keys": [{**KEY, "alg": "HS256"}]}]}, "alg"),
        ({"issuers": [{**ISSUER, "keys": [{"kty": "oct", "kid": "x", "k": "AA"}]}]}, "kty"),
        ({"issuers": [{**ISSUER, "claims": {"groups": ["llm"]}}]}, "groups"),
        ({"issuers": [{**ISSUER, "jwks_uri": "https://login.example/keys"}]}, "jwks_uri"),
    ],
)
def test_what_no_machine_takes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        domains.parse(body(**changes), models={"smollm2", "big"})


@given(st.text(max_size=40), st.integers(), st.text(max_size=1500))
def test_any_value_is_taken_or_refused_in_words(name: str, number: int, modulus: str) -> None:
    key = {"kty": "RSA", "kid": "k", "n": modulus, "e": "AQAB"}
    for changes in (
        {"models": [name]},
        {"limits": {"requests_per_minute": number}},
        {"issuers": [{**ISSUER, "issuer": name}]},
        {"issuers": [{**ISSUER, "keys": [key]}]},
    ):
        with contextlib.suppress(BadInput):
            domains.parse(body(**changes))
