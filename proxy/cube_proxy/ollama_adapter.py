# SPDX-License-Identifier: Apache-2.0
"""The gate between Envoy's Unix socket and Ollama, which has no network but its own loopback.

Ollama reads JSON as Go does: names without regard to case, the last duplicate wins. So the body is parsed strictly
here, compared with the model that Envoy authorized, and written anew with Ollama's name of that model; nothing else
of a request is passed on. One connection per request on both sides: the answer is relayed as it comes, and a client
that leaves ends the work. Its token counts are read in passing and told to Envoy in trailers; where the client's
name of a model is another one, the answer gets that name again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from .http import HttpError, Response, encode_request, encode_response, json_response, read_body, read_head
from .log import log
from .notify import notify
from .ollama_usage import Counter, WithoutUsage, ask_for_usage
from .rename import Rename

SHOW = "/api/show"
VERSION = "/api/version"
CALLS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/api/embeddings",
        SHOW,
    }
)
MODEL_HEADER = "x-cube-model"
NAME_HEADER = "x-cube-name"
MODELS_HEADER = "x-cube-models"
# What a request may set for itself. The others belong to the runner, which all requests share: they would load the
# model anew.
OPTIONS = frozenset(
    {
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repeat_last_n",
        "temperature",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
        "stop",
    }
)
MAX_BODY_BYTES = 8 << 20
MAX_ANSWER_BYTES = 32 << 20  # of /api/show with all tensors
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


@dataclass(frozen=True)
class Asked:
    """What goes to Ollama: the body, and the model by the client's name and by Ollama's.

    ``hide_usage``: the body asks for counts in a stream, the client did not.
    """

    body: bytes
    shown: str
    model: str
    hide_usage: bool = False


def strict_body(data: bytes, headers: Mapping[str, str], target: str) -> Asked:
    """``data`` as a JSON object that every parser reads alike, for ``target``. Raises HttpError 400 or 404.

    ``headers`` are Envoy's: the model that it read and authorized, and the domain's models. Refused: duplicate
    members at any depth, members that equal one that counts but for case, a model other than the authorized one,
    NaN and infinities, anything that is not an object. What would change the runner for everybody (``keep_alive``,
    its ``options``) is left out.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        shown = _shown(value, headers, target)
        model = parse_models(headers.get(MODELS_HEADER, "")).get(shown)
        if model is None:
            raise HttpError(404, "unknown_model", "The model does not exist or this domain may not use it.")
        value = _for_ollama(value, target) | {"model": model}
        hide_usage = ask_for_usage(value, target)
        again = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except _Refused as error:
        raise HttpError(400, "invalid_json", str(error)) from error
    except (ValueError, RecursionError) as error:  # also bad UTF-8, half surrogates and numbers beyond doubles
        raise HttpError(400, "invalid_json", "The body is not valid JSON.") from error
    return Asked(again, shown, model, hide_usage)


def _shown(value: object, headers: Mapping[str, str], target: str) -> str:
    if not isinstance(value, dict):
        raise HttpError(400, "invalid_json", "The body is not a JSON object.")
    for name in value:
        if name not in _ACTED and (like := name.casefold()) in _ACTED:
            raise HttpError(400, "ambiguous_model", f"The body has a member that differs from {like} only in case.")
    header = MODEL_HEADER
    if target == SHOW and "model" not in value:
        header, value = NAME_HEADER, {"model": value.get("name")}  # as older clients of Ollama write it
    shown = value.get("model")
    if not isinstance(shown, str):
        raise HttpError(400, "missing_model", "model must be a string.")
    if shown != headers.get(header, ""):
        raise HttpError(400, "ambiguous_model", "The model is not the one that was authorized.")
    return shown


_ACTED = frozenset({"model", "name", "keep_alive", "options", "stream", "stream_options"})


def _for_ollama(value: dict[str, object], target: str) -> dict[str, object]:
    if target == SHOW:
        return {"verbose": value.get("verbose") is True}
    kept = {name: member for name, member in value.items() if name != "keep_alive"}
    options = kept.get("options")
    if isinstance(options, dict):
        kept["options"] = {name: member for name, member in options.items() if name in OPTIONS}
    return kept


def parse_models(text: str) -> dict[str, str]:
    """``NAME=MODEL,…`` as Envoy sends it: Ollama's names by the domain's."""
    return dict(entry.split("=", 1) for entry in text.split(",") if "=" in entry)


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


@dataclass(frozen=True)
class Head:
    """Ollama's status line and what of its headers a client needs, with the framing as it was."""

    line: bytes
    headers: tuple[bytes, ...]

    @property
    def status(self) -> int:
        return int(self.line[9:12])

    def framing(self) -> tuple[bool, int | None]:
        """Whether the body is chunked; else its length, None when the connection's end ends it."""
        values = {
            name.lower(): value.strip() for name, _, value in (field.partition(b":") for field in self.headers)
        }
        length = values.get(b"content-length", b"")
        return values.get(b"transfer-encoding", b"").lower() == b"chunked", int(
            length
        ) if length.isdigit() else None

    def as_chunks(self) -> bytes:
        """The head for a body of another length."""
        frames = (b"content-length", b"transfer-encoding")
        kept = [field for field in self.headers if field.partition(b":")[0].lower() not in frames]
        return b"\r\n".join([self.line, *kept, b"transfer-encoding: chunked", b"connection: close", b"", b""])


def answer_head(data: bytes) -> Head:
    """Read Ollama's head. Raises HttpError 502 if it is not an HTTP/1.1 answer."""
    line, *fields = data[:-4].split(b"\r\n")
    if not line.startswith(b"HTTP/1.1 ") or not line[9:12].isdigit():
        raise HttpError(502, "backend_failed", "The model's backend gave no valid answer.")
    kept = {b"content-type", b"content-length", b"transfer-encoding", b"cache-control"}
    return Head(line, tuple(field for field in fields if field.partition(b":")[0].lower() in kept))


def shown_answer(data: bytes) -> bytes:
    """An answer of ``/api/show`` without what names files, stores and models of the machine."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise HttpError(502, "backend_failed", "The model's backend gave no valid answer.") from error
    for name in ("modelfile", "remote_model", "remote_host"):
        value.pop(name, None)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def error_answer(data: bytes, asked: Asked) -> bytes:
    """An error of Ollama's with the client's name of the model."""
    name = rb"(?<![\w./:-])" + re.escape(asked.model.encode()) + rb"(?::latest)?(?![\w/-])"
    return re.sub(name, asked.shown.encode(), data)


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
        asked = Asked(b"", "", "")
        if head.method == "POST" and head.target in CALLS:
            body = await read_body(reader, head.content_length(MAX_BODY_BYTES))
            asked = strict_body(body, head.headers, head.target)
        elif (head.method, head.target) != ("GET", VERSION) or head.content_length(0):
            raise HttpError(404, "not_found", "Unknown path.")
        upstream_reader, upstream_writer = await self._connect()
        try:
            upstream_writer.write(encode_request(head.method, head.target, asked.body, {}))
            await upstream_writer.drain()
            gone = asyncio.create_task(_until_gone(reader))
            answer = asyncio.create_task(_pump(upstream_reader, writer, asked, head.target))
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


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: Asked, target: str) -> None:
    try:
        async with asyncio.timeout(FIRST_BYTE_SECONDS):
            head = answer_head(await source.readuntil(b"\r\n\r\n"))
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
        raise HttpError(
            503, "backend_unavailable", "The model's backend did not answer.", {"retry-after": "5"}
        ) from error
    if target == SHOW and head.status == 200:
        await _write_whole(head, sink, shown_answer(await _whole(source, head)))
    elif head.status >= 400:
        body = await _whole(source, head)
        await _write_whole(head, sink, body if asked.shown == asked.model else error_answer(body, asked))
    else:
        counter = Counter()
        sink.write(head.as_chunks())
        async for piece in _named(_payload(source, head), asked, counter):
            sink.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await sink.drain()
        sink.write(b"0\r\n%b\r\n" % counter.trailers())
        await sink.drain()


async def _named(pieces: AsyncIterator[bytes], asked: Asked, counter: Counter) -> AsyncIterator[bytes]:
    """The pieces as the client is to see them, none empty, after they were counted."""
    filters: list[WithoutUsage | Rename] = []
    if asked.hide_usage:
        filters.append(WithoutUsage())
    if asked.shown != asked.model:
        filters.append(Rename(f'"model":"{asked.model}"'.encode(), f'"model":"{asked.shown}"'.encode()))
    async for piece in pieces:
        counter.feed(piece)
        for one in filters:
            piece = one.feed(piece)
        if piece:
            yield piece
    rest = b""
    for one in filters:
        rest = (one.feed(rest) if rest else b"") + one.end()
    if rest:
        yield rest


async def _write_whole(head: Head, sink: asyncio.StreamWriter, body: bytes) -> None:
    sink.write(head.as_chunks())
    sink.write((b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n")
    await sink.drain()


async def _whole(source: asyncio.StreamReader, head: Head) -> bytes:
    found = b""
    async for piece in _payload(source, head):
        found += piece
        if len(found) > MAX_ANSWER_BYTES:
            raise HttpError(502, "backend_failed", "The model's backend answered with too much.")
    return found


async def _payload(source: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """The body's bytes without its framing (RFC 9112 §6-7). Raises ConnectionError where it breaks off."""
    chunked, length = head.framing()
    try:
        if chunked:
            while size := int((await source.readuntil(b"\r\n")).partition(b";")[0], 16):
                yield await source.readexactly(size)
                await source.readexactly(2)
        elif length is not None:
            while length and (piece := await source.read(min(length, _CHUNK))):
                length -= len(piece)
                yield piece
            if length:
                raise ConnectionError("the answer broke off")
        else:
            while piece := await source.read(_CHUNK):
                yield piece
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise ConnectionError("the answer broke off") from error


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
