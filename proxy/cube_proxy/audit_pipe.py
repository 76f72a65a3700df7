# SPDX-License-Identifier: Apache-2.0
"""From Envoy's access log to the audit chains: the pipe, and the count that shows what did not come through it.

Envoy counts its requests on its own. What it has finished by one look at its counters must have come through the
pipe by the next: the rest is a gap, and named. The pipe is open for reading and writing on both sides, so that its
content outlives either.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from . import audit_line, envoy_admin
from .audit import Auditor
from .audit_line import Seen
from .clock import Clock
from .log import log

COUNT_SECONDS = 2.0
_READ_BYTES = 64 << 10
_SLACK_MS = 5  # Envoy counts and logs an end within less
_COUNTERS = "/stats?filter=^http%5C.service%5C.downstream_rq_(total%7Cactive)$"
_COUNTER = re.compile(r"^http\.service\.downstream_rq_(total|active): ([0-9]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Count:
    """One look: which Envoy, and how many requests it has finished by its own count."""

    process: int
    finished: int


@dataclass(frozen=True)
class Ledger:
    """The last look, at ``looked`` (Unix seconds by Envoy's clock): ``due`` requests of ``process`` had ended.

    ``received`` lines have come in all, with those that a gap stands for; ``covered`` of them are of requests that
    had ended when the look was made.
    """

    process: int
    due: int
    looked: float
    received: int = 0
    covered: int = 0

    def with_lines(self, seen: Sequence[Seen]) -> Ledger:
        """After these lines have come, too."""
        until = self.looked * 1000 + _SLACK_MS
        covered = sum(entry.began_ms + entry.duration_ms <= until for entry in seen)
        return replace(self, received=self.received + len(seen), covered=self.covered + covered)


@dataclass(frozen=True)
class Gap:
    """Requests without a record: how many, and whether that is all."""

    cause: str
    missing: int
    exact: bool


def compare(ledger: Ledger, count: Count, now: float) -> tuple[Ledger, Gap | None]:
    """The ledger after a look that found ``count``, and what is missing of the look before.

    A new Envoy starts from nought: what the old one is known to have finished and did not send is a gap that may be
    larger, because its last requests were counted by nobody else.
    """
    missing = max(0, ledger.due - ledger.covered)
    if count.process != ledger.process:
        fresh = Ledger(count.process, count.finished, now, count.finished, count.finished)
        return fresh, Gap("envoy.restarted", missing, exact=False)
    received = ledger.received + missing
    after = Ledger(count.process, count.finished, now, received, received)
    return after, Gap("lines.lost", missing, exact=True) if missing else None


def parse_counters(answer: envoy_admin.Answer) -> Count | None:
    """The count in an answer of the admin socket; None before Envoy has its listener."""
    found = {name: int(value) for name, value in _COUNTER.findall(answer.text)}
    if len(found) != 2:
        return None
    return Count(answer.process, found["total"] - found["active"])


class Pipe:
    """Reads Envoy's lines and hands them to the auditor, which must take them before more are read.

    ``run`` is the folder of the pipe, and of the counts for an agent that comes after this one.
    """

    def __init__(self, run: Path, auditor: Auditor, now: Callable[[], float]) -> None:
        self._path = run / "audit.pipe"
        self._count_file = run / "audit.count"
        self._auditor = auditor
        self._now = now
        self._rest = b""
        self._received = 0  # before the first look
        self._ledger: Ledger | None = None
        self._after_restart = 0  # looks until what this agent's predecessor left is accounted for
        self._reading = False
        self.changed: Callable[[], None] = lambda: None
        self._descriptor = -1

    def open(self) -> None:
        """Open the pipe, making it if nobody has. Raises OSError."""
        with suppress(FileExistsError):
            os.mkfifo(self._path, 0o600)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
            raise OSError(f"{self._path} is no pipe: remove it and start Envoy anew")
        self._restore()
        self._resume()

    def _restore(self) -> None:
        """Take over from an agent that ended while Envoy went on."""
        try:
            held = json.loads(self._count_file.read_text())
            self._ledger = Ledger(**{field.name: held[field.name] for field in fields(Ledger)})
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError):
            self._ledger = Ledger(0, 0, Clock.read().wall)
        self._after_restart = 3  # the second shows it, unless a line within the slack stood in for the lost one

    def _resume(self) -> None:
        if not self._reading:
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)
            self._reading = True

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        seen = [entry for line in lines if (entry := audit_line.parse(line)) is not None]
        self._auditor.take(seen, self._now())
        self._received += len(seen)
        if self._ledger is not None:
            self._ledger = self._ledger.with_lines(seen)
            self._keep()
        if not self._auditor.healthy:
            self._pause()

    def _pause(self) -> None:
        """The store is full: what is not read waits in the pipe and in Envoy."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._reading = False
        log(f"nothing is served: {self._auditor.problem}")
        self.changed()

    def _keep(self) -> None:
        """Leave the counts behind."""
        if self._ledger is not None:
            with suppress(OSError):  # the store says when the disk is full; without counts a gap is less exact
                self._count_file.write_text(json.dumps(asdict(self._ledger)))

    def tick(self) -> None:
        """Try again what the store refused; serve and read on once it is written."""
        if self._reading:
            return
        self._auditor.retry(self._now())
        if self._auditor.healthy:
            log("audit records are written again")
            self._resume()
            self.changed()

    async def watch(self, admin: Path) -> None:
        """Compare with Envoy's counters for ever."""
        while True:
            await asyncio.sleep(COUNT_SECONDS)
            answer = await envoy_admin.ask(admin, _COUNTERS)
            count = parse_counters(answer) if answer else None
            if count is not None and self._reading:
                self._compare(count)

    def _compare(self, count: Count) -> None:
        now = Clock.read().wall
        if self._ledger is None:
            self._ledger = Ledger(count.process, count.finished, now, self._received, self._received)
            self._keep()
            return
        since = self._ledger.looked
        self._ledger, gap = compare(self._ledger, count, now)
        if gap is not None:
            cause = "agent.restarted" if self._after_restart and gap.cause == "lines.lost" else gap.cause
            self._auditor.gap(cause, gap.missing, exact=gap.exact, since=since, now=self._now())
            log(f"audit: a gap, {cause}: {gap.missing} requests that Envoy counted have no record")
        self._after_restart = max(0, self._after_restart - 1)
        self._keep()
