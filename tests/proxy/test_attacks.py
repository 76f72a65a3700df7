# SPDX-License-Identifier: Apache-2.0
"""Attacks on the real Envoy, each a test of its own: tokens, bodies, paths, headers. The backends count.

What goes below HTTP (framing, HTTP/2, slow and truncated) is in test_attacks_wire.py.
"""

from __future__ import annotations

import base64
import gzip
import hmac
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cube_attestation.domains import SCOPES
from joserfc import jwt
from joserfc.jwk import ECKey

POSTS = (
    *("v1/chat/completions", "v1/completions", "v1/embeddings", "v1/responses", "v1/messages"),
    *("api/chat", "api/generate", "api/embed", "api/embeddings", "api/show"),
)
QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]}


# Tokens


def _now() -> int:
    return int(time.time())


REFUSED_TOKENS: list[tuple[str, Callable[[Any, Any], str | None], int, str]] = [
    ("none", lambda a, b: None, 401, "invalid_api_key"),
    ("garbage", lambda a, b: "pat_garbage", 401, "invalid_api_key"),
    ("no prefix", lambda a, b: a.token().removeprefix("pat_"), 401, "invalid_api_key"),
    ("expired", lambda a, b: a.token(exp=_now() - 60), 401, "invalid_api_key"),
    ("no expiry", lambda a, b: a.token(exp=None), 401, "invalid_api_key"),
    ("not yet", lambda a, b: a.token(nbf=_now() + 600), 401, "invalid_api_key"),
    ("other environment", lambda a, b: a.token(aud="prod"), 403, "forbidden"),
    ("no audience", lambda a, b: a.token(aud=None), 403, "forbidden"),
    ("changed", lambda a, b: a.token()[:-8] + "AAAAAAAA", 401, "invalid_api_key"),
    (
        "another's key with our claims",
        lambda a, b: b.token(iss=f"cube:{a.id}", domain=a.id),
        401,
        "invalid_api_key",
    ),
    ("another's key under our kid", lambda a, b: b.token(header={"kid": a.kid}), 401, "invalid_api_key"),
    ("our key, another's issuer", lambda a, b: a.token(iss=f"cube:{b.id}"), 401, "invalid_api_key"),
    ("no kid", lambda a, b: a.token(header={"kid": None}), 401, "invalid_api_key"),
    ("other type", lambda a, b: a.token(header={"typ": "JWT"}), 401, "invalid_api_key"),
    ("no id", lambda a, b: a.token(jti=None), 401, "invalid_api_key"),
    ("revoked", lambda a, b: a.token(jti="revoked-one"), 401, "token_revoked"),
    ("another domain", lambda a, b: b.token(), 403, "domain_mismatch"),
    ("another domain's claim by our key", lambda a, b: a.token(domain=b.id), 403, "domain_mismatch"),
    ("no domain", lambda a, b: a.token(domain=None), 403, "domain_mismatch"),
    ("domain as a list", lambda a, b: a.token(domain=[a.id]), 403, "domain_mismatch"),
    ("no scope", lambda a, b: a.token(scopes=["audit_log"]), 403, "insufficient_scope"),
    ("scopes as text", lambda a, b: a.token(scopes="llm_read llm_chat_completions"), 403, "insufficient_scope"),
]


@pytest.mark.parametrize(
    ("make", "status", "code"), [case[1:] for case in REFUSED_TOKENS], ids=[c[0] for c in REFUSED_TOKENS]
)
def test_refused_tokens(attacked: Any, make: Callable[[Any, Any], str | None], status: int, code: str) -> None:
    for method, path in (("POST", "chat/completions"), ("GET", "models"), ("GET", "models/tiny")):
        body = QUESTION if method == "POST" else None
        answer = attacked.envoy.request(
            method, f"/{attacked.acme.id}/v1/{path}", make(attacked.acme, attacked.beta), body
        )
        assert (answer.status, answer.code) == (status, code), (path, answer)
        assert answer.headers["content-type"] == "application/json"
    assert attacked.reached == []


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _part(value: object) -> str:
    return _b64(json.dumps(value).encode())


def _refused_everywhere(attacked: Any, token: str, *statuses: int) -> None:
    for tenant in (attacked.acme, attacked.beta):
        for prefix in ("", "/proxy"):
            path = f"{prefix}/{tenant.id}/v1/chat/completions"
            answer = attacked.envoy.request("POST", path, token, {"model": tenant.models[0]})
            assert answer.status in (statuses or (401, 403)), answer
            assert answer.code
    assert attacked.reached == []


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", "null"])
@pytest.mark.parametrize("signature", ["", "AAAA", "kept"])
def test_algorithm_none(attacked: Any, algorithm: str, signature: str) -> None:
    _, payload, kept = attacked.acme.token().split(".")
    head = _part({"alg": algorithm, "kid": attacked.acme.kid, "typ": "cube-pat+jwt"})
    _refused_everywhere(attacked, f"pat_{head}.{payload}.{kept if signature == 'kept' else signature}", 401)


@pytest.mark.parametrize("bits", [256, 384, 512])
@pytest.mark.parametrize("secret", ["jwk", "jwks", "x", "spki", "pem", "empty"])
def test_symmetric_signature_with_the_public_key(attacked: Any, bits: int, secret: str) -> None:
    public = attacked.acme.public()
    secrets = {
        "jwk": json.dumps(public).encode(),
        "jwks": json.dumps({"keys": [public]}).encode(),
        "x": base64.urlsafe_b64decode(public["x"] + "="),
        "spki": attacked.acme.key.as_der(private=False),
        "pem": attacked.acme.key.as_pem(private=False),
        "empty": b"",
    }
    payload = attacked.acme.token().split(".")[1]
    head = _part({"alg": f"HS{bits}", "kid": attacked.acme.kid, "typ": "cube-pat+jwt"})
    mac = hmac.digest(secrets[secret], f"{head}.{payload}".encode(), f"sha{bits}")
    _refused_everywhere(attacked, f"pat_{head}.{payload}.{_b64(mac)}", 401)


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(64), bytes(63), bytes(96), bytes(31) + b"\1" + bytes(31) + b"\1", b"\xff" * 64, b"0" * 4096],
    ids=["none", "zero", "short", "long", "one and one", "all ones", "much"],
)
def test_signatures_that_are_none(attacked: Any, signature: bytes) -> None:
    head, payload, _ = attacked.acme.token().split(".")
    _refused_everywhere(attacked, f"{head}.{payload}.{_b64(signature)}", 401)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "ES384"},
        {"alg": "RS256"},
        {"alg": "EdDSA"},
        {"alg": ["ES256"]},
        {"alg": "ES256 "},
        {"kid": "../../../../dev/null"},
        {"kid": "' or 1=1 --"},
        {"kid": ["x"]},
        {"kid": ""},
        {"typ": "JWT"},
        {"typ": "CUBE-PAT+JWT"},
        {"zip": "DEF", "enc": "A256GCM", "alg": "dir"},
    ],
    ids=str,
)
def test_headers_of_a_token(attacked: Any, header: dict[str, object]) -> None:
    """Signed as it stands by the domain's own key, so that only the header can be the reason."""
    _, payload, _ = attacked.acme.token().split(".")
    whole = {"alg": "ES256", "kid": attacked.acme.kid, "typ": "cube-pat+jwt", **header}
    _refused_everywhere(attacked, _signed(attacked.acme, _part(whole), payload))


def _signed(tenant: Any, head: str, payload: str) -> str:
    """A token whose signature is right, whatever ``head`` and ``payload`` are."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    der = tenant.key.private_key.sign(f"{head}.{payload}".encode(), ec.ECDSA(hashes.SHA256()))
    r, s = utils.decode_dss_signature(der)
    return f"pat_{head}.{payload}.{_b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def test_a_signature_of_our_own_making_counts(attacked: Any) -> None:
    """Else the two tests that use it would show nothing."""
    head, payload, _ = attacked.acme.token().removeprefix("pat_").split(".")
    assert attacked.chat(_signed(attacked.acme, head, payload)).status == 200


def test_claims_that_occur_twice_do_not_open_another_domain(attacked: Any) -> None:
    """A domain's own administrator signs both his domain and another one."""
    now = int(time.time())
    head = _part({"alg": "ES256", "kid": attacked.acme.kid, "typ": "cube-pat+jwt"})
    for first, second in ((attacked.acme, attacked.beta), (attacked.beta, attacked.acme)):
        for names in (("domain", "domain"), ("domain", "\\u0064omain")):
            names_of = f'"iss":"cube:{attacked.beta.id}","iss":"cube:{attacked.acme.id}"'
            rest = f'"aud":"local","exp":{now + 600},"jti":"x","scopes":["llm_chat_completions"]'
            text = f'{{{names_of},{rest},"{names[0]}":"{first.id}","{names[1]}":"{second.id}"}}'
            token = _signed(attacked.acme, head, _b64(text.encode()))
            path = f"/{attacked.beta.id}/v1/chat/completions"
            answer = attacked.envoy.request("POST", path, token, {"model": "other"})
            assert answer.status in (401, 403)
    assert attacked.reached == []


@pytest.mark.parametrize(
    "change",
    [
        lambda id: id.upper(),
        lambda id: id.replace("-", ""),
        lambda id: id + "\u0000",
        lambda id: id + " ",
        lambda id: "\u200b" + id,
        lambda id: "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in id),
        lambda id: id.replace("a", "\u0430").replace("e", "\u0435").replace("c", "\u0441"),
        lambda id: f"{{{id}}}",
        lambda id: f"urn:uuid:{id}",
        lambda id: id[:-1],
    ],
    ids=[
        *(
            "upper case",
            "no dashes",
            "NUL",
            "blank",
            "zero width",
            "full width digits",
            "cyrillic",
            "braces",
            "urn",
        ),
        "cut",
    ],
)
def test_domains_that_look_like_one(attacked: Any, change: Callable[[str], str]) -> None:
    """As the token's claim, and as the path where it can be one."""
    odd = change(attacked.acme.id)
    if odd != attacked.acme.id:
        answer = attacked.chat(attacked.acme.token(domain=odd))
        assert (answer.status, answer.code) == (403, "domain_mismatch")
        quoted = "".join(
            c if c.isascii() and c.isprintable() and c not in " {}" else f"%{b:02x}"
            for c in odd
            for b in c.encode()
        )
        answer = attacked.chat(attacked.acme.token(), path=f"/{quoted}/v1/chat/completions")
        assert answer.status in (400, 404), answer
        assert attacked.reached == []


@pytest.mark.parametrize("size", [8 << 10, 20 << 10, 31 << 10, 40 << 10, 200 << 10])
@pytest.mark.parametrize("kind", ["letters", "dots", "signed"])
def test_oversized_tokens(attacked: Any, size: int, kind: str) -> None:
    if kind == "signed":
        token = attacked.acme.token(padding="x" * (size * 3 // 4))
    else:
        token = "pat_" + ("a" if kind == "letters" else ".") * size
    try:
        answer = attacked.chat(token)
    except (ConnectionError, OSError):
        assert size > 32 << 10  # Envoy hangs up while we still send
    else:
        good = kind == "signed" and answer.status == 200
        assert good or (answer.status, answer.code) in ((401, "invalid_api_key"), (431, "headers_too_large"))
        if good:
            attacked.backend.requests.clear()
    assert attacked.reached == []
    assert attacked.chat(attacked.acme.token()).status == 200  # and nobody else suffers


@pytest.mark.parametrize(
    "form",
    [
        "bearer {t}",
        "BEARER {t}",
        "Bearer  {t}",
        "Basic {t}",
        "{t}",
        "Bearer {t} x",
        "Bearer {t},Bearer {t}",
        "Bearer pat_{t}",
        "Token {t}",
        'Bearer "{t}"',
        "Bearer %70at_{t}",
    ],
)
def test_other_ways_to_write_a_token(attacked: Any, form: str) -> None:
    """Refused, or served to the domain whose token it is; never to another one."""
    for tenant in (attacked.acme, attacked.beta):
        value = form.format(t=tenant.token())
        path = f"/{attacked.acme.id}/v1/chat/completions"
        answer = attacked.envoy.request("POST", path, None, QUESTION, headers={"authorization": value})
        assert answer.status in ((200, 401) if tenant is attacked.acme else (401, 403))
    assert len(attacked.reached) <= 1


def test_a_token_elsewhere_is_none(attacked: Any) -> None:
    token = attacked.acme.token()
    path = f"/{attacked.acme.id}/v1/models"
    for headers in (
        {"cookie": f"access_token={token}"},
        {"proxy-authorization": f"Bearer {token}"},
        {"x-authorization": f"Bearer {token}"},
        {"x-forwarded-authorization": f"Bearer {token}"},
        {"api-key": token},
        {"x-jwt-payload": token.split(".")[1]},
        {"x-envoy-jwt-payload": token.split(".")[1]},
    ):
        assert attacked.envoy.request("GET", path, headers=headers).status == 401
    assert attacked.envoy.request("GET", f"{path}?access_token={token}").status == 404


def test_a_key_that_is_swapped_out_is_out(attacked: Any, make_set: Any) -> None:
    """A token of the old key that was in use, and one that claims the new key's id."""
    old, token = attacked.acme.key, attacked.acme.token()
    assert attacked.chat(token).status == 200
    attacked.acme.key = ECKey.generate_key("P-256")
    attacked.envoy.apply(make_set(attacked.acme, attacked.beta))
    attacked.backend.requests.clear()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    header = {"alg": "ES256", "kid": attacked.acme.kid, "typ": "cube-pat+jwt"}
    for bad in (token, "pat_" + jwt.encode(header, claims, old)):
        answer = attacked.chat(bad)
        assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert attacked.reached == []
    assert attacked.chat(attacked.acme.token()).status == 200


def test_one_domains_key_moved_into_another_domain(attacked: Any, make_set: Any) -> None:
    """After an exchange of keys each old token is for neither."""
    tokens = attacked.acme.token(), attacked.beta.token()
    attacked.acme.key, attacked.beta.key = attacked.beta.key, attacked.acme.key
    attacked.envoy.apply(make_set(attacked.acme, attacked.beta))
    for token in tokens:
        _refused_everywhere(attacked, token)


# Bodies


REFUSED_BODIES: list[tuple[str, bytes, int, str]] = [
    ("unknown model", b'{"model":"nope"}', 404, "model_not_found"),
    ("another domain's model", b'{"model":"other"}', 404, "model_not_found"),
    ("other case", b'{"model":"SmolLM2"}', 404, "model_not_found"),
    ("empty model", b'{"model":""}', 400, "missing_model"),
    ("no model", b'{"messages":[]}', 400, "missing_model"),
    ("number", b'{"model":1}', 400, "missing_model"),
    ("null", b'{"model":null}', 400, "missing_model"),
    ("list", b'{"model":["smollm2"]}', 400, "missing_model"),
    ("object", b'{"model":{"smollm2":1}}', 400, "missing_model"),
    ("last duplicate counts", b'{"model":"smollm2","model":"other"}', 404, "model_not_found"),
    ("case variant", b'{"model":"smollm2","Model":"other"}', 400, "ambiguous_model"),
    ("only a case variant", b'{"MODEL":"smollm2"}', 400, "ambiguous_model"),
    ("escaped case variant", b'{"model":"smollm2","\\u004dodel":"other"}', 400, "ambiguous_model"),
    ("not JSON", b'{"model":"smollm2"', 400, "invalid_json"),
    ("array", b'[{"model":"smollm2"}]', 400, "missing_model"),
    ("nested only", b'{"a":{"model":"smollm2"}}', 400, "missing_model"),
    ("nested in a list", b'{"a":[{"model":"smollm2"}]}', 400, "missing_model"),
    ("dotted", b'{"a.model":"smollm2"}', 400, "missing_model"),
    ("blank in the name", b'{"model ":"smollm2"}', 400, "missing_model"),
    ("NUL in the name", b'{"model\\u0000":"smollm2"}', 400, "missing_model"),
    ("escaped name, other value", b'{"mo\\u0064el":"other"}', 404, "model_not_found"),
    ("escaped duplicate", b'{"model":"smollm2","mo\\u0064el":"other"}', 404, "model_not_found"),
    ("first duplicate is another's", b'{"model":"smollm2","model":"hidden"}', 404, "model_not_found"),
    ("triple", b'{"model":"smollm2","model":"smollm2","model":"secret-large"}', 404, "model_not_found"),
    ("the launch document's name", b'{"model":"large"}', 404, "model_not_found"),
    ("NUL at the end", b'{"model":"smollm2\\u0000"}', 404, "model_not_found"),
    ("blank at the end", b'{"model":"smollm2 "}', 404, "model_not_found"),
    ("line feed at the end", b'{"model":"smollm2\\n"}', 404, "model_not_found"),
    ("with a tag", b'{"model":"smollm2:latest"}', 404, "model_not_found"),
    ("as a path", b'{"model":"./smollm2"}', 404, "model_not_found"),
    ("registry", b'{"model":"registry.ollama.ai/library/other"}', 404, "model_not_found"),
    ("zero width", '{"model":"smol\u200blm2"}'.encode(), 404, "model_not_found"),
    ("cyrillic", '{"model":"sm\u043ellm2"}'.encode(), 404, "model_not_found"),
    ("true", b'{"model":true}', 400, "missing_model"),
    ("single quotes", b"{'model':'smollm2'}", 400, "invalid_json"),
    ("comment", b'{/**/"model":"smollm2"}', 400, "invalid_json"),
    ("trailing comma", b'{"model":"smollm2",}', 400, "invalid_json"),
    ("NaN", b'{"model":"smollm2","x":NaN}', 400, "invalid_json"),
    ("raw control character", b'{"model":"smollm2","x":"\x01"}', 400, "invalid_json"),
    ("bytes that are not UTF-8", b'{"model":"smollm2","x":"\xff\xfe"}', 400, "invalid_json"),
    ("UTF-16", '{"model":"smollm2"}'.encode("utf-16"), 400, "invalid_json"),
    ("UTF-32", '{"model":"smollm2"}'.encode("utf-32-le"), 400, "invalid_json"),
    ("gzip", gzip.compress(b'{"model":"smollm2"}'), 400, "invalid_json"),
    ("a form", b"model=smollm2", 400, "invalid_json"),
    ("two lines of NDJSON", b'{"model":"smollm2"}\n{"model":"other"}', 400, "invalid_json"),
    ("a string", b'"smollm2"', 400, ""),
    ("null alone", b"null", 400, ""),
    ("trailing", b'{"model":"smollm2"}{"model":"other"}', 400, "invalid_json"),
    ("empty", b"", 400, "missing_model"),
]


@pytest.mark.parametrize(
    ("body", "status", "code"), [case[1:] for case in REFUSED_BODIES], ids=[c[0] for c in REFUSED_BODIES]
)
def test_refused_bodies(attacked: Any, body: bytes, status: int, code: str) -> None:
    token = attacked.acme.token(scopes=list(SCOPES))
    for path in POSTS:
        answer = attacked.chat(token, body, path=f"/{attacked.acme.id}/{path}")
        assert answer.status == status, (path, answer)
        assert code in ("", answer.code), (path, answer)
    assert attacked.reached == []


def test_every_case_variant_is_refused(attacked: Any) -> None:
    for letters in itertools.product(*((c, c.upper()) for c in "model")):
        if (name := "".join(letters)) != "model":
            answer = attacked.chat(attacked.acme.token(), {"model": "smollm2", name: "other"})
            assert (answer.status, answer.code) == (400, "ambiguous_model"), name
    assert attacked.reached == []


def test_an_escaped_name_is_the_same_name(attacked: Any) -> None:
    answer = attacked.chat(attacked.acme.token(), b'{"mo\\u0064el":"smollm2"}')
    assert answer.status == 200
    assert attacked.backend.requests[0][1]["x-cube-model"] == "smollm2"


def test_other_content_types_are_refused(attacked: Any) -> None:
    for kind in (
        *("text/plain", "application/x-www-form-urlencoded", "", "text/json", "application/jsonp", "*/*"),
        *("application/json-patch+json", "multipart/form-data; boundary=x", "application/x-ndjson"),
        *("text/plain; application/json", "text/plain,application/json", "application/octet-stream"),
    ):
        answer = attacked.chat(attacked.acme.token(), headers={"content-type": kind})
        assert (answer.status, answer.code) == (400, "invalid_json"), kind
    assert attacked.reached == []


def test_a_large_body_is_refused(attacked: Any) -> None:
    big = {**QUESTION, "messages": [{"role": "user", "content": "x" * (1 << 20)}]}
    answer = attacked.chat(attacked.acme.token(), big)
    assert (answer.status, answer.code) == (413, "too_large")
    assert attacked.reached == []


def test_a_deeply_nested_body_is_judged_or_refused(attacked: Any) -> None:
    for depth in (1_000, 100_000):
        for inner in (b"[" * depth + b"]" * depth, b'{"model":' * depth + b'"other"' + b"}" * depth):
            answer = attacked.chat(attacked.acme.token(), b'{"x":' + inner + b',"model":"other"}')
            assert answer.status in (400, 404, 413)
    assert attacked.reached == []
    assert attacked.envoy.process.poll() is None


def test_nothing_hides_behind_a_nul(attacked: Any) -> None:
    """Envoy's JSON reader takes it for the end; what stands behind reaches nobody (the adapter refuses it, too)."""
    for body in (
        b'{"model":"big"}\0',
        b'{"model":"big"}\0{"model":"hidden"}',
        b'{"model":"big"}\0,"model":"hidden"}',
    ):
        answer = attacked.chat(attacked.acme.token(), body)
        assert (answer.status, answer.code) == (400, "bad_request"), answer
    assert attacked.reached == []


def test_many_members_are_judged_by_the_last_model(attacked: Any) -> None:
    """A hundred thousand members before, between and after."""
    many = b",".join(b'"m%d":0' % i for i in range(50_000))
    body = b'{"model":"smollm2",' + many + b',"model":"other",' + many + b"}"
    answer = attacked.chat(attacked.acme.token(), body)
    assert (answer.status, answer.code) in ((404, "model_not_found"), (413, "too_large"))
    assert attacked.reached == []


def test_a_multipart_form_does_not_bring_a_model(attacked: Any) -> None:
    form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nother\r\n--x--\r\n'
    kind = {"content-type": "multipart/form-data; boundary=x"}
    token = attacked.acme.token(scopes=list(SCOPES))
    for path in (*POSTS, "v1/audio/transcriptions", "v1/audio/translations"):
        answer = attacked.chat(token, form, path=f"/{attacked.acme.id}/{path}", headers=kind)
        assert answer.status in (400, 404)
    assert attacked.reached == []


def test_a_body_on_a_read_is_not_passed_on(attacked: Any) -> None:
    for path in ("v1/models", "api/tags", "api/ps"):
        attacked.envoy.request("GET", f"/{attacked.acme.id}/{path}", attacked.acme.token(), {"model": "other"})
    assert attacked.reached == []


def test_no_answer_names_what_is_not_the_domains(attacked: Any) -> None:
    token = attacked.acme.token(scopes=list(SCOPES))
    answers = [
        attacked.chat(token, {"model": name}) for name in ("other", "hidden", "secret-large", "large", "nope")
    ]
    answers += [
        attacked.envoy.request(method, f"/{attacked.acme.id}/{path}", token)
        for method, path in (
            *(("GET", "v1/models"), ("GET", "v1/models/other"), ("GET", "v1/models/secret-large")),
            *(("GET", "api/tags"), ("GET", "api/ps"), ("GET", "nothing"), ("POST", "v1/models")),
        )
    ]
    answers.append(attacked.envoy.request("GET", f"/{attacked.beta.id}/v1/models", token))
    for answer in answers:
        text = (str(dict(answer.headers)) + answer.body.decode()).lower()
        for name in ("other", "hidden", "secret", 'large"', "beta", "globex", attacked.beta.id, "ollama", "vllm"):
            allowed = name == "other" and "for another domain" in text
            assert allowed or name not in text.replace("another domain", ""), (name, answer)


# Paths


PATHS = [
    ("POST", "/api/pull"),
    ("DELETE", "/api/delete"),
    ("POST", "/{a}/api/pull"),
    ("POST", "/proxy/{a}/api/create"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/{a}/v1/chat/completions/"),
    ("POST", "/{a}/v1/chat/completions?x=1"),
    ("POST", "/{a}/V1/chat/completions"),
    ("POST", "/proxy/proxy/{a}/v1/chat/completions"),
    ("POST", "/00000000-0000-0000-0000-000000000000/v1/chat/completions"),
    ("POST", "/{a}/invocations"),
    ("GET", "/"),
    # nothing of the management port is on this one
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("POST", "/attestation"),
    ("POST", "/attestation/activate"),
    ("GET", "/control/v1/state"),
    ("PUT", "/control/v1/domains"),
    ("GET", "/stats"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_paths_that_do_not_exist(attacked: Any, method: str, path: str) -> None:
    body = QUESTION if method in ("POST", "PUT") else None
    answer = attacked.envoy.request(method, path.format(a=attacked.acme.id), attacked.acme.token(), body)
    assert (answer.status, answer.code) == (404, "not_found"), answer
    assert attacked.reached == []


@pytest.mark.parametrize(
    "path",
    [
        "/{a}/../{b}/v1/chat/completions",
        "/{a}/v1/../../{b}/v1/chat/completions",
        "/{a}/%2e%2e/{b}/v1/chat/completions",
        "/{a}%2f..%2f{b}/v1/chat/completions",
        "/{a}/..%2f{b}/v1/chat/completions",
        "/{a}/..%5c{b}/v1/chat/completions",
        "/{a}/..\\{b}/v1/chat/completions",
        "//{b}/v1/chat/completions",
        "/proxy//{b}/v1/chat/completions",
        "/{b}/v1/./chat/completions",
        "http://localhost/{b}/v1/chat/completions",
        "/{a}/..;/{b}/v1/chat/completions",
        "/{a};/{b}/v1/chat/completions",
        "/{a};x=/../{b}/v1/chat/completions",
        "/{a}/v1/chat/completions;x=1",
        "/{a}/v1/chat/completions;",
        "/{a}%00/v1/chat/completions",
        "/{a}/v1/chat/completions%00",
        "/{a}/v1/chat/completions%00/../../../{b}/v1/chat/completions",
        "/{a}/v1/chat/completions%20",
        "/{a}/v1/chat/completions%0d%0ax:y",
        "/{a}/v1/chat/completions#/{b}",
        "/{a}/v1/chat/completions?",
        "/{a}/v1/chat/completions?model=other",
        "/{a}/v1/chat%2fcompletions",
        "/{a}/v1/chat%252fcompletions",
        "/{a}%252f..%252f{b}/v1/chat/completions",
        "/{a}/%252e%252e/{b}/v1/chat/completions",
        "/{a}/%c0%ae%c0%ae/{b}/v1/chat/completions",
        "/{a}/%uff0e%uff0e/{b}/v1/chat/completions",
        "/{a}/v1/chat/completions/../../../api/pull",
        "/{a}/v1/models/../../../{b}/v1/models",
        "/proxy/../{b}/v1/chat/completions",
        "/proxy/{a}/../{b}/v1/chat/completions",
        "/proxy/{a}/proxy/{b}/v1/chat/completions",
        "/{a}/{b}/v1/chat/completions",
        "/{a}/proxy/{b}/v1/chat/completions",
        "/PROXY/{b}/v1/chat/completions",
        "/%70roxy/{b}/v1/chat/completions",
        "/{a}/V1/Chat/Completions",
        "/{a}/v1/chat/completions.",
        "/{a}/v1/chat/completions/" + "x" * 20_000,
    ],
)
def test_path_tricks_do_not_lead_into_another_domain(attacked: Any, path: str) -> None:
    answer = attacked.chat(
        attacked.acme.token(), {"model": "other"}, path=path.format(a=attacked.acme.id, b=attacked.beta.id)
    )
    assert answer.status in (400, 403, 404, 405), answer
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert attacked.reached == []


VLLM = (
    *(
        "invocations",
        "tokenize",
        "detokenize",
        "metrics",
        "load",
        "version",
        "docs",
        "redoc",
        "openapi.json",
        "ping",
    ),
    *("kv_event_sources", "generative_scoring", "scale_elastic_ep", "is_scaling_elastic_ep", "health", "score"),
    *("rerank", "pooling", "classify", "sleep", "wake_up", "is_sleeping", "reset_prefix_cache", "server_info"),
    *("start_profile", "stop_profile", "collective_rpc", "update_weights", "pause", "resume", "abort_requests"),
    *(
        "v1/load_lora_adapter",
        "v1/unload_lora_adapter",
        "v1/score",
        "v1/rerank",
        "v2/rerank",
        "inference/v1/generate",
    ),
    *("v1/chat/completions/render", "v1/completions/render", "v1/realtime", "v1/files", "v1/batches", "metrics/"),
    *("v1/messages/count_tokens", "v1/responses/resp_1", "v1/responses/resp_1/cancel", "v1/images/generations"),
)
OLLAMA = (
    *("api/pull", "api/push", "api/create", "api/copy", "api/delete", "api/me", "api/signout", "api/status"),
    *("api/blobs/sha256:00", "api/user/keys/x", "api/experimental/aliases", "api", "api/", "v1/images/edits", ""),
)


@pytest.mark.parametrize("path", [*VLLM, *OLLAMA])
def test_backends_other_paths(attacked: Any, path: str) -> None:
    """Below the domain, below /proxy, below the domain's v1, and at the root; with every scope that there is."""
    token = attacked.acme.token(scopes=list(SCOPES))
    for prefix in (
        f"/{attacked.acme.id}/",
        f"/proxy/{attacked.acme.id}/",
        f"/{attacked.acme.id}/v1/",
        "/",
        "/proxy/",
    ):
        for method in ("GET", "POST", "DELETE"):
            for model in ("smollm2", "big"):
                body = {"model": model} if method == "POST" else None
                answer = attacked.envoy.request(method, prefix + path, token, body)
                assert answer.status in (404, 405), (method, prefix + path, answer)
                assert answer.code in ("not_found", "method_not_allowed")
    assert attacked.reached == []


# Headers


SPOOFED = {
    "x-cube-domain": "{b}",
    "x-cube-model": "other",
    "x-cube-name": "other",
    "x-cube-models": "smollm2=other,other=other",
    "x-request-id": "chosen-by-the-client",
    "x-client-trace-id": "chosen-by-the-client",
    "x-forwarded-for": "127.0.0.1",
    "x-forwarded-proto": "http",
    "x-forwarded-host": "internal",
    "x-forwarded-client-cert": "By=spiffe://admin",
    "x-forwarded-user": "admin",
    "x-real-ip": "127.0.0.1",
    "x-user": "admin",
    "x-user-id": "admin",
    "x-domain": "{b}",
    "x-domain-id": "{b}",
    "x-tenant-id": "{b}",
    "x-original-url": "/{b}/v1/models",
    "x-original-uri": "/{b}/v1/models",
    "x-rewrite-url": "/{b}/v1/models",
    "x-http-method-override": "DELETE",
    "x-envoy-original-path": "/{b}/v1/models",
    "x-envoy-upstream-alt-stat-name": "x",
    "x-envoy-retry-on": "5xx",
    "x-envoy-max-retries": "100",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-decorator-operation": "x",
    "x-envoy-force-trace": "1",
    "x-guardrails-request": "true",
    "host": "{b}.internal",
    "forwarded": "for=127.0.0.1;host=internal",
    "expect": "100-continue",
    "upgrade": "websocket",
    "http2-settings": "AAMAAABkAAQAAP__",
}


@pytest.mark.parametrize("name", SPOOFED)
def test_a_header_that_claims_something(attacked: Any, name: str) -> None:
    """It neither opens another domain nor changes what the backend is told."""
    value = SPOOFED[name].format(b=attacked.beta.id)
    attacked.chat(attacked.acme.token(), headers={name: value})
    for line, headers, body in attacked.reached:
        assert line == "POST /v1/chat/completions HTTP/1.1"
        assert json.loads(body) == QUESTION
        assert headers["host"] == "localhost"
        assert (headers["x-cube-domain"], headers["x-cube-model"]) == (attacked.acme.id, "smollm2")
        assert headers["x-cube-models"] == "smollm2=smollm2,tiny=tiny"
        assert headers.get("x-cube-name", "-") in ("", "-")
        assert headers["x-request-id"] != "chosen-by-the-client"
        assert "127.0.0.1" not in headers.get("x-forwarded-for", "")
    attacked.backend.requests.clear()
    answer = attacked.chat(attacked.acme.token(), {"model": "other"}, headers={name: value})
    assert answer.status in (400, 403, 404), answer
    other = f"/{attacked.beta.id}/v1/chat/completions"
    assert attacked.chat(attacked.acme.token(), {"model": "other"}, path=other, headers={name: value}).status in (
        400,
        403,
    )
    assert attacked.chat(None, headers={name: value}).status in (400, 401)
    assert attacked.reached == []


def test_a_connection_header_does_not_take_ours_away(attacked: Any) -> None:
    for listed in (
        "close, x-cube-model, x-cube-models, x-cube-domain",
        "x-request-id, authorization, content-length",
    ):
        answer = attacked.chat(attacked.acme.token(), headers={"connection": listed})
        for _, headers, _ in attacked.reached:
            assert {"x-cube-model", "x-cube-models", "x-cube-domain", "x-request-id", "content-length"} <= set(
                headers
            )
        assert answer.status in (200, 400, 401)


def test_headers_with_underscores_are_refused(attacked: Any) -> None:
    for name in ("x_cube_model", "x_cube_domain", "content_length", "transfer_encoding"):
        answer = attacked.chat(attacked.acme.token(), headers={name: "1"})
        assert answer.status == 400
    assert attacked.reached == []


def test_too_many_headers_are_refused(attacked: Any) -> None:
    answer = attacked.chat(attacked.acme.token(), headers={f"x-{i}": "1" for i in range(200)})
    assert answer.status in (400, 431)
    assert attacked.reached == []
