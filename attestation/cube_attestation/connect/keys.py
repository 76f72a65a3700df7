# SPDX-License-Identifier: Apache-2.0
"""The keys that were attested, and until when that counts. Lives in one event loop.

No byte passes over a key whose last passing verdict is older than ``recheck_s``: well before that the key is
attested again, and when that fails, or can't be had in time, everything that uses it is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from cube_attestation.errors import Unreachable

from .attest import UNREACHABLE, Attested, Pin, Refusal

Attest = Callable[[Pin, float], Attested]
Cut = Callable[[], None]

_T = TypeVar("_T")
INTERNAL = "connect.internal"
_EARLY = 0.75  # part of the time after which a key is attested again
_RETRY_S = 1.0
_REFUSED_S = 5.0  # so long a refusal is the answer to everyone who meets the key
_AT_ONCE = 4  # attestations that run at the same time
_LOOK_S = 5.0  # how late a computer that slept may notice how late it is
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # a verdict ages while this computer sleeps


def _now() -> float:
    return time.clock_gettime(_CLOCK)


class Key:
    """One key while its verdict counts. ``cuts``: how to end what uses it."""

    def __init__(self, attested: Attested, until: float) -> None:
        self.attested = attested
        self.until = until
        self.used = True
        self.dropped = False
        self._cuts: set[Cut] = set()

    def hold(self, cut: Cut) -> None:
        """Have ``cut`` called when the key does not pass any more; at once if that is so already."""
        if self.dropped:
            cut()
        else:
            self._cuts.add(cut)

    def release(self, cut: Cut) -> None:
        self._cuts.discard(cut)

    def drop(self) -> int:
        """Cut what uses it; how many that were."""
        self.dropped = True
        cuts, self._cuts = self._cuts, set()
        for cut in cuts:
            cut()
        return len(cuts)

    @property
    def held(self) -> bool:
        return bool(self._cuts)


class KeyRing:
    """Attests each key once for all who meet it. ``attest`` blocks, and runs in a thread of its own."""

    def __init__(
        self, attest: Attest, *, recheck_s: float, timeout_s: float, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self._attest, self._tell = attest, tell
        self._recheck_s, self._timeout_s = recheck_s, timeout_s
        self._keys: dict[Pin, asyncio.Task[Key]] = {}
        self._watching: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def demand(self, pin: Pin) -> Key:
        """The key, if it passes. Raises Refusal or Unreachable, for all who ask within some seconds the same."""
        task = self._keys.get(pin)
        if task is None or _outlived(task):
            task = self._keys[pin] = asyncio.create_task(self._first(pin))
            task.add_done_callback(lambda done: self._settle(pin, done))
        key = await asyncio.shield(task)
        key.used = True
        return key

    def _settle(self, pin: Pin, done: asyncio.Task[Key]) -> None:
        """A key that passed is watched; a refusal is forgotten after a while, what is unknown at once."""
        if done.cancelled():
            self._forget(pin, done)
        elif error := done.exception():
            wait = _REFUSED_S if isinstance(error, Refusal) else 0.0
            asyncio.get_running_loop().call_later(wait, self._forget, pin, done)
        else:
            watching = asyncio.create_task(self._watch(pin, done))
            self._watching.add(watching)
            watching.add_done_callback(self._watching.discard)

    def _forget(self, pin: Pin, task: asyncio.Task[Key]) -> None:
        if self._keys.get(pin) is task:
            del self._keys[pin]

    async def _first(self, pin: Pin) -> Key:
        async with self._slots:
            started = _now()
            attested = await self._judge(pin, self._timeout_s)
        self._tell(f"attested key {pin.spki}: {attested.words()}")
        return Key(attested, started + self._recheck_s)

    async def _judge(self, pin: Pin, limit: float) -> Attested:
        """The verdict, from a thread. Raises Refusal, for defects of ours too, and Unreachable."""
        try:
            return await in_thread(lambda: self._attest(pin, limit))
        except (Refusal, Unreachable):
            raise
        except Exception as error:
            raise Refusal(INTERNAL, f"the verification itself failed: {type(error).__name__}: {error}") from error

    async def _watch(self, pin: Pin, task: asyncio.Task[Key]) -> None:
        """Attest the key again and again while somebody uses it; drop it when it does not pass."""
        key = task.result()
        why = ""
        while not why:
            while (left := key.until - self._recheck_s * (1 - _EARLY) - _now()) > 0:
                await asyncio.sleep(min(left, _LOOK_S))
            if not key.used and not key.held:
                self._forget(pin, task)
                key.drop()
                return
            key.used = False
            why = await self._again(pin, key)
        self._forget(pin, task)
        cut = key.drop()
        self._tell(f"dropped key {pin.spki}: {why}" + (f"; {cut} connections cut" if cut else ""))

    async def _again(self, pin: Pin, key: Key) -> str:
        """Attest ``key`` before its time is over; empty when it passed, else why not."""
        trouble = f"{UNREACHABLE}: it could not be attested again in time"
        while (left := key.until - _now()) > 0:
            started, limit = _now(), min(left * 0.9, self._timeout_s)  # so that its error comes before our end
            try:
                async with asyncio.timeout(left):
                    key.attested = await self._judge(pin, limit)
            except Refusal as error:
                return str(error)
            except Unreachable as error:
                trouble = f"{UNREACHABLE}: {error}"
            except TimeoutError:
                break
            else:
                key.until = started + self._recheck_s
                return ""
            await asyncio.sleep(min(_RETRY_S, max(0.0, key.until - _now())))
        return trouble

    async def close(self) -> None:
        """Stop watching and attesting."""
        running = [*self._watching, *self._keys.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _outlived(task: asyncio.Task[Key]) -> bool:
    """Whether the time of a key's verdict is over, and its watcher, late after a sleep, does not know it yet."""
    fine = task.done() and not task.cancelled() and task.exception() is None
    return fine and _now() >= task.result().until


async def in_thread(call: Callable[[], _T]) -> _T:
    """``call`` in a daemon thread: unlike asyncio's pool it can't hold up the end of the program."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, problem = None, None
        try:
            result = call()
        except BaseException as error:  # whatever it is, it is the caller's
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, daemon=True).start()
    return await future
