# SPDX-License-Identifier: Apache-2.0
"""One client's connection and its machine's: bytes pass both ways as they come, each direction ends on its own.

What a client can't otherwise notice is made plain: a connection that was cut (by the network, by an attacker, by a
key that no longer passes) ends with a reset and never looks like the end of an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass, field

from cube_attestation.errors import Unreachable

from .channel import CHUNK, Broken, Channel
from .keys import Key
from .targets import Address

CONNECT_S = 10.0  # TCP and TLS together
HALF_S = 30.0  # how long one direction may outlive the machine's end of the other
_QUIET_S = 1.0


@dataclass
class Upstream:
    """A TLS connection to a machine; nothing of a client's was sent yet."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    channel: Channel

    async def close(self) -> None:
        """End it politely, or at once if that does not work."""
        self.channel.finish()
        self.writer.write(self.channel.outgoing())
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self.writer.wait_closed()
        self.writer.transport.abort()


async def connect(address: Address, context: ssl.SSLContext) -> Upstream:
    """TCP and the TLS handshake, within ``CONNECT_S``. Raises Unreachable."""
    where = f"https://{address}"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(address.host, address.port, limit=CHUNK)
            channel = Channel(context, address.host)
            while not channel.shake_hands():
                writer.write(channel.outgoing())
                await writer.drain()
                channel.feed(await reader.read(CHUNK))
            writer.write(channel.outgoing())
            await writer.drain()
            return Upstream(reader, writer, channel)
    except BaseException as error:
        if writer is not None:
            writer.transport.abort()
        if isinstance(error, TimeoutError):
            raise Unreachable(f"no TLS connection within {CONNECT_S:g} s", where=where) from error
        if isinstance(error, Broken):
            raise Unreachable(error.what, where=where, todo="is this the service port?") from error
        if isinstance(error, OSError):
            raise Unreachable(f"can't connect: {error}", where=where, todo="is the machine up?") from error
        raise


@dataclass(eq=False)
class Relay:
    """Passes bytes between ``client`` and ``upstream`` until both ends ended, or one of them broke."""

    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    upstream: Upstream
    idle_s: float
    _last: float = 0.0
    _asked: bool = True  # the last bytes were the client's: it waits for an answer
    _over: asyncio.Future[None] = field(init=False)

    def __post_init__(self) -> None:
        self._over = asyncio.get_running_loop().create_future()

    @property
    def waiting(self) -> bool:
        """Whether an answer is due or under way, as far as one can tell without reading along."""
        return self._asked or asyncio.get_running_loop().time() - self._last < _QUIET_S

    def cut(self) -> None:
        """End both connections now, with a reset: not one more byte goes out."""
        if not self._over.done():
            self._over.set_result(None)
            reset(self.client[1])
            reset(self.upstream.writer)

    async def run(self, key: Key, head: bytes) -> bool:
        """Send ``head`` and go on from there; whether both ends ended properly."""
        key.hold(self.cut)
        if self._over.done():
            return False
        self._last = asyncio.get_running_loop().time()
        halves = {asyncio.create_task(self._to_machine(head)), asyncio.create_task(self._to_client())}
        idle = asyncio.create_task(self._watch_idle())
        fine = False
        try:
            waiting: set[asyncio.Future[None]] = {*halves, idle, self._over}
            while not fine:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not done <= halves or any(half.exception() for half in done):
                    break
                fine = not halves & waiting
            return fine
        finally:
            key.release(self.cut)
            for task in (*halves, idle):
                task.cancel()
            await asyncio.gather(*halves, idle, return_exceptions=True)
            if fine:
                await self.upstream.close()
            else:
                reset(self.client[1])
                reset(self.upstream.writer)

    async def _watch_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while (left := self._last + self.idle_s - loop.time()) > 0:
            await asyncio.sleep(left)

    def _alive(self, *, asked: bool) -> None:
        self._last = asyncio.get_running_loop().time()
        self._asked = asked

    async def _to_machine(self, data: bytes) -> None:
        reader, channel, writer = self.client[0], self.upstream.channel, self.upstream.writer
        while data:
            channel.write(data)
            writer.write(channel.outgoing())
            await writer.drain()
            self._alive(asked=True)
            data = await reader.read(CHUNK)
        channel.finish()
        writer.write(channel.outgoing())
        await writer.drain()

    async def _to_client(self) -> None:
        reader, channel, writer = self.upstream.reader, self.upstream.channel, self.client[1]
        while True:
            if data := channel.read():
                writer.write(data)
                await writer.drain()
                self._alive(asked=False)
            if channel.ended:
                break
            channel.feed(await reader.read(CHUNK))
            self.upstream.writer.write(channel.outgoing())  # what TLS itself may owe, such as key updates
        if writer.can_write_eof():
            writer.write_eof()
        asyncio.get_running_loop().call_later(HALF_S, self.cut)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset, so that the other end can't take it for the proper end."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
