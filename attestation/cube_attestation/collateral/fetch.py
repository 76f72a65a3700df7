# SPDX-License-Identifier: Apache-2.0
"""From a bundle to the same bundle with what it lacked: find, ask, check, add, until nothing new is lacking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from cube_attestation.bundle import Bundle
from cube_attestation.cmw import Collection
from cube_attestation.errors import AttestationError, BadInput, NotAuthentic, Unreachable

from . import nvidia, sources, store
from .cache import Cache, digest
from .http import Client, Unknown
from .model import Accept, Answer, Context, Need, Request
from .needs import find

MAX_PIECES = 256  # more than any machine needs


@dataclass(frozen=True)
class Failure:
    """A piece that could not be had, and why."""

    need: Need
    error: AttestationError


@dataclass(frozen=True)
class Outcome:
    """The bundle with what was had, and what was not."""

    bundle: Bundle
    got: tuple[Need, ...]
    failed: tuple[Failure, ...]


@dataclass(frozen=True)
class Fetcher:
    """How to get at answers. ``client`` None: ask nobody; ``refresh``: don't look into the cache.

    ``say`` hears one line for each piece.
    """

    client: Client | None
    cache: Cache | None
    clock: Callable[[], datetime]
    refresh: bool = False
    say: Callable[[str], None] = lambda _: None

    def complete(self, bundle: Bundle, context: Context, *, live: bool = False, anew: bool = False) -> Outcome:
        """Ask for one piece after the other. ``live``: judge by the clock as it runs, not by the context's.
        ``anew``: ask also for what ages although it is still in force; where that fails the old piece stays.

        Never raises for a piece that can't be had; raises BadInput for a record of sources that is broken.
        """
        sources.read(bundle.evidence)
        evidence = store.without_ageing(bundle.evidence) if anew else bundle.evidence
        got: dict[str, Need] = {}
        failed: dict[str, Failure] = {}
        listed: list[sources.Source] = []
        down: set[tuple[str, str]] = set()
        for _ in range(MAX_PIECES):
            if live:
                context = replace(context, now=self.clock())
            waiting = (need for need in find(evidence, context) if need.name not in got and need.name not in failed)
            need = next(waiting, None)
            if need is None:
                break
            try:
                evidence, answer = self._one(need, evidence, down)
            except AttestationError as error:
                failed[need.name] = Failure(need, error)
                self.say(f"{need.what}: failed: {error}")
                continue
            got[need.name] = need
            listed.append(self._source(need, answer))
            self.say(f"{need.what}: {len(answer.body)} bytes from {'the cache' if answer.stored else answer.url}")
        if anew:
            evidence = _restored(evidence, bundle.evidence)
        if listed:
            evidence = sources.record(bundle.evidence, evidence, listed)
        return Outcome(replace(bundle, evidence=evidence), tuple(got.values()), tuple(failed.values()))

    def _source(self, need: Need, answer: Answer) -> sources.Source:
        moment = answer.time or self.clock()
        return sources.Source(need.item, need.what, answer.url, digest(answer.body), moment)

    def _one(self, need: Need, evidence: Collection, down: set[tuple[str, str]]) -> tuple[Collection, Answer]:
        """One piece from the first of its requests that is answered. Raises what the last one failed with.

        ``down``: services that gave no answer in this run; they are not waited for again, and asked once only.
        """
        accept = need.accept
        if accept is None or not need.requests:
            raise Unreachable(f"no service gives it: {need.why}", todo=need.todo)
        last: AttestationError = Unreachable("not in the cache", todo="leave out --offline")
        for request in need.requests:
            stored = None if self.cache is None or self.refresh else self.cache.get(request, self.clock())
            if stored is not None:
                try:
                    return accept(stored, evidence), stored
                except (BadInput, NotAuthentic) as error:
                    last = error  # out of date or broken: asked for again
            if self.client is None:
                continue
            try:
                client = self.client
                if (request.service, request.host) in down:
                    client = replace(client, attempts=1, timeout=min(client.timeout, 5.0))
                return self._fetched(client, accept, request, evidence)
            except Unknown as error:
                last = error
            except (Unreachable, BadInput, NotAuthentic) as error:
                last = error
                if isinstance(error, Unreachable):
                    down.add((request.service, request.host))
                if not request.host:  # mirrors of one piece: the next may work
                    raise
        raise last

    def _fetched(
        self, client: Client, accept: Accept, request: Request, evidence: Collection
    ) -> tuple[Collection, Answer]:
        answer = client.get(request)
        try:
            changed = accept(answer, evidence)
        except BadInput as error:
            raise BadInput(error.what, where=f"{answer.url}: {error.where}", todo=error.todo) from error
        except NotAuthentic as error:
            where = f"{answer.url}: {error.where}"
            raise NotAuthentic(error.what, why=error.why, where=where, todo=error.todo) from error
        if self.cache is not None and (problem := self.cache.put(request, answer)):
            self.say(f"not kept for the next time: {problem}")
        return changed, answer


def _restored(evidence: Collection, before: Collection) -> Collection:
    """The evidence with the ageing pieces of ``before`` for which nothing newer could be had."""
    for label in store.AGEING:
        if label in before.items and label not in evidence.items:
            evidence = store.put(evidence, label, before.items[label].value)
    old, new = store.nvidia_collateral(before).ocsp, store.nvidia_collateral(evidence)
    left = [one for one in old if not any(nvidia.superseded(one, newer) for newer in new.ocsp)]
    return store.put_nvidia(evidence, new.rims, (*new.ocsp, *left)) if left else evidence
