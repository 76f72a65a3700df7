# SPDX-License-Identifier: Apache-2.0
"""Token counts: read in Ollama's answers as they pass, summed up by domain and model."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from agent_machine import wait
from cube_proxy import audit_line, ollama_adapter
from cube_proxy.audit_line import Seen
from cube_proxy.ollama_adapter import Upstream
from cube_proxy.ollama_usage import Counter, WithoutUsage, ask_for_usage
from cube_proxy.usage import Usage
from hypothesis import given
from hypothesis import strategies as st

CHUNK = b'data: {"id":"c","choices":[{"delta":{"content":"%b"}}]}\n\n'
COUNTS = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = CHUNK % b"one" + CHUNK % b"two" + COUNTS + DONE
NATIVE = b'{"message":{"content":"x"},"done":false}\n{"done":true,"prompt_eval_count":9,"eval_count":4}\n'


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(st.integers(0, 500), max_size=6))
def test_counts_are_found_however_the_answer_is_cut(places: list[int]) -> None:
    for data, prompt, completion in ((STREAM, 5, 2), (NATIVE, 9, 4)):
        counter = Counter()
        for piece in cut(data, places):
            counter.feed(piece)
        expected = f"x-cube-prompt-tokens: {prompt}\r\nx-cube-completion-tokens: {completion}\r\n"
        assert counter.trailers() == expected.encode()


@given(st.lists(st.integers(0, 500), max_size=6))
def test_the_event_with_the_counts_is_taken_out_however_the_stream_is_cut(places: list[int]) -> None:
    without = WithoutUsage()
    seen = b"".join(without.feed(piece) for piece in cut(STREAM, places)) + without.end()
    assert seen == STREAM.replace(COUNTS, b"")


def test_what_a_model_says_of_counts_counts_for_nothing() -> None:
    counter = Counter()
    said = json.dumps({"message": {"content": ',"eval_count":999,"prompt_eval_count":1,'}}, separators=(",", ":"))
    counter.feed(said.encode())
    assert counter.trailers() == b""


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        (None, True),
        ({"include_usage": True}, False),
        ({"include_usage": False}, True),
        ({"include_usage": True, "Include_Usage": False}, False),
        ("nonsense", True),
    ],
)
def test_every_stream_is_made_to_end_with_its_counts(options: object, hidden: bool) -> None:
    value: dict[str, Any] = {"stream": True} | ({"stream_options": options} if options is not None else {})
    assert ask_for_usage(value, "/v1/chat/completions") is hidden
    assert value["stream_options"] == {"include_usage": True}


def test_other_calls_stay_as_they_are() -> None:
    for value, target in (({"stream": False}, "/v1/chat/completions"), ({"stream": True}, "/api/chat")):
        before = dict(value)
        assert ask_for_usage(value, target) is False  # type: ignore[arg-type]
        assert value == before


class Ollama:
    """What Ollama answers, at a port of its own, with the adapter before it: both in a thread."""

    def __init__(self, path: Path) -> None:
        self.answer = b""
        self.bodies: list[dict[str, Any]] = []
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._serve())
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._one, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._path))
        listener.listen()
        self._ready.set()
        async with server:
            await ollama_adapter.run(listener, Upstream(port=port))

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        self.bodies.append(json.loads(await reader.readexactly(int(length.split(b":")[1]))))
        writer.write(self.answer)
        await writer.drain()
        writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join(10)
        self._path.unlink(missing_ok=True)


@pytest.fixture
def ollama(run: Path) -> Iterator[Ollama]:
    found = Ollama(run / "backend.sock")
    yield found
    found.close()


def chunked(kind: str, *pieces: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "more", "answer", "counts"),
    [
        ("v1/chat/completions", {"stream": True}, chunked("text/event-stream", STREAM), (5, 2)),
        ("api/chat", {}, chunked("application/x-ndjson", NATIVE), (9, 4)),
        ("api/embed", {"input": "x"}, chunked("application/json", b'{"x":[],"prompt_eval_count":3}'), (3, None)),
        ("v1/chat/completions", {}, chunked("application/json", b'{"choices":[]}'), (None, None)),
    ],
)
def test_envoy_logs_ollamas_counts_of_every_api(
    envoy_process: Any,
    ollama: Ollama,
    make_tenant: Callable[..., Any],
    make_set: Callable[..., Any],
    path: str,
    more: dict[str, Any],
    answer: bytes,
    counts: tuple[int | None, int | None],
) -> None:
    acme = make_tenant("acme", ("smollm2",))
    envoy_process.apply(make_set(acme))
    ollama.answer = answer
    scopes = ["llm_chat_completions", "llm_embeddings"]
    body = {"model": "smollm2", **more}
    jti = f"counts-{path.replace('/', '-')}-{counts[0]}"
    found = envoy_process.request("POST", f"/{acme.id}/{path}", acme.token(scopes=scopes, jti=jti), body)
    assert found.status == 200, found
    assert b'"usage"' not in found.body
    seen: list[Seen] = []

    def logged() -> bool:
        lines = [audit_line.parse(line) for line in envoy_process.access_log.read_bytes().splitlines()]
        seen[:] = [line for line in lines if line is not None and line.token == jti]
        return bool(seen)

    wait(logged)
    assert (seen[0].prompt_tokens, seen[0].completion_tokens) == counts
    assert not any(name.startswith("x-cube") for name in found.headers)


def ended(**changes: Any) -> Seen:
    facts: dict[str, Any] = {"began": "1795534020135", "status": 200, "prompt_tokens": 3, "completion_tokens": 4}
    seen = audit_line.parse(json.dumps(facts | changes).encode())
    assert seen is not None
    return seen


def test_totals() -> None:
    usage = Usage()
    usage.add("a", "m", ended())
    usage.add("a", "m", ended(prompt_tokens=None, completion_tokens=None))
    usage.add("a", "", ended(status=401, prompt_tokens=None))
    usage.add("b", "m", ended(completion_tokens=None))
    assert usage.describe("a") == {"m": {"requests": 2, "prompt_tokens": 3, "completion_tokens": 4, "unmetered": 1}}
    assert usage.describe("c") == {}
    text = "\n".join(usage.render())
    assert 'cube_tokens_total{domain="b",model="m",kind="prompt"} 3' in text
    assert 'cube_requests_total{domain="a",model="",code="401"} 1' in text
    assert 'cube_unmetered_total{domain="a",model="m"} 1' in text
