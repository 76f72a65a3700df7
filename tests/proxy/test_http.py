# SPDX-License-Identifier: Apache-2.0
"""The small server behind Envoy: its parser and its bounds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cube_proxy import http
from cube_proxy.http import Head, HttpError, Request, Response
from hypothesis import given
from hypothesis import strategies as st


def test_a_head() -> None:
    head = http.parse_head(b"POST /attestation HTTP/1.1\r\nHost: x\r\nContent-Length:  5 \r\nX:\r\n\r\n")
    assert head == Head("POST", "/attestation", {"host": "x", "content-length": "5", "x": ""})
    assert head.content_length(5) == 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\r\nA: c\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\nc: d\r\n\r\n",
        b"GE T / HTTP/1.1\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\n\r\n",
    ],
)
def test_malformed_heads(data: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        http.parse_head(data)
    assert caught.value.status == 400


@given(st.binary(max_size=200))
def test_any_bytes_give_a_head_or_a_400(data: bytes) -> None:
    try:
        head = http.parse_head(data + b"\r\n\r\n")
    except HttpError:
        return
    assert head.target.startswith("/")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": "-1"}, 400),
        ({"content-length": "+1"}, 400),
        ({"content-length": "1e3"}, 400),
        ({"content-length": "1,1"}, 400),
        ({"content-length": "11"}, 413),
        ({"content-length": "1", "transfer-encoding": "chunked"}, 411),
    ],
)
def test_bad_lengths(headers: dict[str, str], status: int) -> None:
    with pytest.raises(HttpError) as caught:
        Head("POST", "/", headers).content_length(10)
    assert caught.value.status == status


async def _answer(path: Path, *pieces: bytes) -> bytes:
    async def handler(request: Request) -> Response:
        return Response(200, request.method.encode() + b" " + request.body)

    server = await asyncio.start_unix_server(
        lambda reader, writer: http.serve_connection(reader, writer, handler, 100), path=path
    )
    async with server:
        reader, writer = await asyncio.open_unix_connection(path)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
        found = await reader.read()
        writer.close()
    return found


def test_requests_follow_each_other_on_a_connection(tmp_path: Path) -> None:
    found = asyncio.run(
        _answer(
            tmp_path / "s",
            b"POST /a HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi" + b"GET /b HTTP/1.1\r\n",
            b"connection: close\r\n\r\n",
        )
    )
    assert found.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert b"POST hi" in found
    assert found.endswith(b"GET ")


def test_a_malformed_request_ends_the_connection(tmp_path: Path) -> None:
    found = asyncio.run(_answer(tmp_path / "s", b"NONSENSE\r\n\r\n", b"GET /b HTTP/1.1\r\n\r\n"))
    assert found.startswith(b"HTTP/1.1 400 ")
    assert b"HTTP/1.1 200" not in found


def test_too_large(tmp_path: Path) -> None:
    body = asyncio.run(_answer(tmp_path / "s", b"POST /a HTTP/1.1\r\ncontent-length: 101\r\n\r\n"))
    assert body.startswith(b"HTTP/1.1 413 ")
    head = asyncio.run(_answer(tmp_path / "t", b"GET /" + b"a" * 100_000 + b"\r\n\r\n"))
    assert head.startswith(b"HTTP/1.1 431 ")
