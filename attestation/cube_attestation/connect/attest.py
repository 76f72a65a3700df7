# SPDX-License-Identifier: Apache-2.0
"""Is there a machine that passes behind this TLS key? Asks management ports, each over that very key.

Who can't reach one may have bundles of the machines' gate instead. A key is made in a machine's memory and ends
with the boot, so that a bundle vouches for it as long as its receipt is not too old; that receipt, and so the
moment, is the word of a gate whose key the policy names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cube_attestation import bundle as bundles
from cube_attestation import live, times
from cube_attestation.bundle import Bundle
from cube_attestation.claims import Claims
from cube_attestation.errors import BadInput, KeyMismatch, Unreachable
from cube_attestation.policy import Policy
from cube_attestation.verdict import REFUSED, Verdict
from cube_attestation.verifier import verify

from .targets import is_file

KEY_MISMATCH = "claims.tls_key_mismatch"
UNREACHABLE = "connect.unreachable"
TOO_OLD = "connect.bundle.too_old"
NO_RECEIPT = "connect.bundle.no_receipt"
_CODES = 10
_TRIES = 3  # an evidence address may be a balancer, too: the next connection may end in the right machine


@dataclass(frozen=True)
class Pin:
    """A TLS key (SPKI digest) that a service port presented, and the places that may give evidence of it."""

    spki: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Attested:
    """What a passing verdict says of a key."""

    tier: str
    assumptions: tuple[str, ...]
    freshness: str

    def words(self) -> str:
        assuming = f", assuming {', '.join(self.assumptions)}" if self.assumptions else ""
        return f"tier {self.tier}, freshness {self.freshness}{assuming}"


class Refusal(Exception):
    """A key that must not be used. ``code`` is a reason code, ``exit_code`` the architecture's (1 or 2)."""

    def __init__(self, code: str, words: str, exit_code: int = REFUSED) -> None:
        super().__init__(f"{code}: {words}")
        self.code = code
        self.exit_code = exit_code


@dataclass(frozen=True)
class Attester:
    """Asks for evidence and judges it. ``known``: bundles with what machines don't send.

    ``read`` gives a file's bytes (BadInput if it can't); each time anew, so that bundles can be replaced.
    ``max_age``: of a bundle's receipt.
    """

    policy: Policy
    read: Callable[[str], bytes]
    known: Sequence[Bundle] = ()
    max_age: timedelta = timedelta(days=1)
    clock: Callable[[], datetime] = live.utc_now

    def __call__(self, pin: Pin, timeout: float) -> Attested:
        """The verdict over the machine whose connection ends in ``pin.spki``; ``timeout``: seconds in all.

        Raises Refusal when it does not pass, or when no place knows that key; Unreachable when there is no answer
        that would settle it.
        """
        end = time.monotonic() + timeout
        trouble: Unreachable | None = None
        for place in pin.evidence:
            try:
                if is_file(place):
                    return self._from_bundle(place, pin.spki)
                return self._from_machine(place, pin.spki, end)
            except KeyMismatch:
                continue
            except Unreachable as error:
                trouble = trouble or error
            except BadInput as error:
                trouble = trouble or Unreachable(error.what, where=error.where or place, todo=error.todo)
        if trouble is not None:
            raise trouble
        words = f"the connection ends in key {pin.spki}, which is not that of {' or '.join(pin.evidence)}"
        raise Refusal(KEY_MISMATCH, words)

    def _from_machine(self, address: str, spki: str, end: float) -> Attested:
        tries = _TRIES
        while True:
            try:
                examined = live.examine(
                    address,
                    self.policy,
                    known=self.known,
                    expected_spki=spki,
                    timeout=end - time.monotonic(),
                    clock=self.clock,
                )
            except KeyMismatch:
                tries -= 1
                if not tries:
                    raise
            else:
                return _attested(examined.verdict)

    def _from_bundle(self, path: str, spki: str) -> Attested:
        bundle, now = bundles.load(self.read(path), where=path), self.clock()
        if Claims.decode(bundle.evidence.get("claims") or b"").tls_spki != spki:
            raise KeyMismatch("is of a machine with another key", where=path)
        attested = _attested(verify(bundle, self.policy, now=now, tls_spki=spki))
        if bundle.receipt is None or not self.policy.receipt_keys:
            raise Refusal(
                NO_RECEIPT, f"{path} has no receipt of a gate that the policy names: it may be of any time"
            )
        made = bundles.verify_receipt(bundle.receipt, self.policy.receipt_keys).time
        if now - made > self.max_age:
            raise Refusal(TOO_OLD, f"{path} is of {times.format_time(made)}; fetch the gate's newest")
        return attested


def _attested(verdict: Verdict) -> Attested:
    if not verdict.passed:
        first = verdict.reasons[0]
        others = [code for code in verdict.codes if code != first.code][:_CODES]
        words = first.words + (f" (also {', '.join(others)})" if others else "")
        raise Refusal(first.code, words, verdict.exit_code)
    return Attested(verdict.tier, verdict.assumptions, verdict.freshness)
