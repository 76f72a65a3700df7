# SPDX-License-Identifier: Apache-2.0
"""Answers of the forwarder itself, as clients of OpenAI read errors. No network."""

from __future__ import annotations

from http import HTTPStatus

from cube_attestation import jcs


def refusal(status: int, code: str, words: str, *, retry_after: int | None = None) -> bytes:
    """A whole HTTP response that ends its connection. Without ``retry_after`` clients are told not to try again."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    shown = "".join(c if c.isprintable() else "?" for c in words)
    error: dict[str, jcs.Json] = {"message": shown, "type": kind, "param": None, "code": code}
    body = jcs.dumps({"error": error})
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "X-Should-Retry: false" if retry_after is None else f"Retry-After: {retry_after}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
