# SPDX-License-Identifier: Apache-2.0
"""What tokens lack: the key set of their issuer that holds the key that signed them."""

from __future__ import annotations

from functools import partial

from cube_attestation.anchors import nvidia as anchors
from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.tokens import abi
from cube_attestation.tokens.items import ITEM, Given, decode, encode
from cube_attestation.tokens.verify import verify

from . import requests, store
from .model import Answer, Context, Need

# The key is the right one, but the clock or the policy is against it: the verdict's business, not the collector's
_KEPT = ("token.key.expired",)


def needs(evidence: Collection, context: Context) -> tuple[Need, ...]:
    """One need for each token whose key is not at hand. Raises BadInput for tokens that can't be read."""
    data = evidence.get(ITEM)
    if data is None:
        return ()
    found: list[Need] = []
    for given in decode(data):
        problem = _problem(given, context)
        if problem:
            iss = _tokens(given.token)[0].claims.get("iss")
            request = requests.key_set(given.issuer, iss if isinstance(iss, str) else "")
            accept = partial(accept_keys, issuer=given.issuer, context=context)
            found.append(
                Need(
                    f"tokens.{given.issuer}", ITEM, f"key set of {given.issuer}", problem, (request,), accept=accept
                )
            )
    return tuple(found)


def accept_keys(answer: Answer, evidence: Collection, *, issuer: str, context: Context) -> Collection:
    """A key set with the keys of the issuer's token, which really signed it."""
    data = evidence.get(ITEM)
    all_given = decode(data) if data is not None else ()
    for i, given in enumerate(all_given):
        if given.issuer != issuer:
            continue
        try:
            keys = answer.body.decode()
        except UnicodeDecodeError as error:
            raise BadInput("not UTF-8", where=f"key set of {issuer}") from error
        changed = Given(issuer, given.token, keys.encode())
        problem = _problem(changed, context)
        if problem:
            raise NotAuthentic(problem, why="key", where=f"key set of {issuer}")
        return store.put(evidence, ITEM, encode([*all_given[:i], changed, *all_given[i + 1 :]]))
    raise BadInput(f"the bundle has no token of {issuer}", where="key set")


def _tokens(data: bytes) -> tuple[abi.Token, ...]:
    if not abi.is_set(data):
        return (abi.parse(data),)
    whole = abi.parse_set(data)
    return (whole.overall, *whole.devices.values())


def _problem(given: Given, context: Context) -> str:
    """Why the keys do not show that the issuer signed; empty if they do.

    Trusted are the policy's keys, NVIDIA's intermediates for NRAS, else whatever the set holds: for the other
    services nothing is pinned here, and a policy has to.
    """
    try:
        keys = abi.load_keys(given.keys, where=f"key set of {given.issuer}")
    except BadInput as error:
        return error.what
    policy = context.tokens.get(given.issuer)
    trusted = policy.keys if policy else anchors.NRAS_ISSUERS if given.issuer == "nras" else ()
    trusted = trusted or frozenset(key.spki for key in keys)
    for token in _tokens(given.token):
        for reason in verify(token, given.issuer, keys, trusted, context.now):
            if reason.code not in _KEPT:
                return reason.words
    return ""


def issuers_of(evidence: Collection) -> tuple[str, ...]:
    """The services whose tokens are in the bundle. Raises BadInput."""
    data = evidence.get(ITEM)
    return () if data is None else tuple(given.issuer for given in decode(data))
