# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/1.1 server for Unix sockets behind Envoy: strict, bounded, Content-Length bodies only.

Envoy's buffer filter stands in front and gives every request a Content-Length, so a transfer coding here means
that somebody else speaks, and is refused.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

MAX_HEAD_BYTES = 16 << 10
IDLE_SECONDS = 300.0  # a pooled connection of Envoy's may rest
BODY_SECONDS = 15.0

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"/[!-~]*")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_LENGTH = re.compile(r"[0-9]{1,12}")


class HttpError(Exception):
    """A refusal on the wire: status, stable code, sentence, extra headers."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The management port's error shape (formats §2)."""
        return json_response({"error": {"code": self.code, "message": self.message}}, self.status, self.headers)


@dataclass(frozen=True)
class Head:
    """Request line and headers; names in lower case, each at most once."""

    method: str
    target: str
    headers: Mapping[str, str]

    def content_length(self, limit: int) -> int:
        """Bytes of the body. Raises HttpError 413 beyond ``limit``, 411 for any transfer coding."""
        if "transfer-encoding" in self.headers:
            raise HttpError(411, "length_required", "Send the body with a Content-Length.")
        text = self.headers.get("content-length", "0")
        if not _LENGTH.fullmatch(text):
            raise HttpError(400, "bad_request", "Content-Length is not a number.")
        length = int(text)
        if length > limit:
            raise HttpError(413, "too_large", f"The body may have at most {limit} bytes.")
        return length


@dataclass(frozen=True)
class Request:
    """One complete request."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    """One complete answer; Content-Length is added when it is written."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """``value`` as a JSON answer."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return Response(status, body, {"content-type": "application/json", **(headers or {})})


def parse_head(data: bytes) -> Head:
    """Parse everything before the empty line, that line included (RFC 9112 §2–5). Raises HttpError 400.

    Refused beyond the grammar: bare line feeds, folded lines, repeated headers, anything but HTTP/1.1 and an
    absolute path.
    """
    if not data.endswith(b"\r\n\r\n"):
        raise _bad("The head does not end.")
    line, *fields = data[:-4].split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or parts[2] != b"HTTP/1.1":
        raise _bad("The request line is not HTTP/1.1.")
    if not _TOKEN.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise _bad("The method or the target is malformed.")
    headers: dict[str, str] = {}
    for entry in fields:
        name, colon, value = entry.partition(b":")
        value = value.strip(b" \t")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise _bad("A header is malformed.")
        key = name.decode("ascii").lower()
        if key in headers:
            raise _bad(f"The header {key[:80]} occurs twice.")
        headers[key] = value.decode("latin-1")
    return Head(parts[0].decode("ascii"), parts[1].decode("ascii"), headers)


def _bad(message: str) -> HttpError:
    return HttpError(400, "bad_request", message)


async def read_head(reader: asyncio.StreamReader, idle_seconds: float = IDLE_SECONDS) -> Head | None:
    """The next request's head, or None when the peer closed or rested too long. Raises HttpError."""
    try:
        async with asyncio.timeout(idle_seconds):
            data = await reader.readuntil(b"\r\n\r\n")
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        return None
    except asyncio.LimitOverrunError as error:
        raise HttpError(431, "head_too_large", "The request's headers are too large.") from error
    return parse_head(data)


async def read_body(reader: asyncio.StreamReader, length: int) -> bytes:
    """Exactly ``length`` bytes. Raises HttpError 408 when they don't come in time."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await reader.readexactly(length)
    except (TimeoutError, asyncio.IncompleteReadError) as error:
        raise HttpError(408, "timeout", "The body did not arrive.") from error


def encode_response(response: Response, *, close: bool) -> bytes:
    """The answer's bytes."""
    try:
        reason = HTTPStatus(response.status).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {response.status} {reason}", f"content-length: {len(response.body)}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if close:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + response.body


def encode_request(method: str, target: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """One request to a local backend, after which the connection closes."""
    lines = [f"{method} {target} HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def serve_connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler, max_body: int
) -> None:
    """Answer requests on one connection until the peer closes it. A malformed request ends the connection."""
    try:
        while True:
            try:
                head = await read_head(reader)
                if head is None:
                    break
                body = await read_body(reader, head.content_length(max_body))
            except HttpError as error:
                writer.write(encode_response(error.response(), close=True))
                await writer.drain()
                break
            close = head.headers.get("connection", "").lower() == "close"
            response = await handler(Request(head.method, head.target, head.headers, body))
            writer.write(encode_response(response, close=close))
            await writer.drain()
            if close:
                break
    except ConnectionError:
        pass  # the peer went away; there is nobody to tell
    finally:
        writer.close()
