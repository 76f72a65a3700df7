# SPDX-License-Identifier: Apache-2.0
"""Tokens of attestation services in a bundle, with the key sets of their time, bound to the claims by nonce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cube_attestation import jcs
from cube_attestation.claims import Claims
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields
from cube_attestation.subject import Kind, Outcome, Subject
from cube_attestation.verdict import ItemVerdict, Reason

from . import abi
from .appraise import TokenPolicy, appraise
from .verify import ISSUERS

ITEM = "tokens"
LABELS = {ITEM: "application/vnd.cube.tokens+json"}
MAX_TOKENS = 8


@dataclass(frozen=True)
class Given:
    """One service's answer: a token or a set, and the key set that was published then."""

    issuer: str
    token: bytes
    keys: bytes


def encode(given: Sequence[Given]) -> bytes:
    """The ``tokens`` item: canonical JSON list of ``{"issuer", "keys", "token"}``, all text."""
    return jcs.dumps([{"issuer": g.issuer, "keys": g.keys.decode(), "token": g.token.decode()} for g in given])


def decode(data: bytes) -> tuple[Given, ...]:
    """Read the ``tokens`` item; each service at most once. Raises BadInput."""
    listed = Fields({ITEM: jcs.loads(data, where=ITEM)}, "bundle").array(ITEM, MAX_TOKENS)
    found: dict[str, Given] = {}
    for i, entry in enumerate(listed):
        fields = Fields(entry, f"{ITEM}[{i}]")
        issuer = fields.choice("issuer", *ISSUERS)
        token, keys = fields.text("token", limit=abi.MAX_FILE), fields.text("keys", limit=abi.MAX_FILE)
        fields.done()
        if issuer in found:
            raise BadInput(f"{issuer} occurs twice", where=fields.where)
        found[issuer] = Given(issuer, token.encode(), keys.encode())
    return tuple(found.values())


def expected_nonce(issuer: str, claims: Claims) -> str:
    """What a token must carry: NRAS answers for the GPUs' own nonce, the others for SHA-256(D); lower-case hex."""
    return (claims.gpu_nonce() if issuer == "nras" else claims.extra_data()).hex()


def appraise_tokens(subject: Subject, policies: Sequence[TokenPolicy]) -> Outcome:
    """Every token under its issuer's ``[[tokens]]`` entry. Reaches no tier: a service's word is no evidence."""
    data = subject.evidence.get(ITEM)
    if data is None:
        return _outcome(
            [_forged(policy.issuer, "token.missing", "the bundle has no token of it") for policy in policies]
        )
    if subject.claims is None:
        return _outcome([_forged("all", "token.no_claims", "there are no claims that tokens could be bound to")])
    items: list[ItemVerdict] = []
    try:
        given = {entry.issuer: entry for entry in decode(data)}
        for policy in policies:
            entry = given.pop(policy.issuer, None)
            if entry is None:
                items.append(_forged(policy.issuer, "token.missing", "the bundle has no token of it"))
                continue
            nonce = expected_nonce(policy.issuer, subject.claims)
            keys = abi.load_keys(entry.keys, where=f"{policy.issuer}.keys")
            items += appraise(entry.token, keys, policy, subject.now, nonce=nonce)
    except BadInput as error:
        return _outcome([*items, _forged("all", "token.malformed", str(error))])
    for issuer in given:
        reason = Reason("token.issuer.not_allowed", f"the policy says nothing about tokens of {issuer}")
        items.append(ItemVerdict(f"token-{issuer}", refused=(reason,)))
    return _outcome(items)


def _outcome(items: Sequence[ItemVerdict]) -> Outcome:
    return Outcome(items=tuple(items), tier="", assumptions=())


def _forged(issuer: str, code: str, words: str) -> ItemVerdict:
    return ItemVerdict(f"token-{issuer}", forged=(Reason(code, words),))


KIND = Kind(
    labels=LABELS,
    appraise=lambda subject: appraise_tokens(subject, subject.policy.tokens),
    demanded=lambda subject: bool(subject.policy.tokens),
)
