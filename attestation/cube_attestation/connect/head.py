# SPDX-License-Identifier: Apache-2.0
"""The head of a connection's first request: complete, not yet, or not one. No network."""

from __future__ import annotations

import re

MAX_HEAD = 64 << 10
_END = b"\r\n\r\n"
_LINE = re.compile(rb"[A-Z]{1,20} [!-~\x80-\xff]+ HTTP/1\.[01]\r\n")
_METHOD = re.compile(rb"[A-Z]{1,20}(?: |\Z)")


class NoRequest(Exception):
    """What came is no request that can be passed on. ``status``: of the answer; the text never quotes the input."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def complete(data: bytes | bytearray, seen: int = 0) -> bool:
    """Whether ``data`` holds a whole request head; the first ``seen`` bytes were looked at before.

    Only what makes it a request is looked at: the machine's proxy checks the rest. Raises NoRequest.
    """
    if not seen:
        if data[:1] == b"\x16":
            raise NoRequest(400, "This port speaks plain HTTP: use http:// in the base URL. TLS begins behind it.")
        if data and not _METHOD.match(data):
            raise NoRequest(400, "That is no HTTP/1.1 request.")
    end = data.find(_END, max(0, seen - len(_END) + 1))
    if end < 0 and len(data) <= MAX_HEAD:
        return False
    if end < 0 or end > MAX_HEAD:
        raise NoRequest(431, f"The request's headers are larger than {MAX_HEAD >> 10} KiB.")
    if not _LINE.match(data):
        raise NoRequest(400, "That is no HTTP/1.1 request.")
    return True
