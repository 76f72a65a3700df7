# SPDX-License-Identifier: Apache-2.0
"""The client's side of one TLS connection over bytes in memory: no socket, no clock, no CA.

asyncio's own TLS can neither end one direction alone nor tell a cut connection from an ended one; here both are the
caller's to see. What to send is collected until ``outgoing`` takes it.
"""

from __future__ import annotations

import contextlib
import ssl

from cube_attestation.client import spki_of
from cube_attestation.errors import BadInput, Unreachable

CHUNK = 64 << 10


class Broken(Unreachable):
    """The TLS connection failed, or was cut without being ended."""


class Channel:
    """One connection to ``server_name`` (for SNI only: who is there is what the key's evidence says)."""

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=server_name)
        self._where = server_name
        self.ended = False  # the peer said that it will send no more
        self._finished = False

    def feed(self, data: bytes) -> None:
        """Take what came from the network; ``b""`` is its end."""
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    def outgoing(self) -> bytes:
        """What is to be sent now; it is forgotten here."""
        return self._out.read()

    def shake_hands(self) -> bool:
        """Go on with the handshake; whether it is done. Raises Broken."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise self._broken("the TLS handshake failed", error) from error
        return True

    @property
    def spki(self) -> str:
        """SPKI digest of the peer's key, after the handshake. Raises Broken if its certificate can't be read."""
        try:
            return spki_of(self._tls.getpeercert(binary_form=True) or b"")
        except BadInput as error:
            raise self._broken("its certificate can't be read", error) from error

    def read(self) -> bytes:
        """All that has come and can be read; empty when there is nothing yet, or ``ended``. Raises Broken."""
        parts = []
        while not self.ended:
            try:
                part = self._tls.read(CHUNK)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                part = b""
            except ssl.SSLError as error:
                raise self._broken("the connection was cut", error) from error
            self.ended = not part
            parts.append(part)
        return b"".join(parts)

    def write(self, data: bytes) -> None:
        """Encrypt ``data``. Raises Broken."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise self._broken("can't send", error) from error

    def finish(self) -> None:
        """Say that no more will be sent (close_notify); what the peer still sends can be read."""
        if not self._finished:
            self._finished = True
            with contextlib.suppress(
                ssl.SSLError
            ):  # it wants to see the peer's end, too: that is ``read``'s matter
                self._tls.unwrap()

    def _broken(self, what: str, error: Exception) -> Broken:
        return Broken(f"{what}: {getattr(error, 'reason', None) or error}", where=self._where)
