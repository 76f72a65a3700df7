# SPDX-License-Identifier: Apache-2.0
"""Every call that there is, with and without /proxy, the scope that it needs; Ollama's own API through the adapter.

Ollama is a small real HTTP server here; the adapter before it is the image's, as a process of its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cube_attestation.domains import SCOPES

POSTS = {
    "v1/chat/completions": "llm_chat_completions",
    "v1/responses": "llm_chat_completions",
    "v1/messages": "llm_chat_completions",
    "v1/completions": "llm_completions",
    "v1/embeddings": "llm_embeddings",
    "api/chat": "llm_chat_completions",
    "api/generate": "llm_completions",
    "api/embed": "llm_embeddings",
    "api/embeddings": "llm_embeddings",
    "api/show": "llm_read",
}
GETS = ("v1/models", "v1/models/smollm2", "api/tags", "api/ps", "api/version")
AUDIO = {"v1/audio/transcriptions": "llm_transcription", "v1/audio/translations": "llm_translation"}
BODY = {"model": "smollm2"}
CALLS = [
    *(("POST", path, scope) for path, scope in POSTS.items()),
    *(("GET", path, "llm_read") for path in GETS),
    *(("POST", path, scope) for path, scope in AUDIO.items()),
]


@pytest.mark.parametrize(("method", "path", "scope"), CALLS)
def test_a_call_needs_its_scope_and_no_other(world: Any, method: str, path: str, scope: str) -> None:
    body = BODY if method == "POST" else None
    expected = 404 if path in AUDIO else 200
    for prefix in ("", "/proxy"):
        target = f"{prefix}/{world.acme.id}/{path}"
        assert world.envoy.request(method, target, world.acme.token(scopes=[scope]), body).status == expected
        reached = len(world.backend.requests)
        others = world.acme.token(scopes=[other for other in SCOPES if other != scope])
        answer = world.envoy.request(method, target, others, body)
        assert (answer.status, answer.code) == (403, "insufficient_scope")
        assert world.envoy.request(method, target, None, body).status == 401
        assert world.envoy.request(method, target, world.beta.token(scopes=list(SCOPES)), body).status == 403
        assert len(world.backend.requests) == reached
    lines = {line for line, _, _ in world.backend.requests}
    assert lines == ({f"{method} /{path} HTTP/1.1"} if path in POSTS or path == "api/version" else set())


@pytest.mark.parametrize("path", [*POSTS, *GETS, *AUDIO])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"])
def test_another_method_is_refused(world: Any, method: str, path: str) -> None:
    if method == ("GET" if path in GETS else "POST"):
        return
    answer = world.envoy.request(method, f"/{world.acme.id}/{path}", world.acme.token(scopes=list(SCOPES)))
    assert answer.status == 405
    if method != "HEAD":
        assert answer.code == "method_not_allowed"
    assert world.backend.requests == []


def test_a_token_may_come_as_anthropics_clients_send_it(world: Any) -> None:
    path = f"/{world.acme.id}/v1/messages"
    token = world.acme.token()
    assert world.envoy.request("POST", path, None, BODY, headers={"x-api-key": token}).status == 200
    ((_, headers, _),) = world.backend.requests
    assert "x-api-key" not in headers
    assert world.envoy.request("POST", path, None, BODY, headers={"x-api-key": token[4:]}).status == 401
    # a second one that is not good spoils the first
    spoiled = world.envoy.request("POST", path, token, BODY, headers={"x-api-key": "pat_" + "a" * 40})
    assert spoiled.status == 401
    assert len(world.backend.requests) == 1


def test_ollamas_lists_name_the_domains_models(world: Any) -> None:
    token = world.acme.token()
    tags = world.envoy.request("GET", f"/{world.acme.id}/api/tags", token).json["models"]
    assert [(entry["name"], entry["model"], entry["digest"], entry["size"]) for entry in tags] == [
        ("smollm2", "smollm2", "a" * 64, 8192),
        ("tiny", "tiny", "b" * 64, 8192),
    ]
    assert all(entry["modified_at"].endswith("Z") for entry in tags)
    running = world.envoy.request("GET", f"/{world.acme.id}/api/ps", token).json["models"]
    assert [entry["name"] for entry in running] == ["smollm2", "tiny"]


def test_show_takes_a_name_and_nothing_else_does(world: Any) -> None:
    token = world.acme.token(scopes=list(SCOPES))

    def ask(path: str, body: object) -> Any:
        return world.envoy.request("POST", f"/{world.acme.id}/{path}", token, body)

    assert ask("api/show", {"name": "tiny"}).status == 200
    ((_, headers, _),) = world.backend.requests
    assert headers["x-cube-name"] == "tiny"
    assert headers.get("x-cube-model", "-") in ("", "-")
    world.backend.requests.clear()
    assert ask("api/show", {"name": "other"}).code == "model_not_found"
    assert ask("api/show", {"name": 1}).code == "missing_model"
    assert ask("api/show", {"model": "other", "name": "tiny"}).code == "model_not_found"
    for path in POSTS:
        if path != "api/show":
            assert ask(path, {"name": "tiny"}).code == "missing_model"
    assert world.backend.requests == []


@dataclass
class Ollama:
    """Answers as Ollama does: NDJSON unless ``stream`` is false, each line with the model's name."""

    port: int = 0
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pause: float = 0.0


@pytest.fixture(scope="module")
def ollama() -> Iterator[Ollama]:
    found = Ollama()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.requests.append((self.path, body))
            if self.path == "/api/show":
                self._whole({"modelfile": f"# FROM {body['model']}", "template": "t"})
                return
            if body.get("stream") is False:
                self._whole({"model": body["model"], "done": True})
                return
            self.send_response(200)
            self.send_header("content-type", "application/x-ndjson")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for i in range(4):
                line = json.dumps({"model": body["model"], "n": i, "done": i == 3}, separators=(",", ":")) + "\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line.encode()))
                self.wfile.flush()
                time.sleep(found.pause)
            self.wfile.write(b"0\r\n\r\n")

        def do_GET(self) -> None:
            found.requests.append((self.path, {}))
            self._whole({"version": "0.17.4"})

        def _whole(self, value: object) -> None:
            data = json.dumps(value, separators=(",", ":")).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_port
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def through_adapter(
    envoy_process: Any, run: Path, ollama: Ollama, make_tenant: Callable[..., Any], make_set: Callable[..., Any]
) -> Iterator[tuple[Any, Any, Ollama]]:
    """Envoy, a domain, Ollama; between them the adapter's process on the socket that systemd would pass."""
    acme = make_tenant("acme", ("smollm2", "fast=tiny"))
    envoy_process.apply(make_set(acme))
    path = run / "backend.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(128)
        script = (
            "import asyncio, socket, sys; from cube_proxy import ollama_adapter as a; "
            "asyncio.run(a.run(socket.socket(fileno=int(sys.argv[1])), a.Upstream(port=int(sys.argv[2]))))"
        )
        command = [sys.executable, "-c", script, str(listener.fileno()), str(ollama.port)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()], env=os.environ)
        ollama.requests.clear()
        yield envoy_process, acme, ollama
        process.terminate()
        process.wait(10)
    path.unlink()


def test_ndjson_comes_as_it_is_made_under_the_clients_name(through_adapter: tuple[Any, Any, Ollama]) -> None:
    envoy, acme, ollama = through_adapter
    for model, target in (("smollm2", "smollm2"), ("fast", "tiny")):
        ollama.pause = 0.2
        connection = envoy.connection()
        headers = {"content-type": "application/json", "authorization": f"Bearer {acme.token()}"}
        connection.request("POST", f"/{acme.id}/api/chat", json.dumps({"model": model}), headers)
        response = connection.getresponse()
        assert (response.status, response.getheader("content-type")) == (200, "application/x-ndjson")
        lines, times = [], []
        while line := response.readline():
            lines.append(json.loads(line))
            times.append(time.monotonic())
        connection.close()
        ollama.pause = 0.0
        assert lines == [{"model": model, "n": n, "done": n == 3} for n in range(4)]
        assert times[-1] - times[0] > 0.4
        assert ollama.requests[-1] == ("/api/chat", {"model": target})


def test_what_ollama_is_asked(through_adapter: tuple[Any, Any, Ollama]) -> None:
    envoy, acme, ollama = through_adapter
    token = acme.token(scopes=list(SCOPES))

    def ask(path: str, body: object = None) -> Any:
        return envoy.request("GET" if body is None else "POST", f"/proxy/{acme.id}/{path}", token, body)

    assert ask("api/version").json == {"version": "0.17.4"}
    assert ask("api/show", {"name": "fast"}).json == {"template": "t"}
    assert ask("api/generate", {"model": "fast", "stream": False, "keep_alive": 0}).json["model"] == "fast"
    assert ollama.requests == [
        ("/api/version", {}),
        ("/api/show", {"model": "tiny", "verbose": False}),
        ("/api/generate", {"model": "tiny", "stream": False}),
    ]
    for body, code in (
        (b'{"model":"fast","model":"fast"}', "invalid_json"),  # Envoy reads it, the adapter does not
        (b'{"model":"fast","options":1,"Options":{"num_ctx":1}}', "ambiguous_model"),
        (b'{"model":"fast","KEEP_ALIVE":0}', "ambiguous_model"),
        (b'{"model":"fast","Model":["tiny"]}', "ambiguous_model"),
    ):
        answer = ask("api/generate", body)
        assert (answer.status, answer.code) == (400, code), body
    assert len(ollama.requests) == 3
