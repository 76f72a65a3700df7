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
from cube_proxy.rename import Rename
from hypothesis import given
from hypothesis import strategies as st

BODY = json.dumps({"model": "smollm2", "temperature": 0.5, "messages": [{"role": "user", "content": "é\u2028"}]})


CHAT = "/v1/chat/completions"


def headers(model: str = "smollm2", name: str = "", models: str = "smollm2=smollm2,fast=tiny:1b") -> dict[str, str]:
    """What Envoy says of a request."""
    return {"x-cube-model": model, "x-cube-name": name, "x-cube-models": models}


def refused(data: bytes, authorized: str = "smollm2", target: str = CHAT) -> str:
    with pytest.raises(HttpError) as caught:
        strict_body(data, headers(authorized), target)
    assert caught.value.status == 400
    return caught.value.code


def test_a_good_body_keeps_its_meaning() -> None:
    assert json.loads(strict_body(BODY.encode(), headers(), CHAT).body) == json.loads(BODY)


def test_a_domains_name_becomes_ollamas() -> None:
    asked = strict_body(b'{"model":"fast","stream":true}', headers("fast"), "/api/chat")
    assert (asked.shown, asked.model) == ("fast", "tiny:1b")
    assert json.loads(asked.body) == {"model": "tiny:1b", "stream": True}


def test_a_model_that_the_domain_lacks_is_unknown_whatever_envoy_says() -> None:
    for models in ("", "fast=tiny", "smollm2"):
        with pytest.raises(HttpError) as caught:
            strict_body(BODY.encode(), headers(models=models), CHAT)
        assert (caught.value.status, caught.value.code) == (404, "unknown_model")


def test_show_takes_a_model_or_a_name_and_nothing_else() -> None:
    by_name = strict_body(b'{"name":"fast","template":"x"}', headers("", name="fast"), "/api/show")
    assert json.loads(by_name.body) == {"model": "tiny:1b", "verbose": False}
    by_model = strict_body(b'{"model":"fast","name":"x","verbose":true}', headers("fast"), "/api/show")
    assert json.loads(by_model.body) == {"model": "tiny:1b", "verbose": True}
    assert refused(b'{"name":"smollm2"}', target="/api/chat") == "missing_model"
    assert refused(b'{"model":"smollm2","Name":"x"}', target="/api/show") == "ambiguous_model"


def test_nothing_that_changes_the_shared_runner_passes() -> None:
    options = {"num_ctx": 1 << 20, "num_gpu": 0, "num_thread": 1, "temperature": 0.5, "num_predict": 3}
    data = json.dumps({"model": "smollm2", "keep_alive": 0, "options": options}).encode()
    found = json.loads(strict_body(data, headers(), "/api/generate").body)
    assert found == {"model": "smollm2", "options": {"temperature": 0.5, "num_predict": 3}}
    for name in ("Keep_Alive", "OPTIONS", "\u212aeep_alive", "option\u017f"):
        data = json.dumps({"model": "smollm2", name: 0}).encode()
        assert refused(data, target="/api/chat") == "ambiguous_model"


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
        (b'{"model":"smollm2"}\0', "invalid_json"),
        (b'{"model":"smollm2"}\0{"model":"other"}', "invalid_json"),
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


acted = {"model", "name", "keep_alive", "options", "stream", "stream_options"}


@given(st.dictionaries(st.text().filter(lambda name: name.casefold() not in acted), json_values, max_size=4))
def test_any_json_object_survives(value: dict[str, object]) -> None:
    whole = {**value, "model": "smollm2"}
    try:
        data = json.dumps(whole, allow_nan=False).encode()
        again = strict_body(data, headers(), CHAT).body
    except (ValueError, HttpError):
        return  # infinities and half surrogates have no JSON that everybody reads alike
    assert json.loads(again) == whole


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    refused(data)


def test_only_needed_headers_of_the_answer_pass() -> None:
    kept = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    head = answer_head(kept + b"Content-Length: 7\r\nServer: ollama\r\nX-Secret: 1\r\n\r\n")
    assert head.as_chunks() == kept + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
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


def message(body: str = BODY, target: str = CHAT, model: str = "smollm2", method: str = "POST") -> bytes:
    return encode_request(method, target, body.encode(), headers(model) | {"authorization": "Bearer secret"})


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
    assert found.endswith(b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    ((head, body),) = seen
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n")
    assert b"secret" not in head
    assert json.loads(body) == json.loads(BODY)


MANAGEMENT = [
    *(
        "/api/pull",
        "/api/push",
        "/api/create",
        "/api/copy",
        "/api/delete",
        "/api/me",
        "/api/signout",
        "/api/status",
    ),
    *("/api/tags", "/api/ps", "/api/blobs/sha256:00", "/api/user/keys/x", "/api/experimental/aliases", "/"),
]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        *((message(target=path), b"404") for path in MANAGEMENT),
        (message(target="/api/chat", method="GET"), b"404"),
        (message(target="/api/version", method="POST"), b"404"),
        (message(target="/api/version", method="GET"), b"413"),  # with a body
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


def test_another_name_comes_back_in_every_part_of_a_stream(tmp_path: Path) -> None:
    """NDJSON in chunks that cut the member; a word of the text that looks like it stays."""
    lines = (
        b'{"model":"tiny:1b","message":{"content":"\\"model\\":\\"tiny:1b\\""}}\n{"model":"tiny:1b","done":true}\n'
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert json.loads((await read_request(reader))[1])["model"] == "tiny:1b"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(0, len(lines), 7):
            writer.write(b"%x\r\n%b\r\n" % (len(lines[i : i + 7]), lines[i : i + 7]))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        writer.close()

    async def go() -> bytes:
        async with adapter(tmp_path / "s", answer):
            return await exchange(tmp_path / "s", message('{"model":"fast"}', "/api/chat", "fast"))

    head, _, chunked = asyncio.run(go()).partition(b"\r\n\r\n")
    assert b"application/x-ndjson" in head
    assert chunked.endswith(b"\r\n0\r\n\r\n")
    body = b"".join(part for i, part in enumerate(chunked.split(b"\r\n")) if i % 2)
    first, second = (json.loads(line) for line in body.splitlines())
    assert (first["model"], second["model"]) == ("fast", "fast")
    assert first["message"]["content"] == '"model":"tiny:1b"'


@pytest.mark.parametrize("status", [b"400 Bad Request", b"404 Not Found", b"500 Internal Server Error"])
def test_an_error_names_the_model_as_the_client_did(tmp_path: Path, status: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        body = b'{"error":"model \'tiny:1b\' or tiny:1b:latest not found, tiny:1bc"}'
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        writer.close()

    async def go() -> bytes:
        async with adapter(tmp_path / "s", answer):
            return await exchange(tmp_path / "s", message('{"model":"fast"}', "/v1/completions", "fast"))

    found = asyncio.run(go())
    assert found.startswith(b"HTTP/1.1 " + status)
    assert b"model 'fast' or fast not found, tiny:1bc" in found


def test_show_names_no_file_of_the_machine(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        body = json.dumps({"modelfile": "FROM /run/cube-models/x", "template": "t", "details": {}}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async def go() -> bytes:
        async with adapter(tmp_path / "s", answer):
            return await exchange(tmp_path / "s", message('{"model":"smollm2"}', "/api/show"))

    found = asyncio.run(go())
    assert b"/run" not in found
    assert b'{"template":"t","details":{}}' in found


def test_an_answer_that_breaks_off_is_not_ended(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"model":"tiny:1b"')
        writer.close()

    async def go() -> bytes:
        async with adapter(tmp_path / "s", answer):
            return await exchange(tmp_path / "s", message('{"model":"fast"}', "/api/chat", "fast"))

    assert not asyncio.run(go()).endswith(b"0\r\n\r\n")


@given(st.lists(st.sampled_from([b'"model":"a"', b'"mod', b'el":"a"', b'"', b"x", b'"model":"b"']), max_size=12))
def test_a_member_is_renamed_however_the_stream_is_cut(pieces: list[bytes]) -> None:
    rename = Rename(b'"model":"a"', b'"model":"longer"')
    found = b"".join([rename.feed(piece) for piece in pieces] + [rename.end()])
    assert found == b"".join(pieces).replace(b'"model":"a"', b'"model":"longer"')
