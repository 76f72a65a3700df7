# SPDX-License-Identifier: Apache-2.0
"""Questions to Envoy's admin socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 10.0
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True)
class Answer:
    """What Envoy said, and the process id of the Envoy that listens there."""

    process: int
    text: str


async def ask(admin: Path, target: str) -> Answer | None:
    """The body of ``GET target``; None when nobody answers: Envoy is starting, or gone."""
    try:
        reader, writer = await asyncio.open_unix_connection(admin)
    except OSError:
        return None
    try:
        peer: socket.socket = writer.get_extra_info("socket")
        process, _, _ = _CREDENTIALS.unpack(
            peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        writer.write(f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        async with asyncio.timeout(_SECONDS):
            data = await reader.read()
    except (TimeoutError, OSError):
        return None
    finally:
        writer.close()
    return Answer(process, data.decode("latin-1").replace("\r", ""))
