# SPDX-License-Identifier: Apache-2.0
"""One line of Envoy's access log (the bootstrap's ``access_log``) as facts that may stand in a record. Pure.

Whatever a client chose passes only in the narrow form that records take; no body, no query string, no header of the
client's ever is in a line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from cube_attestation.audit import record as records


@dataclass(frozen=True)
class Seen:
    """A request that Envoy began and that has ended.

    ``began_ms`` is Unix time. ``claimed`` (domain), ``token``, ``key`` and ``subject`` are of a token whose
    signature held, whoever's key made it. ``status`` 0: the client left before there was an answer.
    """

    began_ms: int
    duration_ms: int
    first_byte_ms: int | None
    status: int
    why: str
    flags: str
    request: str
    method: str
    path: str
    route: str
    model: str
    claimed: str
    token: str
    key: str
    subject: str
    received_bytes: int
    sent_bytes: int
    prompt_tokens: int | None
    completion_tokens: int | None


def parse(line: bytes) -> Seen | None:
    """The facts of one line without its line feed; None for what is no line of ours (a torn one, say)."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or "began" not in value:
        return None
    get = value.get
    return Seen(
        began_ms=_count(get("began")) or 0,
        duration_ms=_count(get("duration")) or 0,
        first_byte_ms=_count(get("first")),
        status=_count(get("status"), 999) or 0,
        why=_text(get("why"), records.REASON),
        flags=_text(get("flags"), records.FLAGS),
        request=_text(get("request"), records.ID),
        method=_text(get("method"), records.METHOD),
        path=_text(get("path"), records.PATH),
        route=_text(get("route"), records.PATH, prefix="/"),
        model=_text(get("model"), records.ID),
        claimed=_text(get("domain"), records.CHAIN),
        token=_text(get("token") or get("oidc_token"), records.ID),
        key=_text(get("key"), records.ID),
        subject=_text(get("subject") or get("oidc_subject"), records.ID),
        received_bytes=_count(get("received")) or 0,
        sent_bytes=_count(get("sent")) or 0,
        prompt_tokens=_count(get("prompt_tokens") or get("prompt_trailer")),
        completion_tokens=_count(get("completion_tokens") or get("completion_trailer")),
    )


def _text(value: object, form: re.Pattern[str], prefix: str = "") -> str:
    if isinstance(value, str) and form.fullmatch(prefix + value):
        return value
    return ""


def _count(value: object, most: int = records.MAX_COUNT) -> int | None:
    """A number that is not negative; Envoy writes some as text, and metadata as doubles."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
        return value
    return None
