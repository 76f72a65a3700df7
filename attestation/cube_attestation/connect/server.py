# SPDX-License-Identifier: Apache-2.0
"""The listener: takes clients' connections, finds each a machine that passes, and ends when it is told to.

Never logged: what clients send or get, paths included. One line tells when a replica's state changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cube_attestation.client import tls_context
from cube_attestation.errors import BadInput, Unreachable
from cube_attestation.verdict import NOT_AUTHENTIC, PASSED, REFUSED

from . import answers, head
from .attest import UNREACHABLE, Pin, Refusal
from .channel import CHUNK
from .keys import Attest, Key, KeyRing
from .relay import Relay, Upstream, connect, reset
from .targets import Address, Rotation, Target

BUSY = "connect.too_many_connections"
BAD_REQUEST = "connect.bad_request"
EXIT_UNREACHABLE = 4
_LINGER_S = 1.0
_QUIET_S = 10.0


@dataclass(frozen=True)
class Settings:
    """Times in seconds. ``recheck_s``: how long a verdict counts. ``attest_s``: one verification at most."""

    listen: Address
    targets: tuple[Target, ...]
    recheck_s: float = 300.0
    attest_s: float = 30.0
    head_s: float = 10.0
    idle_s: float = 600.0
    drain_s: float = 30.0
    connections: int = 256


Trouble = tuple[Target, Refusal | Unreachable]


class NoMachine(Exception):
    """No replica can be used: what was wrong with each, in the order in which they were tried."""

    def __init__(self, troubles: Sequence[Trouble]) -> None:
        super().__init__("no machine can be used")
        self.troubles = troubles

    @property
    def refusal(self) -> Refusal | None:
        return next((error for _, error in self.troubles if isinstance(error, Refusal)), None)

    @property
    def exit_code(self) -> int:
        """The architecture's: 2 before 1 before 4."""
        codes = {error.exit_code for _, error in self.troubles if isinstance(error, Refusal)}
        return next((code for code in (NOT_AUTHENTIC, REFUSED) if code in codes), EXIT_UNREACHABLE)

    def words(self) -> str:
        return "; ".join(f"{target}: {text(error)}" for target, error in self.troubles)


def text(error: Refusal | Unreachable) -> str:
    """Code and words of what is wrong with a replica."""
    return str(error) if isinstance(error, Refusal) else f"{UNREACHABLE}: {error}"


class Forwarder:
    """Serves until ``stop``. ``attest`` blocks (see ``attest.Attester``); ``tell`` takes one line of text."""

    def __init__(self, settings: Settings, attest: Attest, tell: Callable[[str], None]) -> None:
        self._settings, self._tell = settings, tell
        self._context = tls_context()
        self._ring = KeyRing(attest, recheck_s=settings.recheck_s, timeout_s=settings.attest_s, tell=tell)
        self._rotation = Rotation(len(settings.targets))
        self._told: dict[Target, str] = {}
        self._lately: dict[tuple[Target, str], float] = {}
        self._clients: set[asyncio.Task[None]] = set()
        self._heads: set[asyncio.Task[None]] = set()  # clients that have not asked for anything yet
        self._relays: set[Relay] = set()
        self._server: asyncio.Server | None = None

    async def bind(self) -> Address:
        """Take the port, without answering yet; the address, with the port that it became. Raises BadInput."""
        listen = self._settings.listen
        try:
            self._server = await asyncio.start_server(
                self._accept, listen.host, listen.port, limit=CHUNK, start_serving=False
            )
        except OSError as error:
            words = f"can't listen: {error.strerror or error}"
            raise BadInput(words, where=f"--listen {listen}", todo="is the port taken?") from error
        return Address(listen.host, int(self._server.sockets[0].getsockname()[1]))

    async def listen(self) -> None:
        """Take clients from now on; after ``bind``."""
        if self._server is not None:
            await self._server.start_serving()

    async def probe(self) -> None:
        """Attest the machine behind every URL. Raises NoMachine when none passes."""
        found = await asyncio.gather(*(self._usable(target) for target in self._settings.targets))
        troubles = [each for each in found if each is not None]
        if len(troubles) == len(found):
            raise NoMachine(troubles)

    async def stop(self, *, at_once: asyncio.Event | None = None) -> None:
        """Take no more clients; let answers under way end within ``drain_s`` or until ``at_once``; cut the rest."""
        if self._server is not None:
            self._server.close()
        for task in self._heads:
            task.cancel()
        end = asyncio.get_running_loop().time() + self._settings.drain_s
        while self._clients and asyncio.get_running_loop().time() < end:
            for relay in [relay for relay in self._relays if not relay.waiting]:
                relay.cut()
            if at_once is not None and at_once.is_set():
                break
            await asyncio.wait(self._clients, timeout=0.1)
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._ring.close()

    async def _usable(self, target: Target) -> Trouble | None:
        try:
            upstream, _ = await self._open(target, self._settings.attest_s)
        except (Refusal, Unreachable) as error:
            return target, error
        await upstream.close()
        return None

    async def _open(self, target: Target, seconds: float) -> tuple[Upstream, Key]:
        """A connection to ``target`` whose key passes, within ``seconds``. Raises Refusal, Unreachable."""
        try:
            try:
                async with asyncio.timeout(seconds):
                    return await self._attested(target)
            except TimeoutError as error:
                raise Unreachable(f"no attested connection within {seconds:.3g} s", where=str(target)) from error
        except (Refusal, Unreachable) as error:
            self._say(target, f"{'refused' if isinstance(error, Refusal) else 'no use'}: {text(error)}")
            raise

    async def _attested(self, target: Target) -> tuple[Upstream, Key]:
        upstream = await connect(target.service, self._context)
        try:
            key = await self._ring.demand(Pin(upstream.channel.spki, target.evidence))
        except BaseException:
            upstream.writer.transport.abort()
            raise
        self._say(target, "in use")
        return upstream, key

    def _say(self, target: Target, state: str) -> None:
        """Tell changes only, and what comes and goes (a balancer before different machines) not all the time."""
        now = asyncio.get_running_loop().time()
        self._lately = {told: at for told, at in self._lately.items() if now - at < _QUIET_S}
        if self._told.get(target) != state and (target, state) not in self._lately:
            self._told[target] = state
            self._lately[target, state] = now
            self._tell(f"{target}: {state}")

    async def _find(self) -> tuple[Upstream, Key]:
        """A machine for one connection. Raises NoMachine."""
        loop = asyncio.get_running_loop()
        troubles: list[Trouble] = []
        end = loop.time() + self._settings.attest_s
        order = self._rotation.order(loop.time())
        for tried, index in enumerate(order):
            target = self._settings.targets[index]
            share = (end - loop.time()) / (len(order) - tried)  # one that hangs leaves the others their time
            try:
                found = await self._open(target, share)
            except (Refusal, Unreachable) as error:
                troubles.append((target, error))
            else:
                self._rotation.worked(index)
                return found
            self._rotation.failed(index, loop.time())
        raise NoMachine(troubles)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this as one
        self._clients.add(task)
        try:
            with contextlib.suppress(OSError):  # the client went away
                await self._serve(task, reader, writer)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._clients) > 2 * self._settings.connections:  # even saying no has its bounds
            reset(writer)
            return
        if len(self._clients) > self._settings.connections:
            words = f"{self._settings.connections} connections are open; try again later."
            await _answer(reader, writer, answers.refusal(503, BUSY, words, retry_after=1))
            return
        self._heads.add(task)
        try:
            async with asyncio.timeout(self._settings.head_s):
                data = await _read_head(reader)
        except head.NoRequest as error:
            await _answer(reader, writer, answers.refusal(error.status, BAD_REQUEST, str(error)))
            return
        except TimeoutError:
            words = f"No whole request head within {self._settings.head_s:g} s."
            await _answer(reader, writer, answers.refusal(408, BAD_REQUEST, words))
            return
        finally:
            self._heads.discard(task)
        if not data:
            return
        try:
            upstream, key = await self._find()
        except NoMachine as error:
            await _answer(reader, writer, _no_machine(error))
            return
        relay = Relay((reader, writer), upstream, self._settings.idle_s)
        self._relays.add(relay)
        try:
            await relay.run(key, data)
        finally:
            self._relays.discard(relay)


def _no_machine(error: NoMachine) -> bytes:
    if (refused := error.refusal) is not None:
        words = f"No machine passed attestation; nothing was sent. {error.words()}"
        unsettled = any(isinstance(trouble, Unreachable) for _, trouble in error.troubles)
        return answers.refusal(502, refused.code, words, retry_after=5 if unsettled else None)
    words = f"No machine can be reached; nothing was sent. {error.words()}"
    return answers.refusal(503, UNREACHABLE, words, retry_after=5)


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    """The first request's head with what came behind it; empty when the client sent nothing. Raises NoRequest."""
    data, seen = bytearray(), 0
    while part := await reader.read(CHUNK):
        data += part
        if head.complete(data, seen):
            return bytes(data)
        seen = len(data)
    return b""


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    """Send ``answer`` and end. What the client still sends is thrown away for a moment: a reset would lose it."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            writer.write(answer)
            await writer.drain()
            writer.write_eof()
            while await reader.read(CHUNK):
                pass


async def serve(settings: Settings, attest: Attest, tell: Callable[[str], None]) -> int:
    """Probe, listen and forward until SIGINT or SIGTERM (a second one ends at once); the exit code.

    Raises BadInput when it can't listen.
    """
    loop = asyncio.get_running_loop()
    ending, at_once = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (at_once if ending.is_set() else ending).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    forwarder = Forwarder(settings, attest, tell)
    address = await forwarder.bind()
    probing = asyncio.create_task(forwarder.probe())
    asked = asyncio.create_task(ending.wait())
    try:
        await asyncio.wait({probing, asked}, return_when=asyncio.FIRST_COMPLETED)
        if probing.done():
            probing.result()
            if not ending.is_set():
                await forwarder.listen()
                tell(f"listening on http://{address}")
                await asked
                tell("ending: no new connections, waiting for answers under way")
    except NoMachine as error:
        tell("no machine passed: not listening")
        return error.exit_code
    finally:
        for task in (probing, asked):
            task.cancel()
        await forwarder.stop(at_once=at_once)
    return PASSED
