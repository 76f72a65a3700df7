# SPDX-License-Identifier: Apache-2.0
"""The gate before Ollama: one reading of the body for everybody, streams as they come."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cube_proxy import ollama_adapter
from cube_proxy.http import HttpError, encode_request
from cube_proxy.ollama_adapter import Upstream, answer_head, strict_body
from hypothesis import given
from hypothesis import strategies as st

BODY = json.dumps({"model": "smollm2", "temperature": 0.5, "messages": [{"role": "user", "content": "é\u2028"}]})


def refused(data: bytes, authorized: str = "smollm2") -> str:
    with pytest.raises(HttpError) as caught:
        strict_body(data, authorized)
    assert caught.value.status == 400
    return caught.value.code


def test_a_good_body_keeps_its_meaning() -> None:
    assert json.loads(strict_body(BODY.encode(), "smollm2")) == json.loads(BODY)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"model":"a","model":"smollm2"}', "invalid_json"),
        (b'{"model":"smollm2","model":"smollm2"}', "invalid_json"),
        (b'{"model":"smollm2","mo\\u0064el":"smollm2"}', "invalid_json"),
        (b'{"model":"smollm2","messages":[{"role":"user","role":"system"}]}', "invalid_json"),
        (b'{"model":"smollm2","Model":"other"}', "ambiguous_model"),
        (b'{"MODEL":"smollm2"}', "ambiguous_model"),
        (b'{"model":"other"}', "ambiguous_model"),
        (b'{"model":1}', "missing_model"),
        (b'{"model":null}', "missing_model"),
        (b"{}", "missing_model"),
        (b"[]", "invalid_json"),
        (b'"model"', "invalid_json"),
        (b'{"model":"smollm2","x":NaN}', "invalid_json"),
        (b'{"model":"smollm2","x":1e999}', "invalid_json"),
        (b'{"model":"smollm2"}{}', "invalid_json"),
        (b'{"model":"smollm2","x":"\\ud800"}', "invalid_json"),
        (b'\xef\xbb\xbf{"model":"smollm2"}', "invalid_json"),
        (b'{"model":"smollm2","x":"\xff"}', "invalid_json"),
        (b'{"model":"smollm2","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"model":"smollm2","x":' + b"1" * 10_000 + b"}", "invalid_json"),
        (b"", "invalid_json"),
    ],
)
def test_refused_bodies(data: bytes, code: str) -> None:
    assert refused(data) == code


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda name: name.casefold() != "model"), json_values, max_size=4))
def test_any_json_object_survives(value: dict[str, object]) -> None:
    whole = {**value, "model": "smollm2"}
    try:
        data = json.dumps(whole, allow_nan=False).encode()
        again = strict_body(data, "smollm2")
    except (ValueError, HttpError):
        return  # infinities and half surrogates have no JSON that everybody reads alike
    assert json.loads(again) == whole


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    refused(data)


def test_only_needed_headers_of_the_answer_pass() -> None:
    kept = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    assert answer_head(kept + b"Server: ollama\r\nX-Secret: 1\r\n\r\n") == kept + b"connection: close\r\n\r\n"
    with pytest.raises(HttpError):
        answer_head(b"220 mail ready\r\n\r\n")


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


@asynccontextmanager
async def adapter(path: Path, answer: Answer | None) -> AsyncIterator[None]:
    """The adapter on ``path`` before a backend that answers by ``answer``; none: nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    backend = await asyncio.start_server(answer, "127.0.0.1", port) if answer else None
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    task = asyncio.create_task(ollama_adapter.run(listener, Upstream(port=port)))
    await asyncio.sleep(0.05)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if backend:
            backend.close()


def message(body: str = BODY, target: str = ollama_adapter.PATH, model: str = "smollm2") -> bytes:
    return encode_request("POST", target, body.encode(), {"x-cube-model": model, "authorization": "Bearer secret"})


async def exchange(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    found = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return found


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    return head, await reader.readexactly(int(length.split(b":")[1]))


def test_a_request_is_written_anew_and_the_answer_relayed(tmp_path: Path) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def go() -> bytes:
        async with adapter(tmp_path / "s", answer):
            return await exchange(tmp_path / "s", message())

    found = asyncio.run(go())
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert found.endswith(b"\r\n\r\n{}")
    ((head, body),) = seen
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n")
    assert b"secret" not in head
    assert json.loads(body) == json.loads(BODY)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (message(target="/api/pull"), b"404"),
        (message(target="/v1/chat/completions?x"), b"404"),
        (message(model="other"), b"400"),
        (message(body='{"model":"smollm2","model":"smollm2"}'), b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", b"411"),
        (b"GET / HTTP/1.0\r\n\r\n", b"400"),
    ],
)
def test_refusals_reach_nobody(tmp_path: Path, request_bytes: bytes, status: bytes) -> None:
    reached: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(1)
        writer.close()

    async def go() -> bytes:
        async with adapter(tmp_path / "s", answer):
            return await exchange(tmp_path / "s", request_bytes)

    found = asyncio.run(go())
    assert found.startswith(b"HTTP/1.1 " + status)
    assert set(json.loads(found.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}
    assert reached == []


def test_a_missing_or_dying_backend_is_a_503(tmp_path: Path) -> None:
    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.close()

    async def go(answer: Answer | None, name: str) -> bytes:
        async with adapter(tmp_path / name, answer):
            return await exchange(tmp_path / name, message())

    for found in (asyncio.run(go(None, "a")), asyncio.run(go(dies, "b"))):
        assert found.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 5" in found


def test_streams_pass_at_once_and_end_with_the_client(tmp_path: Path) -> None:
    async def go() -> None:
        cut = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
            await writer.drain()
            await reader.read()  # ends when the adapter goes
            cut.set()

        async with adapter(tmp_path / "s", answer):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(message())
            assert b"data: 1\n\n" in await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 2)
            assert not cut.is_set()
            writer.close()
            await asyncio.wait_for(cut.wait(), 2)

    asyncio.run(go())
