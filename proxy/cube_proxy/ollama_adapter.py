# SPDX-License-Identifier: Apache-2.0
"""The gate between Envoy's Unix socket and Ollama, which has no network but its own loopback.

Ollama reads JSON as Go does: names without regard to case, the last duplicate wins. So the body is parsed strictly
here, compared with the model that Envoy authorized, and written anew; nothing else of a request is passed on.
One connection per request on both sides: the answer is relayed as it comes, and a client that leaves ends the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from dataclasses import dataclass

from .http import HttpError, Response, encode_request, encode_response, json_response, read_body, read_head
from .log import log
from .notify import notify

PATH = "/v1/chat/completions"
MODEL_HEADER = "x-cube-model"
MAX_BODY_BYTES = 8 << 20
CONNECT_SECONDS = 2.0
FIRST_BYTE_SECONDS = 600.0
_CHUNK = 64 << 10
_FD_START = 3  # sd_listen_fds(3)


@dataclass(frozen=True)
class Upstream:
    """Where Ollama listens."""

    host: str = "127.0.0.1"
    port: int = 11434


class _Refused(ValueError):
    pass


def strict_body(data: bytes, authorized: str) -> bytes:
    """``data`` as a JSON object that every parser reads alike. Raises HttpError 400.

    Refused: duplicate members at any depth, members that equal ``model`` but for case, a model other than the
    authorized one, NaN and infinities, anything that is not an object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        again = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except _Refused as error:
        raise HttpError(400, "invalid_json", str(error)) from error
    except (ValueError, RecursionError) as error:  # also bad UTF-8, half surrogates and numbers beyond doubles
        raise HttpError(400, "invalid_json", "The body is not valid JSON.") from error
    if not isinstance(value, dict):
        raise HttpError(400, "invalid_json", "The body is not a JSON object.")
    for name in value:
        if name != "model" and name.casefold() == "model":
            raise HttpError(400, "ambiguous_model", "The body has a member that differs from model only in case.")
    model = value.get("model")
    if not isinstance(model, str):
        raise HttpError(400, "missing_model", "model must be a string.")
    if model != authorized:
        raise HttpError(400, "ambiguous_model", "The model is not the one that was authorized.")
    return again


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Refused("A member occurs twice.")
    return value


def _no_constant(text: str) -> object:
    raise _Refused(f"{text} is not JSON.")


def openai_error(error: HttpError) -> Response:
    """A refusal in the OpenAI error shape."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    parameter = "model" if error.code.endswith("_model") else None
    body = {"error": {"message": error.message, "type": kind, "param": parameter, "code": error.code}}
    return json_response(body, error.status, error.headers)


def answer_head(data: bytes) -> bytes:
    """Ollama's status line and headers reduced to what a client needs, with the framing as it was.

    Raises HttpError 502 if it is not an HTTP/1.1 answer.
    """
    line, *fields = data[:-4].split(b"\r\n")
    if not line.startswith(b"HTTP/1.1 ") or not line[9:12].isdigit():
        raise HttpError(502, "backend_failed", "The model's backend gave no valid answer.")
    kept = {b"content-type", b"content-length", b"transfer-encoding", b"cache-control"}
    headers = [field for field in fields if field.partition(b":")[0].lower() in kept]
    return b"\r\n".join([line, *headers, b"connection: close", b"", b""])


class Adapter:
    """Serves connections of one request each."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a request in, Ollama's answer or a refusal out."""
        try:
            try:
                await self._relay(reader, writer)
            except HttpError as error:
                writer.write(encode_response(openai_error(error), close=True))
                await writer.drain()
        except ConnectionError:
            pass  # the client left; closing is all there is to do
        finally:
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        if head is None:
            return
        if (head.method, head.target) != ("POST", PATH):
            raise HttpError(404, "not_found", "Unknown path.")
        body = await read_body(reader, head.content_length(MAX_BODY_BYTES))
        body = strict_body(body, head.headers.get(MODEL_HEADER, ""))
        upstream_reader, upstream_writer = await self._connect()
        try:
            upstream_writer.write(encode_request("POST", PATH, body, {}))
            await upstream_writer.drain()
            gone = asyncio.create_task(_until_gone(reader))
            answer = asyncio.create_task(_pump(upstream_reader, writer))
            await asyncio.wait((gone, answer), return_when=asyncio.FIRST_COMPLETED)
            for task in (gone, answer):
                task.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            with contextlib.suppress(asyncio.CancelledError):
                await answer
        finally:
            upstream_writer.transport.abort()  # Ollama stops generating when its client is gone

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(self._upstream.host, self._upstream.port)
        except (OSError, TimeoutError) as error:
            raise HttpError(
                503, "backend_unavailable", "The model's backend does not answer.", {"retry-after": "5"}
            ) from error


async def _until_gone(reader: asyncio.StreamReader) -> None:
    while await reader.read(_CHUNK):
        pass  # bytes after the request belong to nobody: one request per connection


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(FIRST_BYTE_SECONDS):
            head = await source.readuntil(b"\r\n\r\n")
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
        raise HttpError(
            503, "backend_unavailable", "The model's backend did not answer.", {"retry-after": "5"}
        ) from error
    sink.write(answer_head(head))
    while chunk := await source.read(_CHUNK):
        sink.write(chunk)
        await sink.drain()


async def run(listener: socket.socket, upstream: Upstream) -> None:
    """Serve on ``listener`` (a Unix socket) until cancelled."""
    server = await asyncio.start_unix_server(Adapter(upstream).serve, sock=listener, backlog=1024)
    notify("READY=1")
    async with server:
        await server.serve_forever()


def main() -> int:
    """Serve on the socket that systemd passed."""
    try:
        listener = socket.socket(fileno=_FD_START)
    except OSError as error:
        log(f"ollama adapter: no socket from systemd: {error}")
        return 1
    asyncio.run(run(listener, Upstream()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
