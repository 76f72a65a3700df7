# SPDX-License-Identifier: Apache-2.0
"""One member of a stream of JSON renamed on its way, however the stream is cut. Pure."""

from __future__ import annotations


class Rename:
    """Replaces ``old`` by ``new``; both begin with a bare quote.

    In compact JSON the bytes ``"model":"x"`` can only be that member: inside a string its quotes are escaped.
    """

    def __init__(self, old: bytes, new: bytes) -> None:
        self._old = old
        self._new = new
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """What may go on; an end that could be the beginning of ``old`` is held."""
        whole = (self._held + piece).replace(self._old, self._new)
        for cut in range(min(len(self._old) - 1, len(whole)), 0, -1):
            if whole.endswith(self._old[:cut]):
                self._held = whole[-cut:]
                return whole[:-cut]
        self._held = b""
        return whole

    def end(self) -> bytes:
        """What was held when the stream ended."""
        held, self._held = self._held, b""
        return held
