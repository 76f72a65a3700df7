# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of Envoy's RBAC rules: what a request's path, token and body say. Pure.

A policy is written as DENY of everything that is not exactly allowed, so a rule that can't read its value denies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Config = dict[str, object]

BODY_METADATA = "cube.body"
RBAC = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
_JWT_METADATA = "envoy.filters.http.jwt_authn"


def deny(policies: Mapping[str, Config]) -> Config:
    """Refuse what matches one of ``policies``; the first by name gives the answer."""
    everyone = [{"any": True}]
    listed = {name: {"permissions": [rule], "principals": everyone} for name, rule in policies.items()}
    return {"@type": RBAC, "rbac": {"rules": {"action": "DENY", "policies": listed}}}


def let_all() -> Config:
    """Switch a filter off for a route."""
    return {"@type": RBAC}


def token(part: str, claim: str, value: Config) -> Config:
    """A domain's own token: ``part`` is ``header`` or ``payload``. An issuer's: ``oidc``, its payload."""
    return _metadata(_JWT_METADATA, [part, claim], value)


def body(key: str, value: Config) -> Config:
    """A top-level member of the JSON body."""
    return _metadata(BODY_METADATA, [key], value)


def path_ends(suffix: str) -> Config:
    return {"header": {"name": ":path", "string_match": {"suffix": suffix}}}


def exact(text: str) -> Config:
    return {"string_match": {"exact": text}}


def any_string() -> Config:
    return {"string_match": {"safe_regex": {"regex": "(?s).+"}}}


def holds(text: str) -> Config:
    """A string that is ``text``, or a list that has it."""
    return {"or_match": {"value_matchers": [exact(text), {"list_match": {"one_of": exact(text)}}]}}


def one_of(texts: Sequence[str]) -> Config:
    """Matches a string among ``texts``; nothing when there are none."""
    if not texts:
        return {"present_match": False}
    if len(texts) == 1:
        return exact(texts[0])
    return {"or_match": {"value_matchers": [exact(text) for text in texts]}}


def not_(rule: Config) -> Config:
    return {"not_rule": rule}


def all_of(*rules: Config) -> Config:
    return {"and_rules": {"rules": list(rules)}}


def any_of(*rules: Config) -> Config:
    return rules[0] if len(rules) == 1 else {"or_rules": {"rules": list(rules)}}


def _metadata(namespace: str, path: Sequence[str], value: Config) -> Config:
    matcher = {"filter": namespace, "path": [{"key": key} for key in path], "value": value}
    return {"sourced_metadata": {"metadata_matcher": matcher}}
