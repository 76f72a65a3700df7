# SPDX-License-Identifier: Apache-2.0
"""The inference canary: one fixed greedy completion through the same socket that clients' requests take."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from .http import encode_request

QUESTION = "What is the capital of France?"
EXPECTED = "Paris"
_MAX_TOKENS = 12
_MAX_ANSWER_BYTES = 256 << 10


class NotYet(Exception):
    """The backend does not answer yet: worth another try."""


async def ask(socket: Path, model: str, timeout_seconds: float) -> str:
    """The beginning of ``model``'s answer, up to the expected word. Raises NotYet.

    It reads the stream and leaves as soon as the word is there; the model is loaded and warm then.
    """
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": _MAX_TOKENS,
            "stream": True,
        }
    ).encode()
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                said = {"x-cube-model": model, "x-cube-models": f"{model}={model}"}
                writer.write(encode_request("POST", "/v1/chat/completions", body, said))
                await writer.drain()
                return await _read_answer(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise NotYet(f"no answer: {error}") from error


async def _read_answer(reader: asyncio.StreamReader) -> str:
    status = await reader.readline()
    if not status.startswith(b"HTTP/1.1 200 "):
        raise NotYet(status[:60].decode("latin-1").strip())
    answer, seen = "", 0
    while line := await reader.readline():
        seen += len(line)
        if seen > _MAX_ANSWER_BYTES:
            return answer
        if line.startswith(b"data: {"):
            answer += delta(line[6:])
            if EXPECTED in answer:
                return answer
        elif line.startswith(b"data: [DONE]"):
            return answer
    raise NotYet("the answer broke off")


def delta(event: bytes) -> str:
    """The text that one server-sent event of a chat completion adds; empty for anything else."""
    try:
        content = json.loads(event)["choices"][0]["delta"]["content"]
    except (ValueError, LookupError, TypeError):
        return ""
    return content if isinstance(content, str) else ""
