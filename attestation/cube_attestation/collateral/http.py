# SPDX-License-Identifier: Apache-2.0
"""The edge to the network: one request, within time, size and number of tries; never to another host than asked."""

from __future__ import annotations

import contextlib
import email.utils
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.parse import urlsplit

from cube_attestation.errors import BadInput, Unreachable

from .model import Answer, Request
from .services import Endpoints, check_address, is_loopback

RETRIED = (429, 500, 502, 503, 504)
BYTES = ("application/octet-stream", "binary/octet-stream")
MAX_WAIT = 30.0  # the longest pause that a service may ask for
KEPT_HEADERS = ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain", "sgx-enclave-identity-issuer-chain")
AGENT = "cube-attestation"


class Unknown(Unreachable):
    """The service answered that it has no such thing (404)."""


class Refused(BadInput):
    """An answer that is not what was asked for: its type, its size, another place."""


@dataclass(frozen=True)
class Client:
    """``timeout``: seconds for one request with all its tries; ``attempts``: tries; ``bearer``: service → its key.

    ``waiting`` hears about pauses and long waits; ``sleep`` is for tests.
    """

    endpoints: Endpoints
    timeout: float = 60.0
    attempts: int = 4
    authorities: str = ""  # PEM file of more TLS authorities, for a PCCS of one's own
    bearer: Mapping[str, str] = field(default_factory=dict, repr=False)
    waiting: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep

    def get(self, request: Request) -> Answer:
        """The answer. Raises Unknown, Unreachable after the last try, Refused, BadInput."""
        url = self.endpoints.url(request.service, request.path, request.host)
        check_address(url.partition("?")[0], where=request.service)
        end = time.monotonic() + self.timeout
        pause = 0.5
        for attempt in range(1, self.attempts + 1):
            try:
                return self._once(request, url, end)
            except _Again as error:
                last = error
            wait = max(last.after, pause * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, no secret
            if attempt == self.attempts or time.monotonic() + wait >= end:
                break
            self.waiting(f"{last.what}; trying again in {wait:.1f} s")
            self.sleep(wait)
            pause *= 2
        todo = "try again later, or name a mirror with --service" if last.status else "is this machine online?"
        raise Unreachable(last.what, where=url, todo=todo, status=last.status)

    def _once(self, request: Request, url: str, end: float) -> Answer:
        """One try in a thread of its own, so that a server that drips or hangs can't hold more than its time."""
        outcome: list[Answer | BaseException] = []

        def run() -> None:
            try:
                outcome.append(self._exchange(request, url, max(0.1, end - time.monotonic())))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        begun = time.monotonic()
        thread.start()
        while thread.is_alive():
            left = end - time.monotonic()
            if left <= 0:
                raise _Again("no answer in time")
            thread.join(min(2.0, left))
            if thread.is_alive():
                self.waiting(f"waiting for {urlsplit(url).hostname}, {time.monotonic() - begun:.0f} s")
        found = outcome[0]
        if isinstance(found, BaseException):
            raise found
        return found

    def _exchange(self, request: Request, url: str, timeout: float) -> Answer:
        headers = {"User-Agent": AGENT, "Accept": ", ".join((*request.media, "*/*;q=0.1"))}
        if request.sends:
            headers["Content-Type"] = request.sends
        if request.service in self.bearer:
            headers["Authorization"] = f"Bearer {self.bearer[request.service]}"
        # the address was checked: https, or http to loopback
        asked = urllib.request.Request(url, request.body or None, headers, method=request.method)  # noqa: S310
        try:
            with self._opener(url).open(asked, timeout=min(timeout, 20.0)) as response:
                return _read(response, response.headers, request, url)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                raise _status(error, url) from error
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                todo = "pass the server's authority with --ca-file"
                raise Unreachable(f"TLS: {reason.verify_message}", where=url, todo=todo) from error
            raise _Again(f"no answer: {str(reason) or type(reason).__name__}") from error

    def _opener(self, url: str) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.authorities:
            try:
                context.load_verify_locations(self.authorities)
            except (OSError, ssl.SSLError) as error:
                raise BadInput(f"can't be used: {error}", where=self.authorities, todo="pass PEM") from error
        local = is_loopback(urlsplit(url).hostname or "")
        proxy = urllib.request.ProxyHandler({} if local else None)
        return urllib.request.build_opener(proxy, urllib.request.HTTPSHandler(context=context), _SameHost())


class _Again(Exception):
    """A try that failed in a way that another may not; ``after``: seconds that the service asks for."""

    def __init__(self, what: str, after: float = 0.0, status: int = 0) -> None:
        super().__init__(what)
        self.what, self.after, self.status = what, after, status


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Redirects only within the same scheme, host and port, three at most."""

    max_redirections = 3
    max_repeats = 2

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            words = f"answered {code} and points to {newurl[:120]!r}, another place"
            raise Refused(words, where=req.full_url, todo="name the right address with --service if you trust it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(response: IO[bytes], headers: HTTPMessage, request: Request, url: str) -> Answer:
    media = (headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    if media and media not in request.media and media not in BYTES:
        todo = "is there a proxy or a login page in between?"
        raise Refused(f"an answer of type {media[:60]!r}, expected {request.media[0]}", where=url, todo=todo)
    body = response.read(request.limit + 1)
    if len(body) > request.limit:
        raise Refused(f"an answer of more than {request.limit} bytes", where=url)
    length = headers.get("Content-Length")
    if length is not None and length.isdecimal() and int(length) != len(body):
        raise _Again(f"the answer ended after {len(body)} of {length} bytes")
    if not body:
        raise Refused("an empty answer", where=url)
    kept = {name: value for name in KEPT_HEADERS if (value := headers.get(name))}
    return Answer(body, kept, url, datetime.now(UTC).replace(microsecond=0))


def _status(error: urllib.error.HTTPError, url: str) -> Exception:
    """What a status other than 200 means."""
    if error.code in RETRIED:
        asked = retry_after(error.headers.get("Retry-After"), datetime.now(UTC))
        return _Again(f"answered {error.code}", asked, error.code)
    if error.code in (404, 410):
        return Unknown("the service does not know it", where=url, status=error.code)
    todo = "does the service want a key? --bearer NAME=file:KEY" if error.code in (401, 403) else ""
    return Unreachable(f"answered {error.code}", where=url, todo=todo, status=error.code)


def retry_after(header: str | None, now: datetime) -> float:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), a number or a date; at most MAX_WAIT."""
    if not header:
        return 0.0
    if header.isascii() and header.isdigit() and len(header) < 8:
        return min(MAX_WAIT, float(header))
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(MAX_WAIT, max(0.0, (moment - now).total_seconds()))
