# SPDX-License-Identifier: Apache-2.0
"""Envoy's dynamic files from what is in force: secret (SDS), token check (ECDS), routes (RDS). Pure.

The bootstrap (listeners, filter chain, clusters) is a template in cube_templates; the names below are the contract
with it. Authorization rests on jwt_authn, json_to_metadata and RBAC. Every rule denies what it can't read: a policy
is written as DENY of everything that is not exactly allowed, and its name says which answer the client gets
(the bootstrap's local_reply_config maps names to status and body).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cube_attestation.domains import Domain, DomainSet

Config = dict[str, object]

CERTIFICATE = "tls"
ROUTES = "service"
JWT_FILTER = "cube.jwt"
ACCESS_FILTER = "cube.access"
BODY_FILTER = "envoy.filters.http.buffer"
BODY_METADATA = "cube.body"
MODEL_FILTER = "cube.model"
BACKEND_CLUSTER = "ollama"
MAX_BODY_BYTES = 8 << 20  # the bootstrap's buffer limit

NOT_ADMITTED = "This machine is not admitted to serve. Try again later."
UNKNOWN_PATH = "Unknown path."

_TYPE = "type.googleapis.com/envoy."
_HTTP = _TYPE + "extensions.filters.http."
_JWT_METADATA = "envoy.filters.http.jwt_authn"
_REQUIREMENT = "pat"
_STREAM_SECONDS = 1800  # a stream that outlives its lease or its token's revocation ends here at the latest


@dataclass(frozen=True)
class View:
    """What routes depend on. ``domains`` is None unless inference may be served now."""

    environment: str
    domains: DomainSet | None
    failed: frozenset[str]
    max_body_bytes: int
    created: int


def secret(private_key: str, chain: str) -> Config:
    """SDS: the boot's key with its certificate chain (PEM)."""
    value = {
        "@type": _TYPE + "extensions.transport_sockets.tls.v3.Secret",
        "name": CERTIFICATE,
        "tls_certificate": {
            "certificate_chain": {"inline_string": chain},
            "private_key": {"inline_string": private_key},
        },
    }
    return {"resources": [value]}


def token_check(view: View) -> Config:
    """ECDS: the jwt_authn filter with the keys of all domains.

    One provider for all: a key is tied to its domain by RBAC (its kid, which the domain set makes unique), so the
    cost of a request does not grow with the number of domains.
    """
    keys = [key.to_json() for domain in view.domains.domains for key in domain.keys] if view.domains else []
    value = {
        "@type": _TYPE + "config.core.v3.TypedExtensionConfig",
        "name": JWT_FILTER,
        "typed_config": {
            "@type": _HTTP + "jwt_authn.v3.JwtAuthentication",
            "providers": {
                _REQUIREMENT: {
                    "audiences": [view.environment],
                    "local_jwks": {"inline_string": json.dumps({"keys": keys})},
                    "from_headers": [{"name": "authorization", "value_prefix": "Bearer pat_"}],
                    "forward": False,
                    "payload_in_metadata": "payload",
                    "header_in_metadata": "header",
                    "require_expiration": True,
                    "clock_skew_seconds": 5,
                    "jwt_cache_config": {"jwt_cache_size": 1000},
                }
            }
            if keys
            else {},
            "requirement_map": {_REQUIREMENT: {"provider_name": _REQUIREMENT}} if keys else {},
        },
    }
    return {"resources": [value]}


def routes(view: View) -> Config:
    """RDS: a tree over exact paths, or one answer 503 while nothing may be served."""
    if view.domains is None:
        host: Config = {"routes": [_direct(503, NOT_ADMITTED)]}
    else:
        paths: Config = {}
        for domain in view.domains.domains:
            paths.update(_domain_paths(view, domain))
        unknown = _action(_direct(404, UNKNOWN_PATH))
        tree = {"input": _header_input(":path"), "exact_match_map": {"map": paths}}
        # a tree with nothing in it is not valid
        host = {"matcher": {"matcher_tree": tree, "on_no_match": unknown} if paths else {"on_no_match": unknown}}
    value = {
        "@type": _TYPE + "config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "virtual_hosts": [{"name": ROUTES, "domains": ["*"], **host}],
    }
    return {"resources": [value]}


def _domain_paths(view: View, domain: Domain) -> Config:
    shown = [model for model in domain.models if model not in view.failed]
    listed = [{"id": model, "object": "model", "created": view.created, "owned_by": domain.name} for model in shown]
    found: Config = {}
    entries: list[tuple[str, Config]] = [
        ("models", _answer(domain, "models", {"object": "list", "data": listed})),
        *((f"models/{entry['id']}", _answer(domain, "model", entry)) for entry in listed),
        ("chat/completions", _chat(view, domain)),
    ]
    for path, route in entries:
        for prefix in ("", "/proxy"):
            found[f"{prefix}/{domain.id}/v1/{path}"] = _action(route)
    return found


def _answer(domain: Domain, name: str, body: object) -> Config:
    return {
        "name": f"{domain.id}/{name}",
        "match": _method("GET"),
        "direct_response": {"status": 200, "body": {"inline_string": json.dumps(body, separators=(",", ":"))}},
        "response_headers_to_add": [_set_header("content-type", "application/json")],
        "typed_per_filter_config": _access(domain, "llm_read") | {MODEL_FILTER: _open()},
    }


def _chat(view: View, domain: Domain) -> Config:
    limit = min(view.max_body_bytes, MAX_BODY_BYTES)
    return {
        "name": f"{domain.id}/chat",
        "match": _method("POST"),
        "route": {
            "cluster": BACKEND_CLUSTER,
            "timeout": "0s",
            "max_stream_duration": {"max_stream_duration": f"{_STREAM_SECONDS}s"},
            "regex_rewrite": {"pattern": {"regex": "^/.*$"}, "substitution": "/v1/chat/completions"},
            "host_rewrite_literal": "localhost",
        },
        "request_headers_to_add": [
            _set_header("x-cube-domain", domain.id),
            _set_header("x-cube-model", f"%DYNAMIC_METADATA({BODY_METADATA}:model)%"),
        ],
        "request_headers_to_remove": ["authorization", "cookie", "x-forwarded-for", "x-forwarded-proto"],
        "typed_per_filter_config": _access(domain, "llm_chat_completions")
        | {
            BODY_FILTER: {"@type": _HTTP + "buffer.v3.BufferPerRoute", "buffer": {"max_request_bytes": limit}},
            MODEL_FILTER: _deny(_model_policies(domain.models, view.failed)),
        },
    }


def _access(domain: Domain, scope: str) -> Config:
    return {
        JWT_FILTER: {"@type": _HTTP + "jwt_authn.v3.PerRouteConfig", "requirement_name": _REQUIREMENT},
        ACCESS_FILTER: _deny(_access_policies(domain, scope)),
    }


def _access_policies(domain: Domain, scope: str) -> dict[str, Config]:
    claimed = _token("payload", "domain", _one_of([domain.id]))
    own_key = _token("header", "kid", _one_of([key.kid for key in domain.keys]))
    issued = _token("payload", "iss", _one_of([f"cube:{domain.id}"]))
    policies = {
        "1.token.type": _not(_token("header", "typ", _one_of(["cube-pat+jwt"]))),
        # says that it is this domain's, but another key made it
        "2.token.forged": _all(claimed, _not(_all(own_key, issued))),
        "3.token.without_id": _not(_token("payload", "jti", _any_string())),
        "5.domain": _not(claimed),
        "6.scope": _not(_token("payload", "scopes", {"list_match": {"one_of": _exact(scope)}})),
    }
    if domain.revoked:
        policies["4.token.revoked"] = _token("payload", "jti", _one_of(domain.revoked))
    return policies


def _model_policies(models: Sequence[str], failed: Collection[str]) -> dict[str, Config]:
    policies = {
        "1.body.json": _body("error", _one_of(["1"])),
        "2.body.variant": _body("variant", {"present_match": True}),
        "3.body.model": _not(_body("model", _any_string())),
        "5.model.unknown": _not(_body("model", _one_of(models))),
    }
    if broken := [model for model in models if model in failed]:
        policies["4.model.failed"] = _body("model", _one_of(broken))
    return policies


def _deny(policies: Mapping[str, Config]) -> Config:
    everyone = [{"any": True}]
    listed = {name: {"permissions": [rule], "principals": everyone} for name, rule in policies.items()}
    return {"@type": _HTTP + "rbac.v3.RBACPerRoute", "rbac": {"rules": {"action": "DENY", "policies": listed}}}


def _open() -> Config:
    return {"@type": _HTTP + "rbac.v3.RBACPerRoute"}


def _token(part: str, claim: str, value: Config) -> Config:
    return _metadata(_JWT_METADATA, [part, claim], value)


def _body(key: str, value: Config) -> Config:
    return _metadata(BODY_METADATA, [key], value)


def _metadata(namespace: str, path: Sequence[str], value: Config) -> Config:
    matcher = {"filter": namespace, "path": [{"key": key} for key in path], "value": value}
    return {"sourced_metadata": {"metadata_matcher": matcher}}


def _exact(text: str) -> Config:
    return {"string_match": {"exact": text}}


def _any_string() -> Config:
    return {"string_match": {"safe_regex": {"regex": "(?s).+"}}}


def _one_of(texts: Sequence[str]) -> Config:
    """Matches a string among ``texts``; nothing when there are none."""
    if not texts:
        return {"present_match": False}
    if len(texts) == 1:
        return _exact(texts[0])
    return {"or_match": {"value_matchers": [_exact(text) for text in texts]}}


def _not(rule: Config) -> Config:
    return {"not_rule": rule}


def _all(*rules: Config) -> Config:
    return {"and_rules": {"rules": list(rules)}}


def _method(method: str) -> Config:
    return {"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": method}}]}


def _direct(status: int, message: str) -> Config:
    return {
        "match": {"prefix": "/"},
        "direct_response": {"status": status, "body": {"inline_string": message}},
        "typed_per_filter_config": {ACCESS_FILTER: _open(), MODEL_FILTER: _open()},
    }


def _header_input(name: str) -> Config:
    return {
        "name": "request-headers",
        "typed_config": {"@type": _TYPE + "type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": name},
    }


def _action(route: Config) -> Config:
    return {"action": {"name": "route", "typed_config": {"@type": _TYPE + "config.route.v3.Route", **route}}}


def _set_header(key: str, value: str) -> Config:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
