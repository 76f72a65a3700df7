# SPDX-License-Identifier: Apache-2.0
"""What a domain reads of its own: ``GET /{domain}/audit/v1/records`` and ``GET /{domain}/usage`` (formats §11).

Envoy has checked token, domain and scope, says which domain in a header that it sets itself, and has cut the path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cube_attestation import times
from cube_attestation.audit import record as records
from cube_attestation.errors import BadInput

from .audit import Auditor
from .envoy import AUDIT_PATH, DOMAIN_HEADER, USAGE_PATH
from .http import HttpError, Request, Response, json_response

MAX_RECORDS = 1000
_DEFAULT_RECORDS = 100
_NUMBER = re.compile(r"[0-9]{1,15}")


class AuditApi:
    """Answers for one machine; ``started`` is the time of its boot."""

    def __init__(self, auditor: Auditor, boot: str, started: str) -> None:
        self._auditor = auditor
        self._boot = boot
        self._started = started

    def answers(self, request: Request) -> bool:
        """Whether this request is one of these."""
        return request.method == "GET" and request.target.partition("?")[0] in (AUDIT_PATH, USAGE_PATH)

    def answer(self, request: Request, now: float) -> Response:
        """The answer, in the shapes of the service port."""
        try:
            domain = request.headers.get(DOMAIN_HEADER, "")
            if not records.CHAIN.fullmatch(domain) or domain == records.MACHINE:
                raise HttpError(404, "not_found", "Unknown path.")
            path, _, query = request.target.partition("?")
            if path == USAGE_PATH:
                return self._usage(domain, query)
            return self._records(domain, query, now)
        except HttpError as error:
            shape = {"message": error.message, "type": "invalid_request_error", "param": None, "code": error.code}
            return json_response({"error": shape}, error.status, error.headers)

    def _usage(self, domain: str, query: str) -> Response:
        if query:
            raise HttpError(400, "invalid_query", "This path takes no query.")
        models = self._auditor.usage.describe(domain)
        return json_response({"domain": domain, "boot": self._boot, "since": self._started, "models": models})

    def _records(self, domain: str, query: str, now: float) -> Response:
        asked = _query(query)
        limit = _number(asked, "limit", 1, MAX_RECORDS) if "limit" in asked else _DEFAULT_RECORDS
        first = _number(asked, "after", 0, 10**15 - 1) + 1 if "after" in asked else 0
        since, until = _time(asked, "from"), _time(asked, "to")
        form = asked.get("format", "page")
        if form not in ("page", "jsonl"):
            raise HttpError(400, "invalid_query", "format is page or jsonl.")
        self._auditor.tell(domain, now)
        lines = self._auditor.page(domain, first, since, until, limit)
        full = len(lines) == limit
        last = records.parse(lines[-1]).seq if lines else -1
        following = str(last) if full and last < self._auditor.last(domain) else "null"
        head = self._auditor.head(domain, now)
        signed = records.encode(head) if head else b"null"
        if form == "jsonl":
            ending = [signed] if head and last == self._auditor.last(domain) else []
            return Response(200, b"\n".join([*lines, *ending, b""]), {"content-type": "application/jsonl"})
        body = b'{"head":%b,"next":%b,"records":[%b]}\n' % (signed, following.encode(), b",".join(lines))
        return Response(200, body, {"content-type": "application/json"})


def _query(text: str) -> dict[str, str]:
    """Raises HttpError 400 for what is not known or occurs twice."""
    from urllib.parse import parse_qsl  # not before somebody reads

    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=8)
    except ValueError as error:
        raise HttpError(400, "invalid_query", "The query is malformed.") from error
    asked = dict(pairs)
    unknown = set(asked) - {"after", "limit", "from", "to", "format"}
    if unknown or len(asked) != len(pairs):
        raise HttpError(400, "invalid_query", "The query takes after, limit, from, to and format, each once.")
    return asked


def _number(asked: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = asked[name]
    if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
        raise HttpError(400, "invalid_query", f"{name} is a number from {low} to {high}.")
    return int(text)


def _time(asked: Mapping[str, str], name: str) -> str:
    if name not in asked:
        return ""
    try:
        return times.format_time(times.parse(asked[name]))
    except BadInput as error:
        raise HttpError(400, "invalid_query", f"{name} is a time such as 2026-11-24T12:00:00Z.") from error
