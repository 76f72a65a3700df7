# SPDX-License-Identifier: Apache-2.0
"""Times as every format of ours writes them: RFC 3339, UTC, ``Z``, whole seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from .errors import BadInput

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def parse(text: str, *, where: str = "time") -> datetime:
    """The aware UTC datetime of ``text``. Raises BadInput."""
    try:
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text[:-1]).replace(tzinfo=UTC)
    except ValueError:
        pass  # the one error below also covers a 30th of February
    raise BadInput(f"{text[:40]!r} is not a time", where=where, todo="write it as 2026-11-24T12:00:00Z")


def format_time(time: datetime) -> str:
    """``time`` (aware) in UTC with whole seconds, cut, not rounded. Raises BadInput for a naive one."""
    if time.tzinfo is None:
        raise BadInput("a time without a zone", todo="pass an aware datetime")
    return time.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat() + "Z"
