# SPDX-License-Identifier: Apache-2.0
"""A domain's name of a model leads to a backend and its model, and nobody sees another name.

vLLM's process is a small real HTTP server on its Unix socket here (it reads JSON as vLLM does, the last member
counting, and names the model as it was asked for); the host has no vLLM.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cube_proxy import envoy
from cube_proxy.envoy_files import ROUTES_FILE
from cube_proxy.models import volume_name

LARGE = "cube-" + "e" * 16  # of conftest's models
SECRET = "cube-" + "f" * 16


@dataclass
class Mapped:
    """``acme`` and ``beta`` both have a model that they call ``chat``: three backends, five names."""

    envoy: Any
    acme: Any
    beta: Any
    ollama: Any
    large: Any
    secret: Any

    def ask(self, tenant: Any, model: str, path: str = "v1/chat/completions", **more: Any) -> Any:
        body = {"model": model, "messages": [], **more}
        return self.envoy.request("POST", f"/{tenant.id}/{path}", tenant.token(), body)


@pytest.fixture
def mapped(
    envoy_process: Any, backend: Any, run: Path, make_backend: Callable[..., Any], make_tenant: Any, make_set: Any
) -> Iterator[Mapped]:
    acme = make_tenant("acme", ("chat=large", "large", "fast=smollm2"))
    beta = make_tenant("beta", ("chat=secret-large",))
    envoy_process.apply(make_set(acme, beta))
    large, secret = make_backend(run / f"{LARGE}.sock"), make_backend(run / f"{SECRET}.sock")
    yield Mapped(envoy_process, acme, beta, backend, large, secret)
    large.close()
    secret.close()


def test_one_name_leads_to_each_domains_own_model(mapped: Mapped) -> None:
    for tenant, server, model in (
        (mapped.acme, mapped.large, "large"),
        (mapped.beta, mapped.secret, "secret-large"),
    ):
        answer = mapped.ask(tenant, "chat")
        assert (answer.status, answer.json["model"]) == (200, "chat"), answer
        ((line, headers, body),) = server.requests
        assert line == "POST /v1/chat/completions HTTP/1.1"
        assert json.loads(body)["model"] == model
        assert int(headers["content-length"]) == len(body)
        assert not {name for name in headers if name.startswith("x-cube")}
        assert "authorization" not in headers
    assert mapped.ollama.requests == []


def test_a_backend_is_chosen_by_the_model(mapped: Mapped) -> None:
    assert mapped.ask(mapped.acme, "fast").status == 200
    assert [headers["x-cube-models"] for _, headers, _ in mapped.ollama.requests] == ["fast=smollm2"]
    assert mapped.ask(mapped.acme, "large", "v1/embeddings").code == "insufficient_scope"
    assert (mapped.large.requests, mapped.secret.requests) == ([], [])


def test_a_name_of_another_domain_or_of_the_machine_is_unknown(mapped: Mapped) -> None:
    for tenant, model in (
        (mapped.acme, "secret-large"),
        (mapped.acme, "smollm2"),
        (mapped.acme, LARGE),
        (mapped.beta, "large"),
        (mapped.beta, "fast"),
    ):
        answer = mapped.ask(tenant, model)
        assert (answer.status, answer.code) == (404, "model_not_found")
        assert model not in str(answer)
    assert mapped.ollama.requests + mapped.large.requests + mapped.secret.requests == []


def test_lists_show_the_domains_names_only(mapped: Mapped) -> None:
    for tenant, names in ((mapped.acme, ["chat", "large", "fast"]), (mapped.beta, ["chat"])):
        answer = mapped.envoy.request("GET", f"/{tenant.id}/v1/models", tenant.token())
        assert [model["id"] for model in answer.json["data"]] == names
        assert b"secret" not in answer.body
        assert b"smollm2" not in answer.body
    tags = mapped.envoy.request("GET", f"/{mapped.acme.id}/api/tags", mapped.acme.token())
    assert [model["model"] for model in tags.json["models"]] == ["fast"]
    assert mapped.envoy.request("GET", f"/{mapped.beta.id}/api/tags", mapped.beta.token()).status == 404


def test_ollamas_paths_do_not_lead_to_vllm(mapped: Mapped) -> None:
    assert mapped.ask(mapped.beta, "chat", "api/chat").status == 404
    mapped.ask(mapped.acme, "chat", "api/chat")  # goes to the adapter, which has no such model
    assert mapped.large.requests + mapped.secret.requests == []
    assert [headers["x-cube-models"] for _, headers, _ in mapped.ollama.requests] == ["fast=smollm2"]


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_every_part_of_a_stream_has_the_clients_name(mapped: Mapped, delay: float) -> None:
    mapped.secret.delay = delay
    answer = mapped.ask(mapped.beta, "chat", stream=True)
    events = [json.loads(line[6:]) for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    assert events == [{"n": n, "model": "chat"} for n in range(3)]


def test_each_domain_has_its_own_part_of_the_prefix_cache(mapped: Mapped) -> None:
    for tenant in (mapped.acme, mapped.acme, mapped.beta):
        assert mapped.ask(tenant, "chat").status == 200
    salts = [json.loads(body)["cache_salt"] for _, _, body in mapped.large.requests + mapped.secret.requests]
    assert salts[0] == salts[1] != salts[2]
    assert all(len(salt) == 64 for salt in salts)
    for value in ("mine", 1, True):
        answer = mapped.ask(mapped.acme, "chat", cache_salt=value)
        assert (answer.status, answer.code) == (400, "cache_salt_refused"), value
    for odd in ("", ["x"], {"a": 1}, None):  # nothing that could be a salt: ours counts all the same
        mapped.ask(mapped.acme, "chat", cache_salt=odd)
        assert json.loads(mapped.large.requests[-1][2])["cache_salt"] == salts[0]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"chat"}',
        b'  {"model":"chat"} \r\n\t ',
        b'{"a":{"model":"large"},"b":"}","model":"chat","c":"\\"}\\\\"}',
        b'{"model":"large","mo\\u0064el":"chat"}',
        b'{"model":"chat","x":"' + b"x" * 300_000 + b'"}',
    ],
)
def test_what_we_put_at_the_end_counts_and_the_rest_stays(mapped: Mapped, body: bytes) -> None:
    answer = mapped.envoy.request("POST", f"/{mapped.acme.id}/v1/chat/completions", mapped.acme.token(), body)
    assert answer.status == 200, answer
    ((_, _, received),) = mapped.large.requests
    found = json.loads(received)
    salt = found.pop("cache_salt")
    assert found == {**json.loads(body), "model": "large"}
    assert len(salt) == 64


def test_a_failed_model_is_out_for_every_name_of_it(mapped: Mapped, make_set: Any) -> None:
    mapped.envoy.apply(make_set(mapped.acme, mapped.beta), failed=frozenset({"large"}))
    assert mapped.ask(mapped.acme, "chat").code == "model_failed"
    assert mapped.ask(mapped.acme, "large").code == "model_failed"
    assert mapped.ask(mapped.acme, "fast").status == 200
    assert mapped.ask(mapped.beta, "chat").status == 200
    assert mapped.large.requests == []


def test_a_body_that_can_not_be_completed_goes_nowhere(mapped: Mapped, make_set: Any) -> None:
    """The script refuses when it fails: a request without a salt of ours would share the cache of all domains."""
    routes = json.dumps(envoy.routes(mapped.envoy.view(make_set(mapped.acme, mapped.beta))))
    mapped.envoy.files.write(ROUTES_FILE, json.loads(routes.replace('"tail"', '"lost"')))
    asyncio.run(mapped.envoy.files.in_force())
    answer = mapped.ask(mapped.acme, "chat")
    mapped.envoy.files.write(ROUTES_FILE, json.loads(routes))
    assert (answer.status, answer.code) == (500, "internal")
    assert mapped.large.requests == []


def test_names_of_sockets_are_the_volumes(make_models: Any) -> None:
    assert volume_name(make_models["large"]) == LARGE
