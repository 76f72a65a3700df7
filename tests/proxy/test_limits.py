# SPDX-License-Identifier: Apache-2.0
"""A domain's own limits: body, requests a minute, requests at the same time. Another domain does not notice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # real servers, and waiting for their time limits


def chat(envoy: Any, tenant: Any, **more: Any) -> Any:
    body = {"model": tenant.models[0].partition("=")[0], **more}
    return envoy.request("POST", f"/{tenant.id}/v1/chat/completions", tenant.token(), body)


@pytest.fixture
def free(make_tenant: Any) -> Any:
    return make_tenant("free", ("tiny",))


def test_a_body_beyond_the_domains_limit(
    envoy_process: Any, backend: Any, make_tenant: Any, make_set: Any, free: Any
) -> None:
    small = make_tenant("small", ("smollm2",), limits={"max_body_bytes": 2048})
    envoy_process.apply(make_set(small, free))
    assert chat(envoy_process, small, x="x" * 1900).status == 200
    answer = chat(envoy_process, small, x="x" * 2100)
    assert (answer.status, answer.code) == (413, "too_large")
    assert chat(envoy_process, free, x="x" * 2100).status == 200
    assert len(backend.requests) == 2


def test_more_requests_than_a_minute_has(
    envoy_process: Any, backend: Any, make_tenant: Any, make_set: Any, free: Any
) -> None:
    slow = make_tenant("slow", ("smollm2",), limits={"requests_per_minute": 3})
    envoy_process.apply(make_set(slow, free))
    # who is not let in uses nothing up
    for _ in range(5):
        assert envoy_process.request("GET", f"/{slow.id}/v1/models", free.token()).status == 403
        assert envoy_process.request("GET", f"/{slow.id}/v1/models").status == 401
    # one bucket, whatever path and prefix
    assert chat(envoy_process, slow).status == 200
    assert envoy_process.request("GET", f"/proxy/{slow.id}/v1/models", slow.token()).status == 200
    assert envoy_process.request("GET", f"/{slow.id}/api/version", slow.token()).status == 200
    for method, path in (("POST", "chat/completions"), ("GET", "models")):
        body = {"model": "smollm2"} if method == "POST" else None
        answer = envoy_process.request(method, f"/{slow.id}/v1/{path}", slow.token(), body)
        assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
        assert answer.headers["retry-after"]
    assert all(chat(envoy_process, free).status == 200 for _ in range(10))
    assert sum("chat" in line for line, _, _ in backend.requests) == 11


def test_a_change_elsewhere_does_not_fill_the_bucket(
    envoy_process: Any, backend: Any, make_tenant: Any, make_set: Any, free: Any
) -> None:
    slow = make_tenant("slow", ("smollm2",), limits={"requests_per_minute": 1})
    envoy_process.apply(make_set(slow, free))
    assert [chat(envoy_process, slow).status for _ in range(2)] == [200, 429]
    free.revoked.append("one")
    envoy_process.apply(make_set(slow, free))
    assert chat(envoy_process, slow).status == 429


@pytest.fixture(params=["ollama", "vllm"])
def served(request: Any, run: Path, make_backend: Any) -> Iterator[tuple[str, Any]]:
    """A model's name and its backend."""
    vllm = request.param == "vllm"
    server = make_backend(run / (f"cube-{'e' * 16}.sock" if vllm else "backend.sock"))
    yield ("mine=large" if vllm else "smollm2"), server
    server.close()


def test_more_requests_at_the_same_time_than_allowed(
    envoy_process: Any, served: tuple[str, Any], make_tenant: Any, make_set: Any
) -> None:
    model, server = served
    narrow = make_tenant("narrow", (model,), limits={"concurrent_requests": 2})
    wide = make_tenant("wide", (model,))
    envoy_process.apply(make_set(narrow, wide))
    server.delay = 0.5  # three events: each stream takes 1.5 s
    with ThreadPoolExecutor(16) as pool:
        refused = [pool.submit(chat, envoy_process, narrow, stream=True) for _ in range(8)]
        others = [pool.submit(chat, envoy_process, wide, stream=True) for _ in range(8)]
        found = [future.result() for future in refused]
        assert [future.result().status for future in others] == [200] * 8
    assert Counter(answer.status for answer in found) == {200: 2, 429: 6}
    for answer in found:
        if answer.status == 429:
            assert answer.code == "too_many_requests"
            assert answer.headers["retry-after"]
    assert len(server.requests) == 10
    server.delay = 0.0
    assert [chat(envoy_process, narrow).status for _ in range(4)] == [200] * 4  # one after the other


def test_a_limit_that_is_lifted(envoy_process: Any, backend: Any, make_tenant: Any, make_set: Any) -> None:
    """Its cluster stays for the routes that were in force; no request meets one that is gone."""
    tenant = make_tenant("acme", ("smollm2",), limits={"concurrent_requests": 1})
    for _ in range(4):
        for limits in ({"concurrent_requests": 1}, {}):
            tenant.limits = limits
            envoy_process.apply(make_set(tenant))
            assert chat(envoy_process, tenant).status == 200
    clusters = json.loads((envoy_process.run / "envoy/cds/clusters.json").read_text())["resources"]
    assert f"ollama/{tenant.id}" in {cluster["name"] for cluster in clusters}
    tenant.revoked.append("x")
    envoy_process.apply(make_set(tenant))
    clusters = json.loads((envoy_process.run / "envoy/cds/clusters.json").read_text())["resources"]
    assert f"ollama/{tenant.id}" not in {cluster["name"] for cluster in clusters}
