# SPDX-License-Identifier: Apache-2.0
"""Envoy's dynamic files from what is in force: secret (SDS), token check and limits (ECDS), clusters (CDS), routes
(RDS). Pure.

The bootstrap (listeners, filter chain, Ollama's cluster) is a template in cube_templates; the names below are the
contract with it. What is the same for all domains is in the bootstrap, and so in the image: which methods and paths
there are, which scope each needs, what a token and a body must have. What a domain adds is here: its keys and
issuers, its revocations, its models. Each policy's name says which answer the client gets (the bootstrap's
local_reply_config maps names to status and body).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cube_attestation import times
from cube_attestation.domains import Domain, DomainSet, Issuer
from cube_attestation.launch import Model

from . import rules
from .models import OLLAMA_SOCKET, VLLM_RUN, volume_name
from .rules import Config

CERTIFICATE = "tls"
ROUTES = "service"
JWT_FILTER = "cube.jwt"
LIMITS_FILTER = "cube.limits"
PATH_FILTER = "cube.path"
ACCESS_FILTER = "cube.access"
SCOPE_FILTER = "cube.scope"
BODY_FILTER = "envoy.filters.http.buffer"
MODEL_FILTER = "cube.model"
VLLM_FILTER = "cube.vllm"
OLLAMA_CLUSTER = "ollama"
AUDIT_CLUSTER = "audit"
AUDIT_PATH = "/audit/v1/records"
USAGE_PATH = "/usage"
DOMAIN_HEADER = "x-cube-domain"
ROUTE_METADATA = "cube"
MODELS_HEADER = "x-cube-models"
MAX_BODY_BYTES = 8 << 20  # the bootstrap's buffer limit

NOT_ADMITTED = "This machine is not admitted to serve. Try again later."
UNKNOWN_PATH = "Unknown path."

_TYPE = "type.googleapis.com/envoy."
_HTTP = _TYPE + "extensions.filters.http."
_REQUIREMENT = "pat"
_STREAM_SECONDS = 1800  # a stream that outlives its lease or its token's revocation ends here at the latest
_BACKEND_REQUESTS = 1024  # at the same time, of all domains
_MAX_ANSWER_BYTES = 64 << 10  # a list of 64 models with the longest names
_UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TRAILERS: Config = {"explicit_http_config": {"http_protocol_options": {"enable_trailers": True}}}
_JWT: Config = {
    "forward": False,
    "require_expiration": True,
    "clock_skew_seconds": 5,
    "jwt_cache_config": {"jwt_cache_size": 1000},
}
_OURS = ["x-cube-domain", "x-cube-model", "x-cube-name", MODELS_HEADER]  # a client's are removed before
_NOT_FOR_BACKENDS = ["authorization", "x-api-key", "cookie", "x-forwarded-for", "x-forwarded-proto", *_OURS]


@dataclass(frozen=True)
class View:
    """What routes depend on. ``domains`` is None unless inference may be served now.

    ``models``: the launch document's, by name. ``salt``: a secret of this boot, from which each domain's part of
    vLLM's prefix cache gets its name.
    """

    environment: str
    domains: DomainSet | None
    failed: frozenset[str]
    max_body_bytes: int
    created: int
    models: Mapping[str, Model] = field(default_factory=dict)
    salt: bytes = b""
    ollama_socket: str = str(OLLAMA_SOCKET)
    vllm_run: str = str(VLLM_RUN)

    def served(self) -> tuple[Domain, ...]:
        return self.domains.domains if self.domains else ()

    def behind(self, domain: Domain, backend: str) -> dict[str, str]:
        """Of the domain's models those that ``backend`` serves: the launch document's by the client's name."""
        return {shown: name for shown, name in domain.mapping.items() if self.models[name].backend == backend}


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
    """ECDS: the jwt_authn filter with the keys of all domains and of the issuers that they name.

    One provider for all domains' own tokens: a key is tied to its domain by RBAC (its kid, which the domain set
    makes unique), so the cost of a request does not grow with the number of domains. A domain with issuers has
    providers of its own for them, whose claims go to other metadata: no rule for one kind of token reads the other.
    """
    keys = [key.to_json() for domain in view.served() for key in domain.keys]
    providers: Config = {}
    requirements: Config = {}
    if keys:
        providers[_REQUIREMENT] = _pat(view.environment, keys)
        requirements[_REQUIREMENT] = {"provider_name": _REQUIREMENT}
    for domain in view.served():
        if domain.issuers:
            own = {f"{domain.id}/{i}": _oidc(issuer) for i, issuer in enumerate(domain.issuers)}
            providers |= own
            either: list[Config] = [{"provider_name": name} for name in ([_REQUIREMENT] if keys else []) + [*own]]
            requirements[domain.id] = {"requires_any": {"requirements": either}} if len(either) > 1 else either[0]
    config: Config = {
        "@type": _HTTP + "jwt_authn.v3.JwtAuthentication",
        "providers": providers,
        "requirement_map": requirements,
    }
    return _extension(JWT_FILTER, config)


def _pat(environment: str, keys: Sequence[object]) -> Config:
    return {
        "audiences": [environment],
        "local_jwks": {"inline_string": json.dumps({"keys": keys})},
        "from_headers": [
            {"name": "authorization", "value_prefix": "Bearer pat_"},
            {"name": "x-api-key", "value_prefix": "pat_"},  # where Anthropic's clients put it
        ],
        "payload_in_metadata": "payload",
        "header_in_metadata": "header",
        **_JWT,
    }


def _oidc(issuer: Issuer) -> Config:
    return {
        "issuer": issuer.issuer,
        "audiences": list(issuer.audiences),
        "local_jwks": {"inline_string": json.dumps({"keys": [dict(key) for key in issuer.keys]})},
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "payload_in_metadata": "oidc",
        **_JWT,
    }


def limits(view: View) -> Config:
    """ECDS: the rate limit filter with a bucket for each domain that has a limit; its routes say whose they are."""
    descriptors = [
        {"entries": [{"key": "domain", "value": domain.id}], "token_bucket": _bucket(rate)}
        for domain in view.served()
        if (rate := domain.limits.requests_per_minute) is not None
    ]
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    by_route = {
        "descriptor_key": "domain",
        "metadata_key": {"key": ROUTE_METADATA, "path": [{"key": "domain"}]},
        "source": "ROUTE_ENTRY",
        "skip_if_absent": True,
    }
    config: Config = {
        "@type": _HTTP + "local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "limits",
        # requests that no descriptor is for: not limited
        "token_bucket": {"max_tokens": 4_000_000_000, "tokens_per_fill": 4_000_000_000, "fill_interval": "1s"},
        "always_consume_default_token_bucket": False,
        "descriptors": descriptors,
        "rate_limits": [{"actions": [{"metadata": by_route}]}],
    }
    if descriptors:
        config |= {"filter_enabled": always, "filter_enforced": always}
    return _extension(LIMITS_FILTER, config)


def _bucket(per_minute: int) -> Config:
    return {"max_tokens": per_minute, "tokens_per_fill": 1, "fill_interval": f"{60 / per_minute:.6f}s"}


def _extension(name: str, config: Config) -> Config:
    kind = _TYPE + "config.core.v3.TypedExtensionConfig"
    return {"resources": [{"@type": kind, "name": name, "typed_config": config}]}


def clusters(view: View, before: View | None = None) -> Config:
    """CDS: a cluster for each vLLM process, and one more on a backend for each domain with a limit of its own.

    ``before``: the view whose routes are in force until the new ones are; what they lead to stays.
    """
    found: dict[str, Config] = {}
    for one in (view, before):
        if one is not None:
            found = _clusters(one) | found
    return {"resources": list(found.values())}


def _clusters(view: View) -> dict[str, Config]:
    vllm = {volume_name(model): model for model in view.models.values() if model.backend == "vllm"}
    found = {name: _pipe(name, _vllm_socket(view, name), _BACKEND_REQUESTS) for name in vllm}
    for domain in view.served():
        if (most := domain.limits.concurrent_requests) is not None:
            volumes = {volume_name(view.models[model]) for model in view.behind(domain, "vllm").values()}
            for backend in sorted(volumes) + [OLLAMA_CLUSTER] * bool(view.behind(domain, "ollama")):
                name = _cluster(domain, backend)
                path = view.ollama_socket if backend == OLLAMA_CLUSTER else _vllm_socket(view, backend)
                found[name] = _pipe(name, path, most)
    return found


def _cluster(domain: Domain, backend: str) -> str:
    return backend if domain.limits.concurrent_requests is None else f"{backend}/{domain.id}"


def _vllm_socket(view: View, volume: str) -> str:
    return f"{view.vllm_run}/{volume}.sock"


def _pipe(name: str, path: str, requests: int) -> Config:
    """A cluster that takes ``requests`` at a time; one that has to wait for its connection is not yet counted."""
    address = {"pipe": {"path": path}}
    most = {"max_connections": _BACKEND_REQUESTS, "max_pending_requests": requests, "max_requests": requests}
    return {
        "@type": _TYPE + "config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {
            _UPSTREAM: {"@type": _TYPE + _UPSTREAM.removeprefix("envoy."), **_TRAILERS}
        },
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def routes(view: View) -> Config:
    """RDS: a tree over the domains' prefixes, or one answer 503 while nothing may be served.

    The bootstrap's first filter has taken a leading ``/proxy`` away.
    """
    if view.domains is None:
        host: Config = {"routes": [_direct(503, NOT_ADMITTED)]}
    else:
        prefixes: Config = {}
        for domain in view.domains.domains:
            prefix = f"/{domain.id}/"
            prefixes[prefix] = _action("RouteList", {"routes": _domain_routes(view, domain, prefix)})
        unknown = _action("Route", _direct(404, UNKNOWN_PATH))
        tree = {"input": _header_input(":path"), "prefix_match_map": {"map": prefixes}}
        # a tree with nothing in it is not valid
        host = {"matcher": {"matcher_tree": tree, "on_no_match": unknown} if prefixes else {"on_no_match": unknown}}
    value = {
        "@type": _TYPE + "config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "max_direct_response_body_size_bytes": _MAX_ANSWER_BYTES,
        "virtual_hosts": [{"name": ROUTES, "domains": ["*"], **host}],
    }
    return {"resources": [value]}


def _domain_routes(view: View, domain: Domain, prefix: str) -> list[Config]:
    """What is below ``prefix``. The image's allow-list has let only known methods and paths come here.

    A body's model is known only after a first match without it, and the filters before it have run with that
    match's rules: all POST routes have the same.
    """
    ollama, vllm = view.behind(domain, "ollama"), view.behind(domain, "vllm")
    access: Config = {
        JWT_FILTER: {
            "@type": _HTTP + "jwt_authn.v3.PerRouteConfig",
            "requirement_name": domain.id if domain.issuers else _REQUIREMENT,
        },
        ACCESS_FILTER: rules.deny(_access_policies(domain)),
    }
    asked = access | {
        BODY_FILTER: {
            "@type": _HTTP + "buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": _body_limit(view, domain)},
        },
        MODEL_FILTER: rules.deny(_model_policies(domain, view)),
    }
    read = access | {MODEL_FILTER: rules.let_all()}

    def route(name: str, match: Config, action: Config, filters: Config) -> Config:
        metadata = {"filter_metadata": {ROUTE_METADATA: {"domain": domain.id}}}
        return {
            "name": f"{domain.id}/{name}",
            "match": match,
            **action,
            "metadata": metadata,
            "typed_per_filter_config": filters,
        }

    post = {"prefix": prefix, **_method("POST")}
    speech = _answer(404, "No model of this domain takes audio.")
    found = [
        route(
            "vllm",
            _for_model(prefix, shown),
            _to_vllm(view, domain, model),
            asked | {VLLM_FILTER: _vllm_rewrite(view, domain, shown, model)},
        )
        for shown, model in vllm.items()
    ]
    found.append(route("ollama", post, _to_ollama(domain, ollama) if ollama else _answer(404, UNKNOWN_PATH), asked))
    found.insert(0, route("audio", {"prefix": f"{prefix}v1/audio/"}, speech, read))
    answers = _answers(view, domain, ollama)
    for path, body in answers.items():
        found.append(route(path, {"path": prefix + path, **_method("GET")}, _json_answer(body), read))
    if ollama:
        version = {"path": prefix + "api/version", **_method("GET")}
        found.append(route("api/version", version, _to_ollama(domain, ollama, "/api/version"), read))
    for path in (AUDIT_PATH, USAGE_PATH):
        own = {"path": prefix + path[1:], **_method("GET")}
        found.append(route(path[1:], own, _to_agent(domain, path), read))
    found.append(route("nothing", {"prefix": prefix}, _answer(404, UNKNOWN_PATH), read))
    return found


def _body_limit(view: View, domain: Domain) -> int:
    return min(view.max_body_bytes, MAX_BODY_BYTES, domain.limits.max_body_bytes or MAX_BODY_BYTES)


def _answers(view: View, domain: Domain, ollama: Mapping[str, str]) -> Config:
    """Answers that need no backend, by path: what the domain has, and nothing of any other."""
    shown = [name for name, model in domain.mapping.items() if model not in view.failed]
    entries = [{"id": name, "object": "model", "created": view.created, "owned_by": domain.name} for name in shown]
    found: Config = {"v1/models": {"object": "list", "data": entries}}
    found |= {f"v1/models/{entry['id']}": entry for entry in entries}
    if ollama:
        listed = [_ollama_entry(view, name, model) for name, model in ollama.items() if name in shown]
        modified = times.format_time(datetime.fromtimestamp(view.created, UTC))
        found["api/tags"] = {"models": [entry | {"modified_at": modified} for entry in listed]}
        found["api/ps"] = {"models": listed}
    return found


def _ollama_entry(view: View, name: str, model: str) -> dict[str, object]:
    """``digest`` is the volume's dm-verity root, which evidence names; ``size`` the volume's."""
    volume = view.models[model]
    return {"name": name, "model": name, "size": volume.size, "digest": volume.root, "details": {}}


def _to_ollama(domain: Domain, models: Mapping[str, str], rewrite: str = "/") -> Config:
    named = ",".join(f"{shown}={model}" for shown, model in models.items())
    return {
        "route": _forward(_cluster(domain, OLLAMA_CLUSTER)) | {"prefix_rewrite": rewrite},
        "request_headers_to_add": [
            _set_header("x-cube-domain", domain.id),
            _set_header("x-cube-model", f"%DYNAMIC_METADATA({rules.BODY_METADATA}:model)%"),
            _set_header("x-cube-name", f"%DYNAMIC_METADATA({rules.BODY_METADATA}:name)%"),
            _set_header(MODELS_HEADER, named),
        ],
        "request_headers_to_remove": _NOT_FOR_BACKENDS,
    }


def _to_agent(domain: Domain, path: str) -> Config:
    return {
        "route": {"cluster": AUDIT_CLUSTER, "timeout": "30s", "prefix_rewrite": path},
        "request_headers_to_add": [_set_header(DOMAIN_HEADER, domain.id)],
        "request_headers_to_remove": _NOT_FOR_BACKENDS,
    }


def _for_model(prefix: str, shown: str) -> Config:
    """What asks for the model ``shown`` by the paths that vLLM has."""
    model = {"filter": rules.BODY_METADATA, "path": [{"key": "model"}], "value": rules.exact(shown)}
    return {"prefix": f"{prefix}v1/", **_method("POST"), "dynamic_metadata": [model]}


def _to_vllm(view: View, domain: Domain, model: str) -> Config:
    return {
        "route": _forward(_cluster(domain, volume_name(view.models[model]))) | {"prefix_rewrite": "/v1/"},
        "request_headers_to_remove": _NOT_FOR_BACKENDS,
    }


def _vllm_rewrite(view: View, domain: Domain, shown: str, model: str) -> Config:
    """What the bootstrap's script puts at the end of the body, where it counts, and how it names the model again.

    vLLM reads the last of several members of one name; the client's names its model as the client knows it.
    """
    salt = hmac.digest(view.salt, domain.id.encode(), hashlib.sha256).hex()
    tail = json.dumps({"model": model, "cache_salt": salt}, separators=(",", ":"))
    context: Config = {"tail": "," + tail[1:]}
    if shown != model:
        context["from"] = re.sub(r"(\W)", r"%\1", f'"model":"{model}"')  # as a pattern of Lua's
        context["to"] = f'"model":"{shown}"'
    return {"@type": _HTTP + "lua.v3.LuaPerRoute", "name": "vllm", "filter_context": context}


def _forward(cluster: str) -> Config:
    return {
        "cluster": cluster,
        "timeout": "0s",
        "max_stream_duration": {"max_stream_duration": f"{_STREAM_SECONDS}s"},
        "host_rewrite_literal": "localhost",
    }


def _access_policies(domain: Domain) -> dict[str, Config]:
    claimed = rules.token("payload", "domain", rules.one_of([domain.id]))
    own_key = rules.token("header", "kid", rules.one_of([key.kid for key in domain.keys]))
    issued = rules.token("payload", "iss", rules.one_of([f"cube:{domain.id}"]))
    members = [_member(issuer) for issuer in domain.issuers]
    policies = {
        # says that it is this domain's, but another key made it
        "2.token.forged": rules.all_of(claimed, rules.not_(rules.all_of(own_key, issued))),
        "5.domain": rules.not_(rules.any_of(claimed, *members)),
    }
    if domain.revoked:
        listed = rules.one_of(domain.revoked)
        revoked = [rules.token(kind, "jti", listed) for kind in ["payload"] + ["oidc"] * bool(members)]
        policies["4.token.revoked"] = rules.any_of(*revoked)
    return policies


def _member(issuer: Issuer) -> Config:
    """A token of the issuer that says what the domain asks for."""
    wanted = [rules.token("oidc", claim, rules.holds(value)) for claim, value in issuer.claims.items()]
    return rules.all_of(rules.token("oidc", "iss", rules.exact(issuer.issuer)), *wanted)


def _model_policies(domain: Domain, view: View) -> dict[str, Config]:
    names = list(domain.mapping)
    by_name = rules.all_of(rules.path_ends("/api/show"), rules.not_(rules.body("model", rules.any_string())))
    policies = {
        "1.body.json": rules.body("error", rules.exact("1")),
        "2.body.variant": rules.body("variant", {"present_match": True}),
        "3.body.model": rules.not_(
            rules.any_of(
                rules.body("model", rules.any_string()),
                rules.all_of(by_name, rules.body("name", rules.any_string())),
            )
        ),
        "5.model.unknown": rules.not_(
            rules.any_of(
                rules.body("model", rules.one_of(names)),
                rules.all_of(by_name, rules.body("name", rules.one_of(names))),
            )
        ),
    }
    if view.behind(domain, "vllm"):
        policies["2.body.salt"] = rules.body("cache_salt", {"present_match": True})
    if broken := [shown for shown, model in domain.mapping.items() if model in view.failed]:
        policies["4.model.failed"] = rules.body("model", rules.one_of(broken))
    return policies


def _json_answer(body: object) -> Config:
    return _answer(200, json.dumps(body, separators=(",", ":"))) | {
        "response_headers_to_add": [_set_header("content-type", "application/json")]
    }


def _answer(status: int, body: str) -> Config:
    return {"direct_response": {"status": status, "body": {"inline_string": body}}}


def _direct(status: int, message: str) -> Config:
    """The same answer to everybody and everything."""
    filters = (PATH_FILTER, ACCESS_FILTER, SCOPE_FILTER, MODEL_FILTER)
    return {
        "match": {"prefix": "/"},
        **_answer(status, message),
        "typed_per_filter_config": {name: rules.let_all() for name in filters},
    }


def _method(method: str) -> Config:
    return {"headers": [{"name": ":method", "string_match": {"exact": method}}]}


def _header_input(name: str) -> Config:
    return {
        "name": "request-headers",
        "typed_config": {"@type": _TYPE + "type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": name},
    }


def _action(kind: str, value: Config) -> Config:
    return {"action": {"name": "route", "typed_config": {"@type": f"{_TYPE}config.route.v3.{kind}", **value}}}


def _set_header(key: str, value: str) -> Config:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
