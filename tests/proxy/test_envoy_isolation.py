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


def test_a_body_as_large_as_allowed_passes(world: World, make_set: Callable[..., Any]) -> None:
    world.envoy.apply(make_set(world.acme, world.beta), max_body_bytes=1 << 30)  # capped by the bootstrap's 8 MiB
    for size, status in ((3 << 20, 200), (9 << 20, 413)):
        big = {**QUESTION, "messages": [{"role": "user", "content": "x" * size}]}
        assert world.chat(world.acme.token(), big).status == status
        other = world.chat(world.acme.token(), {**big, "model": "other"})
        assert other.status == (404 if status == 200 else 413)
    ((_, headers, _),) = world.backend.requests
    assert int(headers["content-length"]) > 3 << 20


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
