# SPDX-License-Identifier: Apache-2.0
"""A running machine: fresh evidence over its own TLS connection, completed with what is known, and the verdict."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from . import client
from .bundle import Bundle
from .cmw import EVIDENCE, Collection
from .policy import Policy
from .verdict import Verdict
from .verifier import verify

NONCE_BYTES = 32


def utc_now() -> datetime:
    """The clock, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Examined:
    """What was fetched and completed, the verdict over it, and the TLS key (SPKI digest) that it came over."""

    bundle: Bundle
    verdict: Verdict
    tls_spki: str


def examine(
    address: str,
    policy: Policy,
    *,
    known: Sequence[Bundle] = (),
    expected_spki: str | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
    clock: Callable[[], datetime] = utc_now,
    dial: client.Dial | None = None,
) -> Examined:
    """Ask the machine at ``address`` for evidence over a nonce of our own and appraise it under ``policy``.

    ``known``: bundles of earlier verifications. Each is tried for what machines don't send (certificates,
    collateral, image manifest); the first that leads to a pass counts, else the one that leaves the fewest reasons.
    Bad evidence is part of the verdict. Raises Unreachable, BadInput, KeyMismatch as ``client.fetch``.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    fetched = client.fetch(
        address, nonce, expected_spki=expected_spki, timeout=timeout, attempts=attempts, dial=dial
    )
    now = clock()  # fetching takes a while, and guest time is compared with this

    def appraise(evidence: Collection) -> Examined:
        bundle = Bundle(evidence)
        verdict = verify(bundle, policy, now=now, nonce=nonce, tls_spki=fetched.tls_spki)
        return Examined(bundle, verdict, fetched.tls_spki)

    first, *others = [complete(fetched.evidence, bundle) for bundle in known] or [fetched.evidence]
    best = appraise(first)
    for evidence in others:
        if best.verdict.passed:
            break
        best = min(best, appraise(evidence), key=lambda examined: len(examined.verdict.reasons))
    return best


def complete(evidence: Collection, known: Bundle) -> Collection:
    """``evidence`` with the endorsements and reference values of ``known`` that it lacks."""
    for label, item in known.evidence.items.items():
        if item.indicator != EVIDENCE and label not in evidence.items:
            evidence = evidence.with_item(label, item.media_type, item.value, item.indicator)
    return evidence
