# SPDX-License-Identifier: Apache-2.0
"""A real Envoy with real tokens: what reaches the backend, and that nothing else does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

World = Any  # conftest's
QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]}


def test_nothing_is_served_without_a_domain_set(envoy_process: Any, backend: Any, tenants: tuple[Any, Any]) -> None:
    envoy_process.apply(None)
    acme, _ = tenants
    answer = envoy_process.request("POST", f"/{acme.id}/v1/chat/completions", acme.token(), QUESTION)
    assert (answer.status, answer.code) == (503, "unavailable")
    assert answer.headers["retry-after"]
    assert answer.headers["content-type"] == "application/json"
    assert envoy_process.request("GET", "/").status == 503
    assert backend.requests == []


@pytest.mark.parametrize("prefix", ["", "/proxy"])
def test_a_chat_reaches_the_backend_without_the_clients_credentials(world: World, prefix: str) -> None:
    token = world.acme.token()
    answer = world.chat(
        token,
        path=f"{prefix}/{world.acme.id}/v1/chat/completions",
        headers={
            "cookie": "session=1",
            "x-cube-model": "other",
            "x-cube-domain": world.beta.id,
            "x-envoy-upstream-rq-timeout-ms": "1",
            "x-request-id": "chosen-by-the-client",
            "x-forwarded-for": "8.8.8.8",
        },
    )
    assert answer.status == 200, answer
    assert answer.json["object"] == "chat.completion"
    ((line, headers, body),) = world.backend.requests
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert json.loads(body) == QUESTION
    assert headers["host"] == "localhost"
    assert headers["x-cube-model"] == "smollm2"
    assert headers["x-cube-domain"] == world.acme.id
    assert headers["x-request-id"] != "chosen-by-the-client"
    assert not {"authorization", "cookie", "x-forwarded-for", "x-envoy-upstream-rq-timeout-ms"} & set(headers)
    assert token.removeprefix("pat_") not in str(headers)


def test_models_are_those_of_the_domain(world: World) -> None:
    for prefix in ("", "/proxy"):
        answer = world.envoy.request("GET", f"{prefix}/{world.acme.id}/v1/models", world.acme.token())
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert [model["id"] for model in answer.json["data"]] == ["smollm2", "tiny"]
        one = world.envoy.request("GET", f"{prefix}/{world.acme.id}/v1/models/tiny", world.acme.token())
        assert (one.status, one.json["id"], one.json["object"]) == (200, "tiny", "model")
    hidden = world.envoy.request("GET", f"/{world.acme.id}/v1/models/other", world.acme.token())
    assert (hidden.status, hidden.code) == (404, "not_found")
    assert world.backend.requests == []


def test_streams_come_as_they_are_made(world: World) -> None:
    world.backend.delay = 0.3
    connection = world.envoy.connection()
    body = json.dumps({**QUESTION, "stream": True})
    headers = {"content-type": "application/json", "authorization": f"Bearer {world.acme.token()}"}
    connection.request("POST", f"/{world.acme.id}/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert response.status == 200
    times = []
    while response.readline():
        times.append(time.monotonic())
    connection.close()
    assert len(times) == 6
    assert times[-1] - times[0] > 0.5  # not all at once


def test_a_client_that_leaves_ends_the_work(world: World) -> None:
    world.backend.delay = 0.2
    connection = world.envoy.connection()
    headers = {"content-type": "application/json", "authorization": f"Bearer {world.acme.token()}"}
    body = json.dumps({**QUESTION, "stream": True})
    connection.request("POST", f"/{world.acme.id}/v1/chat/completions", body, headers)
    response = connection.getresponse()
    response.readline()
    response.close()
    connection.close()
    assert world.backend.cancelled.wait(3)


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
def test_refused_tokens(world: World, make: Callable[[Any, Any], str | None], status: int, code: str) -> None:
    for method, path in (("POST", "chat/completions"), ("GET", "models"), ("GET", "models/tiny")):
        body = QUESTION if method == "POST" else None
        answer = world.envoy.request(method, f"/{world.acme.id}/v1/{path}", make(world.acme, world.beta), body)
        assert (answer.status, answer.code) == (status, code), (path, answer)
        assert answer.headers["content-type"] == "application/json"
    assert world.backend.requests == []


def test_unsigned_and_symmetric_tokens(world: World) -> None:
    import base64
    import hashlib
    import hmac

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    payload = world.acme.token().split(".")[1]
    none = f"pat_{part({'alg': 'none', 'kid': world.acme.kid, 'typ': 'cube-pat+jwt'})}.{payload}."
    head = part({"alg": "HS256", "kid": world.acme.kid, "typ": "cube-pat+jwt"})
    secret = json.dumps(world.acme.public()).encode()
    mac = base64.urlsafe_b64encode(hmac.digest(secret, f"{head}.{payload}".encode(), hashlib.sha256)).decode()
    for token in (none, f"pat_{head}.{payload}.{mac.rstrip('=')}", "pat_" + "a" * 20000):
        answer = world.chat(token)
        assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert world.backend.requests == []


def test_scopes_open_only_their_paths(world: World) -> None:
    reader = world.acme.token(scopes=["llm_read"])
    chatter = world.acme.token(scopes=["llm_chat_completions"])
    assert world.envoy.request("GET", f"/{world.acme.id}/v1/models", reader).status == 200
    assert world.chat(reader).code == "insufficient_scope"
    assert world.envoy.request("GET", f"/{world.acme.id}/v1/models", chatter).code == "insufficient_scope"
    assert world.chat(chatter).status == 200


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
    ("trailing", b'{"model":"smollm2"}{"model":"other"}', 400, "invalid_json"),
    ("empty", b"", 400, "missing_model"),
]


@pytest.mark.parametrize(
    ("body", "status", "code"), [case[1:] for case in REFUSED_BODIES], ids=[c[0] for c in REFUSED_BODIES]
)
def test_refused_bodies(world: World, body: bytes, status: int, code: str) -> None:
    answer = world.chat(world.acme.token(), body)
    assert (answer.status, answer.code) == (status, code), answer
    assert world.backend.requests == []


def test_every_case_variant_is_refused(world: World) -> None:
    import itertools

    for letters in itertools.product(*((c, c.upper()) for c in "model")):
        if (name := "".join(letters)) != "model":
            answer = world.chat(world.acme.token(), {"model": "smollm2", name: "other"})
            assert (answer.status, answer.code) == (400, "ambiguous_model"), name
    assert world.backend.requests == []


def test_an_escaped_name_is_the_same_name(world: World) -> None:
    answer = world.chat(world.acme.token(), b'{"mo\\u0064el":"smollm2"}')
    assert answer.status == 200
    assert world.backend.requests[0][1]["x-cube-model"] == "smollm2"


def test_other_content_types_are_refused(world: World) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = world.chat(world.acme.token(), headers={"content-type": kind})
        assert (answer.status, answer.code) == (400, "invalid_json"), kind
    assert world.backend.requests == []


def test_a_large_body_is_refused(world: World) -> None:
    big = {**QUESTION, "messages": [{"role": "user", "content": "x" * (1 << 20)}]}
    answer = world.chat(world.acme.token(), big)
    assert (answer.status, answer.code) == (413, "too_large")
    assert world.backend.requests == []


def test_a_body_as_large_as_allowed_passes(world: World, make_set: Callable[..., Any]) -> None:
    world.envoy.apply(make_set(world.acme, world.beta), max_body_bytes=1 << 30)  # capped by the bootstrap's 8 MiB
    for size, status in ((3 << 20, 200), (9 << 20, 413)):
        big = {**QUESTION, "messages": [{"role": "user", "content": "x" * size}]}
        assert world.chat(world.acme.token(), big).status == status
        other = world.chat(world.acme.token(), {**big, "model": "other"})
        assert other.status == (404 if status == 200 else 413)
    ((_, headers, _),) = world.backend.requests
    assert int(headers["content-length"]) > 3 << 20


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
def test_paths_that_do_not_exist(world: World, method: str, path: str) -> None:
    body = QUESTION if method in ("POST", "PUT") else None
    answer = world.envoy.request(method, path.format(a=world.acme.id), world.acme.token(), body)
    assert (answer.status, answer.code) == (404, "not_found"), answer
    assert world.backend.requests == []


def test_other_methods_are_refused(world: World) -> None:
    for method, path in (("GET", "chat/completions"), ("PUT", "chat/completions"), ("POST", "models")):
        answer = world.envoy.request(method, f"/{world.acme.id}/v1/{path}", world.acme.token(), QUESTION)
        assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert world.backend.requests == []


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
    ],
)
def test_path_tricks_do_not_lead_into_another_domain(world: World, path: str) -> None:
    answer = world.chat(world.acme.token(), {"model": "other"}, path=path.format(a=world.acme.id, b=world.beta.id))
    assert answer.status in (400, 403, 404), answer
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert world.backend.requests == []


def _raw(world: World, text: str, body: bytes = b"") -> bytes:
    head = text.format(path=f"/{world.acme.id}/v1/chat/completions", token=world.acme.token())
    found: bytes = world.envoy.raw(head.replace("\n", "\r\n").encode() + body)
    return found


GOOD = json.dumps(QUESTION).encode()
SMUGGLING = [
    "POST {path} HTTP/1.1\nhost: localhost\nauthorization: Bearer {token}\ncontent-type: application/json\n"
    f"content-length: {len(GOOD)}\ntransfer-encoding: chunked\nconnection: close\n\n",
    "POST {path} HTTP/1.1\nhost: localhost\nauthorization: Bearer {token}\ncontent-type: application/json\n"
    f"content-length: {len(GOOD)}\ncontent-length: 5\nconnection: close\n\n",
    "POST {path} HTTP/1.1\nhost: localhost\nauthorization: Bearer {token}\ncontent-type: application/json\n"
    f"content_length: 5\ncontent-length: {len(GOOD)}\nconnection: close\n\n",
    "POST {path} HTTP/1.0\nhost: localhost\nauthorization: Bearer {token}\ncontent-type: application/json\n"
    f"content-length: {len(GOOD)}\n\n",
]


@pytest.mark.parametrize("head", SMUGGLING)
def test_ambiguous_framing_is_refused(world: World, head: str) -> None:
    answer = _raw(world, head, GOOD)
    assert not answer.startswith(b"HTTP/1.1 200"), answer
    assert world.backend.requests == []


def test_a_chunked_body_is_judged_like_any_other(world: World) -> None:
    head = (
        "POST {path} HTTP/1.1\nhost: localhost\nauthorization: Bearer {token}\ncontent-type: application/json\n"
        "transfer-encoding: chunked\nconnection: close\n\n"
    )
    chunked = b"5\r\n" + GOOD[:5] + b"\r\n%x\r\n" % len(GOOD[5:]) + GOOD[5:] + b"\r\n0\r\n\r\n"
    assert _raw(world, head, chunked).startswith(b"HTTP/1.1 200")
    ((_, headers, body),) = world.backend.requests
    assert body == GOOD  # the buffer filter gave it a Content-Length
    assert headers["content-length"] == str(len(GOOD))


def test_a_revocation_holds_on_an_open_connection(world: World, make_set: Callable[..., Any]) -> None:
    token = world.acme.token(jti="soon-revoked")
    connection = world.envoy.connection()
    headers = {"authorization": f"Bearer {token}"}
    path = f"/{world.acme.id}/v1/models"
    connection.request("GET", path, headers=headers)
    assert connection.getresponse().read()
    world.acme.revoked.append("soon-revoked")
    world.envoy.apply(make_set(world.acme, world.beta))
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (401, "token_revoked")
    connection.close()


def test_a_removed_domain_and_its_key_are_gone(world: World, make_set: Callable[..., Any]) -> None:
    world.envoy.apply(make_set(world.beta))
    assert world.chat(world.acme.token()).status == 404
    answer = world.envoy.request("GET", f"/{world.beta.id}/v1/models", world.acme.token())
    assert answer.status == 401  # a key that nobody has any more
    assert world.backend.requests == []


def test_a_failed_model_is_taken_out(world: World, make_set: Callable[..., Any]) -> None:
    world.envoy.apply(make_set(world.acme, world.beta), failed=frozenset({"smollm2"}))
    answer = world.chat(world.acme.token())
    assert (answer.status, answer.code) == (503, "model_failed")
    assert answer.headers["retry-after"]
    listed = world.envoy.request("GET", f"/{world.acme.id}/v1/models", world.acme.token())
    assert [model["id"] for model in listed.json["data"]] == ["tiny"]
    assert world.chat(world.acme.token(), {"model": "tiny"}).status == 200


def test_a_missing_backend_is_a_clear_503(
    envoy_process: Any, tenants: tuple[Any, Any], make_set: Callable[..., Any], run: Path
) -> None:
    assert not (run / "backend.sock").exists()
    acme, beta = tenants
    envoy_process.apply(make_set(acme, beta))
    answer = envoy_process.request("POST", f"/{acme.id}/v1/chat/completions", acme.token(), QUESTION)
    assert (answer.status, answer.code) == (503, "backend_unavailable")
    assert answer.headers["retry-after"]


def test_the_access_log_has_neither_content_nor_tokens(world: World) -> None:
    token = world.acme.token(jti="logged-id")
    secret = "a-word-of-the-prompt"
    world.chat(token, {**QUESTION, "messages": [{"role": "user", "content": secret}]})
    world.envoy.request("GET", f"/{world.acme.id}/v1/chat/completions?prompt={secret}", token)
    deadline = time.monotonic() + 15
    while "logged-id" not in (text := world.envoy.access_log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "logged-id" in text
    assert f"{world.acme.id}/ollama" in text
    assert secret not in text
    assert token[4:40] not in text
    assert token.rsplit(".", 1)[1] not in text
