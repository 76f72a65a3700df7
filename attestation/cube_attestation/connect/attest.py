# SPDX-License-Identifier: Apache-2.0
"""Is there a machine that passes behind this TLS key? Asks the evidence addresses, each over that very key."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cube_attestation import live
from cube_attestation.bundle import Bundle
from cube_attestation.errors import BadInput, KeyMismatch, Unreachable
from cube_attestation.policy import Policy
from cube_attestation.verdict import REFUSED

KEY_MISMATCH = "claims.tls_key_mismatch"
UNREACHABLE = "connect.unreachable"
_CODES = 10
_TRIES = 3  # an evidence address may be a balancer, too: the next connection may end in the right machine


@dataclass(frozen=True)
class Pin:
    """A TLS key (SPKI digest) that a service port presented, and the addresses that may give evidence of it."""

    spki: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Attested:
    """What a passing verdict says of a key."""

    tier: str
    assumptions: tuple[str, ...]
    bundle: str

    def words(self) -> str:
        assuming = f", assuming {', '.join(self.assumptions)}" if self.assumptions else ""
        return f"tier {self.tier}{assuming}"


class Refusal(Exception):
    """A key that must not be used. ``code`` is a reason code, ``exit_code`` the architecture's (1 or 2)."""

    def __init__(self, code: str, words: str, exit_code: int = REFUSED) -> None:
        super().__init__(f"{code}: {words}")
        self.code = code
        self.exit_code = exit_code


@dataclass(frozen=True)
class Attester:
    """Asks for evidence and judges it. ``known``: bundles with what machines don't send."""

    policy: Policy
    known: Sequence[Bundle] = ()
    clock: Callable[[], datetime] = live.utc_now

    def __call__(self, pin: Pin, timeout: float) -> Attested:
        """The verdict over the machine whose connection ends in ``pin.spki``; ``timeout``: seconds in all.

        Raises Refusal when it does not pass, or when no address ends in that key; Unreachable when there is no
        answer that would settle it.
        """
        end = time.monotonic() + timeout
        trouble: Unreachable | None = None
        for address in pin.evidence:
            for _ in range(_TRIES):
                try:
                    left = end - time.monotonic()
                    return self._one(address, pin.spki, left)
                except KeyMismatch:
                    continue
                except Unreachable as error:
                    trouble = trouble or error
                except BadInput as error:
                    trouble = trouble or Unreachable(error.what, where=error.where or address, todo=error.todo)
                break
        if trouble is not None:
            raise trouble
        words = f"the connection ends in key {pin.spki}, and {' and '.join(pin.evidence)} in another"
        raise Refusal(KEY_MISMATCH, words)

    def _one(self, address: str, spki: str, timeout: float) -> Attested:
        examined = live.examine(
            address, self.policy, known=self.known, expected_spki=spki, timeout=timeout, clock=self.clock
        )
        verdict = examined.verdict
        if not verdict.passed:
            first = verdict.reasons[0]
            others = [code for code in verdict.codes if code != first.code][:_CODES]
            words = first.words + (f" (also {', '.join(others)})" if others else "")
            raise Refusal(first.code, words, verdict.exit_code)
        return Attested(verdict.tier, verdict.assumptions, verdict.bundle)
