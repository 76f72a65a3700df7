# SPDX-License-Identifier: Apache-2.0
"""Answers that were checked once, in the user's cache folder, by request. What is in them is checked again at use.

So nothing here has to be believed: an entry that is broken, foreign or out of date is fetched anew.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cube_attestation import times
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields, decode_base64

from .model import Answer, Request
from .services import Endpoints

MAX_ENTRY = 4 << 20
# Key sets carry no date until which they hold; a certificate or list says so itself
KEY_SET_AGE = timedelta(days=1)


def folder() -> Path:
    """``${XDG_CACHE_HOME:-~/.cache}/cube-confidential/collateral``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return home / "cube-confidential" / "collateral"


@dataclass(frozen=True)
class Cache:
    """One file for each request: JSON with the address, time, headers, digest and body."""

    folder: Path
    endpoints: Endpoints

    def path(self, request: Request) -> Path:
        """Where a request's answer is kept; nonces are no part of it."""
        url = self.endpoints.url(request.service, request.path, request.host)
        name = hashlib.sha256(f"{request.method} {url}\n{request.about}".encode()).hexdigest()
        return self.folder / f"{name}.json"

    def get(self, request: Request, now: datetime) -> Answer | None:
        """The kept answer; None when there is none, or it is broken, or a key set too old to rely on at ``now``."""
        try:
            data = self.path(request).read_bytes()
            if len(data) > MAX_ENTRY:
                return None
            fields = Fields(json.loads(data), "cache entry")
            fields.version()
            body = decode_base64(fields.text("body", limit=MAX_ENTRY), where="cache entry")
            if fields.digest("digest") != digest(body):
                return None
            headers = fields.member("headers")
            kept = {name: headers.text(name, limit=MAX_ENTRY) for name in headers.names()}
            answer = Answer(body, kept, fields.text("url", limit=4096), fields.time("time"), stored=True)
        except (OSError, ValueError, RecursionError, BadInput):
            return None
        if "application/jwk-set+json" in request.media and answer.time and now - answer.time > KEY_SET_AGE:
            return None
        return answer

    def put(self, request: Request, answer: Answer) -> str:
        """Keep an answer; returns why it could not be kept, or nothing. A cache is never a reason to fail."""
        value = {
            "version": 1,
            "url": answer.url,
            "time": times.format_time(answer.time or datetime.now(UTC)),
            "headers": dict(answer.headers),
            "digest": digest(answer.body),
            "body": base64.b64encode(answer.body).decode(),
        }
        target = self.path(request)
        temporary = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".new.")
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(value, sort_keys=True).encode())
            os.replace(temporary, target)  # noqa: PTH105 - mkstemp gives a string
        except OSError as error:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
            return f"{self.folder}: {error.strerror}"
        return ""


def digest(data: bytes) -> str:
    """``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
