# SPDX-License-Identifier: Apache-2.0
"""One streamed chat completion with the standard library alone: TLS by the environment's CA, hostname checked."""

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

WAIT_S: Final = 300  # for the route to open after the machine was admitted
ANSWER_S: Final = 300  # emulated processors are slow
SAY_S: Final = 2
RETRY_S: Final = 0.3
FIRST: Final = "waiting for the first token"
MAX_TOKENS: Final = 24


class NoAnswer(Exception):
    """The endpoint did not answer the question; says what it did instead."""


def ask(base: str, ca: str, token: str, model: str, question: str, say: Callable[[str], None]) -> Iterator[str]:
    """The answer in parts, as the model writes them. `base` ends in /v1, `ca` is PEM. Raises NoAnswer."""
    with _Waiting(FIRST, say) as waiting:
        response = _open(base, ca, token, model, question, waiting)
        try:
            for line in response:
                text = line.decode(errors="replace").strip()
                if text == "data: [DONE]":
                    return
                if not text.startswith("data:"):
                    continue
                part = _content(text.removeprefix("data:"))
                if part:
                    waiting.over()
                    yield part
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{base}: the answer broke off: {error}") from error
        raise NoAnswer(f"{base}: the answer broke off: the connection ended before it was whole")


def _open(
    base: str, ca: str, token: str, model: str, question: str, waiting: "_Waiting"
) -> http.client.HTTPResponse:
    where = urlsplit(base)
    trust = ssl.create_default_context(cadata=ca)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    end = time.monotonic() + WAIT_S
    while True:
        try:
            connection = http.client.HTTPSConnection(where.netloc, context=trust, timeout=ANSWER_S)
            connection.request("POST", f"{where.path}/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > end or isinstance(error, ssl.SSLCertVerificationError):
                raise NoAnswer(f"{base} can't be reached: {error}; see `cube status`") from error
            waiting.what = "waiting for the route to open: no machine is ready yet"
        else:
            if response.status == http.HTTPStatus.OK:
                waiting.what = FIRST
                return response
            text = response.read(4096).decode(errors="replace")
            connection.close()
            if response.status != http.HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > end:
                raise NoAnswer(f"{base} answered {response.status}: {text}; see `cube status`")
            waiting.what = "waiting for the model to be ready"
        time.sleep(RETRY_S)


def _content(event: str) -> str:
    try:
        found: Any = json.loads(event)
        return str(found["choices"][0]["delta"].get("content") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise NoAnswer(f"the endpoint sent an event that is no chat completion: {event[:200]}") from error


class _Waiting:
    """Says every 2 s that we wait, until `over`."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self.what, self._say = what, say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Waiting":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over()
        self._thread.join()

    def over(self) -> None:
        self._over.set()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._over.wait(SAY_S):
            self._say(f"{self.what} ({time.monotonic() - began:.0f} s)")
