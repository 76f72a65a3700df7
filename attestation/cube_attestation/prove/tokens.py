# SPDX-License-Identifier: Apache-2.0
"""Attacks on tokens of attestation services."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from cube_attestation.claims import Claims
from cube_attestation.tokens import abi, items
from cube_attestation.tokens.items import Given

from . import forge
from .case import OTHER_DIGEST, Case, Inapplicable, Mutation


def _given(case: Case) -> tuple[Given, ...]:
    return items.decode(case.item(items.ITEM))


def _text(given: Given) -> str:
    """The token, or a set's overall token."""
    if not abi.is_set(given.token):
        return given.token.decode()
    return str(json.loads(given.token)[0][1])


def _with_text(given: Given, text: str) -> Given:
    if not abi.is_set(given.token):
        return replace(given, token=text.encode())
    value = json.loads(given.token)
    value[0][1] = text
    return replace(given, token=json.dumps(value).encode())


def _edit(edit: Callable[[Given], Given]) -> Callable[[Case], Case]:
    """The first service's answer edited."""

    def change(case: Case) -> Case:
        first, *rest = _given(case)
        return case.put(items.ITEM, items.encode((edit(first), *rest)))

    return change


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(part: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def _header(**members: object) -> Callable[[Given], Given]:
    def edit(given: Given) -> Given:
        head, body, signature = _text(given).split(".")
        changed = _b64url(json.dumps({**_decoded(head), **members}).encode())
        return _with_text(given, f"{changed}.{body}.{signature}")

    return edit


def _payload(given: Given) -> Given:
    """A claim added after signing."""
    head, body, signature = _text(given).split(".")
    changed = _b64url(json.dumps({**_decoded(body), "forged": True}).encode())
    return _with_text(given, f"{head}.{changed}.{signature}")


def _own_service(given: Given) -> Given:
    """The token signed by the forger, and a key set of his that travels with it under the same key id."""
    head, body, _ = _text(given).split(".")
    header = _decoded(head)
    content = f"{head}.{body}".encode()
    algorithm = str(header["alg"])
    if algorithm == "ES384":
        key = forge.ec_key("forger's service", "secp384r1")
        numbers = key.public_key().public_numbers()
        point = {name: _b64url(n.to_bytes(48, "big")) for name, n in (("x", numbers.x), ("y", numbers.y))}
        jwk: dict[str, object] = {"kty": "EC", "crv": "P-384", **point}
        signature = forge.raw_signature(key, content, "sha384")
    else:
        private = forge.rsa_key("forger's service")
        public = private.public_key().public_numbers()
        jwk = {"kty": "RSA", "n": _b64url(public.n.to_bytes(256, "big")), "e": _b64url(public.e.to_bytes(3, "big"))}
        if algorithm == "PS384":
            pad: padding.AsymmetricPadding = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
            signature = private.sign(content, pad, hashes.SHA384())
        else:
            signature = private.sign(content, padding.PKCS1v15(), hashes.SHA256())
    keys = json.dumps({"keys": [{**jwk, "kid": header["kid"], "use": "sig"}]}).encode()
    return replace(_with_text(given, f"{head}.{body}.{_b64url(signature)}"), keys=keys)


def _expired(case: Case) -> Case:
    ends = [_decoded(_text(given).split(".")[1]).get("exp") for given in _given(case)]
    known = [end for end in ends if isinstance(end, int)]
    if not known:
        raise Inapplicable("no token says when it ends")
    return replace(case, now=datetime.fromtimestamp(max(known), UTC) + timedelta(seconds=1))


def _other_machine(case: Case) -> Case:
    """Genuine tokens beside the claims of another machine."""
    case.item(items.ITEM)
    claims = Claims.decode(case.item("claims"))
    return case.put("claims", replace(claims, boot="0f" * 16).encode())


def _policies(**members: object) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        case.item(items.ITEM)
        changed = (replace(policy, **members) for policy in case.policy.tokens)  # type: ignore[arg-type]
        return case.under(tokens=tuple(changed))

    return change


def _nobody(case: Case) -> Case:
    case.item(items.ITEM)
    return case.under(tokens=())


def _untrusted(case: Case) -> Case:
    return _policies(keys=frozenset({OTHER_DIGEST}))(case)


MUTATIONS = (
    Mutation("token.removed", "no tokens", "token.missing", lambda case: case.without(items.ITEM)),
    Mutation("token.payload", "a claim added after signing", "token.signature.invalid", _edit(_payload)),
    Mutation(
        "token.none", "a token that says it needs no signature", "token.alg.not_allowed", _edit(_header(alg="none"))
    ),
    Mutation(
        "token.hmac",
        "a token that takes the public key for a secret",
        "token.alg.not_allowed",
        _edit(_header(alg="HS256")),
    ),
    Mutation(
        "token.crit",
        "a header that asks for an extension",
        "token.header.not_allowed",
        _edit(_header(crit=["b64"])),
    ),
    Mutation(
        "token.jku",
        "a header that points to the forger's keys",
        "token.signature.invalid",
        _edit(_header(jku="https://forged.example/keys")),
    ),
    Mutation(
        "token.service", "a token and key set of the forger's own", "token.key.untrusted", _edit(_own_service)
    ),
    Mutation("token.keys", "a key that nothing accepted vouches for", "token.key.untrusted", _untrusted),
    Mutation("token.expired", "a token that has run out", "token.exp.expired", _expired),
    Mutation("token.machine", "a genuine token of another machine", "token.nonce.mismatch", _other_machine),
    Mutation(
        "token.issuer",
        "a genuine token of another service than the policy takes",
        "token.iss.not_allowed",
        _policies(iss=("https://another.example",)),
    ),
    Mutation(
        "token.audience",
        "a genuine token for somebody else",
        "token.aud.not_allowed",
        _policies(audience=("https://another.example",)),
    ),
    Mutation(
        "token.claim",
        "a genuine token without what the policy asks for",
        "token.claim.missing",
        _policies(claims={"forged.path": (True,)}),
    ),
    Mutation(
        "token.unasked", "a token of a service that the policy does not take", "token.issuer.not_allowed", _nobody
    ),
)
