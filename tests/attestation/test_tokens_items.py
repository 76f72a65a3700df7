# SPDX-License-Identifier: Apache-2.0
"""Tokens in a bundle: each under its issuer's policy, bound to the claims, none missing and none too many."""

from __future__ import annotations

import pytest
from cube_attestation.bundle import Bundle
from cube_attestation.claims import Claims
from cube_attestation.cmw import EVIDENCE, Collection
from cube_attestation.errors import BadInput
from cube_attestation.policy import load
from cube_attestation.subject import Subject
from cube_attestation.tokens.appraise import TokenPolicy
from cube_attestation.tokens.items import ITEM, LABELS, Given, appraise_tokens, decode, encode, expected_nonce
from cube_attestation.verifier import verify
from fake_tokens import ISS, KIDS, NOW, FakeToken, jwk, key_set, spki_digest, token_set
from fakepki import World

NRAS = TokenPolicy("nras", (ISS["nras"],), frozenset({spki_digest("nras")}))
ITA = TokenPolicy("ita", (ISS["ita"],), frozenset({spki_digest("ita")}))


def given(world: World) -> tuple[Given, Given]:
    claims = world.claims()
    nonce = {"eat_nonce": expected_nonce("nras", claims)}
    gpu = FakeToken("nras", device=True, claims=nonce).text()
    nras = token_set(FakeToken("nras", claims=nonce), GPU_0=gpu)
    ita = FakeToken("ita", claims={"verifier_nonce": {"val": expected_nonce("ita", claims)}}).data()
    return (
        Given("nras", nras, key_set(jwk("nras", KIDS["nras"]))),
        Given("ita", ita, key_set(jwk("ita", KIDS["ita"]))),
    )


def judge(data: bytes | None, *policies: TokenPolicy, claims: Claims | None) -> list[str]:
    evidence = Collection({})
    if data is not None:
        evidence = evidence.with_item(ITEM, LABELS[ITEM], data, EVIDENCE)
    outcome = appraise_tokens(Subject(evidence, World().the_policy(), NOW, claims, None, None), policies)
    assert outcome.tier == ""
    return sorted({reason.code for item in outcome.items for reason in item.reasons})


def test_bound_tokens_pass() -> None:
    claims = World().claims()
    both = given(World())
    assert judge(encode(both), NRAS, ITA, claims=claims) == []
    assert decode(encode(both)) == both


def test_tokens_of_other_claims_do_not_fit() -> None:
    other = World(tls_spki="sha256:" + "12" * 32)
    assert judge(encode(given(other)), NRAS, ITA, claims=World().claims()) == ["token.nonce.mismatch"]


def test_none_is_missing_and_none_too_many() -> None:
    claims = World().claims()
    nras, ita = given(World())
    assert judge(None, NRAS, claims=claims) == ["token.missing"]
    assert judge(encode((nras,)), NRAS, ITA, claims=claims) == ["token.missing"]
    assert judge(encode((nras, ita)), NRAS, claims=claims) == ["token.issuer.not_allowed"]
    assert judge(encode((nras,)), NRAS, claims=None) == ["token.no_claims"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'[{"issuer":"other","keys":"","token":""}]',
        b'[{"issuer":"nras","keys":"{}","token":"a"}]',
        b"[1]",
    ],
)
def test_malformed_items_are_a_reason(data: bytes) -> None:
    assert judge(data, NRAS, claims=World().claims()) == ["token.malformed"]


def test_each_service_once() -> None:
    nras, _ = given(World())
    with pytest.raises(BadInput):
        decode(encode((nras, nras)))


def test_policy_entries_and_the_whole_bundle() -> None:
    """``[[tokens]]`` in a policy: each issuer once, and its token must be there."""
    text = World().policy_toml()
    entry = f'[[tokens]]\nissuer = "nras"\nkeys = ["{spki_digest("nras")}"]\n'
    policy = load((text + "\n" + entry).encode())
    assert [found.issuer for found in policy.tokens] == ["nras"]
    with pytest.raises(BadInput, match="twice"):
        load((text + "\n" + entry + entry).encode())
    world, (nras, _) = World(), given(World())
    assert verify(world.bundle(), policy, now=NOW, nonce=world.nonce).codes == ("token.missing",)
    evidence = world.bundle().evidence.with_item(ITEM, LABELS[ITEM], encode((nras,)), EVIDENCE)
    assert verify(Bundle(evidence), policy, now=NOW, nonce=world.nonce).passed
