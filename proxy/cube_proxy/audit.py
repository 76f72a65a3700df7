# SPDX-License-Identifier: Apache-2.0
"""The audit chains of this boot: what Envoy saw becomes records, chained for each domain and kept in the store.

A chain begins with the first record of its domain, and learns of gaps and of new evidence just before its next one:
ten thousand quiet domains cost nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cube_attestation import jcs, times
from cube_attestation.audit.record import MACHINE, Chain, Genesis, Head
from cube_attestation.domains import Domain, DomainSet

from .audit_line import Seen
from .audit_store import Store
from .tls import TlsKey
from .usage import Usage

_REMEMBERED_SETS = 64


@dataclass(frozen=True)
class Origin:
    """What every genesis of this boot says."""

    environment: str
    boot: str
    tls_spki: str
    launch: str


@dataclass
class _Log:
    """One chain: where it stands, and what it has been told."""

    chain: Chain
    gaps: int = 0
    evidence: str = ""
    head: dict[str, jcs.Json] | None = None


@dataclass
class _Batch:
    """Lines that are to be written together; the chain moves on once they stand."""

    chain: Chain
    first: int
    lines: list[bytes] = field(default_factory=list)
    seen: list[tuple[Seen, str]] = field(default_factory=list)

    def add(self, kind: str, fields: Mapping[str, jcs.Json]) -> None:
        line, self.chain = self.chain.append(kind, fields)
        self.lines.append(line)


class Auditor:
    """Writes records of what ended. While something is ``pending``, which the store refused, nothing is served."""

    def __init__(self, origin: Origin, key: TlsKey, store: Store) -> None:
        self._origin = origin
        self._key = key
        self._store = store
        self._logs: dict[str, _Log] = {}
        self._gaps: list[dict[str, jcs.Json]] = []
        self._evidence = ""
        self._models: dict[str, frozenset[str]] = {}
        self._keys: dict[str, frozenset[str]] = {}
        self._earlier: DomainSet | None = None
        self._now: DomainSet | None = None
        self._generations: deque[tuple[int, int]] = deque([(0, 0)], maxlen=_REMEMBERED_SETS)
        self._time = 0
        self._time_text = ""
        self.usage = Usage()
        self.pending: list[Seen] = []
        self.problem = ""
        self.written = 0
        self.lost = 0

    @property
    def healthy(self) -> bool:
        """Whether every request so far has its record."""
        return not self.problem

    @property
    def room(self) -> int:
        """Bytes that the store takes."""
        return self._store.room

    def admitted(self, bundle: str) -> None:
        """The lease in force was earned by the bundle with this digest."""
        self._evidence = bundle

    def configured(self, found: DomainSet, generation: int, now_ms: int) -> None:
        """``found`` is in force. Requests that began under the set before may still end."""
        self._earlier, self._now = self._now, found
        both = [*(self._earlier.domains if self._earlier else ()), *found.domains]
        self._models, self._keys = {}, {}
        for domain in both:
            self._models[domain.id] = self._models.get(domain.id, frozenset()) | _shown(domain)
            self._keys[domain.id] = self._keys.get(domain.id, frozenset()) | _kids(domain)
        self._generations.append((now_ms, generation))

    def gap(self, cause: str, missing: int, *, exact: bool, since: float, now: float) -> None:
        """``missing`` requests have no record; every chain says so before its next one."""
        self.lost += missing
        fields: dict[str, jcs.Json] = {
            "cause": cause,
            "missing": missing,
            "exact": exact,
            "since": clock_text(since),
        }
        self._gaps.append({**fields, "until": clock_text(now)})

    def take(self, seen: list[Seen], now: float) -> None:
        """Write records of what ended, in this order; what the store does not take stays pending."""
        self.pending += seen
        self.retry(now)

    def retry(self, now: float) -> None:
        """Try to write what is pending."""
        waiting, self.pending = self.pending, []
        batches: dict[str, _Batch] = {}
        for entry in waiting:
            chain = self._chain_of(entry)
            batch = batches.get(chain)
            if batch is None:
                batch = batches[chain] = self._begin(chain, now)
            batch.add("request", self._request(chain, entry, now))
            batch.seen.append((entry, chain))
        problem = ""
        for chain, batch in batches.items():
            problem = self._write(chain, batch) or problem
        self.problem = problem

    def _begin(self, chain: str, now: float) -> _Batch:
        """A batch that first tells the chain what it missed: its beginning, gaps, new evidence."""
        log = self._logs.get(chain)
        batch = _Batch(log.chain if log else Chain(self._origin.boot, chain), log.chain.seq if log else 0)
        if log is None:
            batch.add("genesis", self._genesis(chain, now).to_json())
        elif log.evidence != self._evidence:
            fields: dict[str, jcs.Json] = {"evidence": self._evidence, "generation": self._generations[-1][1]}
            batch.add("admission", {**fields, "time": self._clock(now)})
        for gap in self._gaps[log.gaps if log else 0 :]:
            batch.add("gap", {**gap, "time": self._clock(now)})
        return batch

    def _write(self, chain: str, batch: _Batch) -> str:
        """Words for why it can't be written, "" when it was."""
        try:
            self._store.append(chain, batch.first, batch.lines)
        except OSError as error:
            self.pending += [entry for entry, _ in batch.seen]
            return f"audit records can't be written: {error.strerror}"
        self._logs[chain] = _Log(batch.chain, len(self._gaps), self._evidence)
        self.written += len(batch.lines)
        for entry, domain in batch.seen:
            self.usage.add(domain, self._model(domain, entry), entry)
        return ""

    def _chain_of(self, seen: Seen) -> str:
        """The domain of the path; of the route's name or the token where Envoy has rewritten the path."""
        first, _, rest = seen.path[1:].partition("/")
        if first == "proxy":
            first = rest.partition("/")[0]
        for candidate in (first, seen.route.partition("/")[0], seen.claimed):
            if candidate in self._models:
                return candidate
        return MACHINE

    def _request(self, chain: str, seen: Seen, now: float) -> dict[str, jcs.Json]:
        # a token of another domain is none of this one's business
        passed = seen.status not in (401, 403) and seen.claimed in ("", chain)
        own = passed or (seen.claimed == chain and seen.key in self._keys.get(chain, ()))
        return {
            "time": self._clock(now),
            "request": seen.request,
            "token": seen.token if own else "",
            "key": seen.key if own else "",
            "subject": seen.subject if own else "",
            "method": seen.method,
            "path": _below(seen.path, chain),
            "model": self._model(chain, seen),
            "status": seen.status,
            "why": seen.why,
            "flags": seen.flags,
            "generation": self._generation(seen.began_ms),
            "received_bytes": seen.received_bytes,
            "sent_bytes": seen.sent_bytes,
            "duration_ms": seen.duration_ms,
            "first_byte_ms": seen.first_byte_ms,
            "prompt_tokens": seen.prompt_tokens,
            "completion_tokens": seen.completion_tokens,
        }

    def _model(self, chain: str, seen: Seen) -> str:
        return seen.model if seen.model in self._models.get(chain, ()) else ""

    def _generation(self, began_ms: int) -> int:
        place = bisect_right(self._generations, (began_ms, 1 << 60)) - 1
        return self._generations[max(place, 0)][1]

    def _genesis(self, chain: str, now: float) -> Genesis:
        return Genesis(
            environment=self._origin.environment,
            tls_spki=self._origin.tls_spki,
            audit_spki=self._key.spki,
            launch=self._origin.launch,
            evidence=self._evidence,
            generation=self._generations[-1][1],
            time=times.parse(self._clock(now)),
            before=self._store.before.get(chain),
        )

    def _clock(self, now: float) -> str:
        """Guest time for the next record: it never goes back."""
        if int(now) > self._time:
            self._time, self._time_text = int(now), clock_text(now)
        return self._time_text

    def page(self, chain: str, first: int, since: str, until: str, limit: int) -> list[bytes]:
        """At most ``limit`` records' lines of ``chain`` from number ``first`` on, with time in [since, until)."""
        return self._store.read(chain, first, since.encode(), until.encode(), limit)

    def head(self, chain: str, now: float) -> dict[str, jcs.Json] | None:
        """The signed head of ``chain``; None while it has no record."""
        log = self._logs.get(chain)
        if log is None:
            return None
        if log.head is None:
            said = Head(
                environment=self._origin.environment,
                boot=self._origin.boot,
                domain=chain,
                seq=log.chain.seq - 1,
                head=log.chain.head,
                time=times.parse(self._clock(now)),
            )
            log.head = said.sign(self._key.key)
        return log.head

    def last(self, chain: str) -> int:
        """Number of the last record of ``chain``, -1 before the first."""
        log = self._logs.get(chain)
        return log.chain.seq - 1 if log else -1

    def tell(self, chain: str, now: float) -> None:
        """Bring ``chain`` up to date before it is read, so that its reader learns of gaps."""
        batch = self._begin(chain, now)
        if batch.lines and not self.problem:
            self.problem = self._write(chain, batch)


def _shown(domain: Domain) -> frozenset[str]:
    """The names that the domain's clients use, of entries ``NAME`` and ``NAME=MODEL``."""
    return frozenset(entry.partition("=")[0] for entry in domain.models)


def _kids(domain: Domain) -> frozenset[str]:
    return frozenset(key.kid for key in domain.keys)


def _below(path: str, chain: str) -> str:
    """The path without ``/proxy`` and the domain."""
    for prefix in (f"/{chain}", f"/proxy/{chain}"):
        if path.startswith(prefix):
            return path[len(prefix) :]
    return path


def clock_text(now: float) -> str:
    return times.format_time(datetime.fromtimestamp(int(now), UTC))
