# SPDX-License-Identifier: Apache-2.0
"""Runs every mutation that a bundle leaves room for: each must be refused, and for the reason that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from cube_attestation import bundle as bundles
from cube_attestation.bundle import Bundle
from cube_attestation.claims import Claims
from cube_attestation.errors import AttestationError, BadInput
from cube_attestation.policy import Policy
from cube_attestation.verdict import Verdict

from . import azure, common, nvidia, snp, tdx, tokens, tpm
from .case import Case, Inapplicable, Mutation

REFUSED, PASSED, OTHER_CODE, BROKEN, SKIPPED = "refused", "PASSED", "OTHER CODE", "BROKEN", "not run"

FAMILIES = (common, tpm, snp, azure, tdx, nvidia, tokens)


def mutations() -> tuple[Mutation, ...]:
    """All of them, in the order in which they are shown."""
    return tuple(mutation for family in FAMILIES for mutation in family.MUTATIONS)


@dataclass(frozen=True)
class Result:
    """What became of one mutation: all codes of its verdict, or in ``note`` why there is none."""

    mutation: Mutation
    outcome: str
    codes: tuple[str, ...] = ()
    note: str = ""

    @property
    def good(self) -> bool:
        return self.outcome in (REFUSED, SKIPPED)


@dataclass(frozen=True)
class Proof:
    """The verdict over the bundle as it is, and the mutations' results; none if that verdict did not pass."""

    baseline: Verdict
    results: tuple[Result, ...]

    def count(self, *outcomes: str) -> int:
        return sum(result.outcome in outcomes for result in self.results)

    @property
    def holds(self) -> bool:
        """Something was tried and all of it was refused for the expected reason."""
        return self.count(REFUSED) > 0 and all(result.good for result in self.results)


def moment(bundle: Bundle) -> datetime:
    """When the evidence was made, by the machine's word. Raises BadInput without readable claims."""
    return _claims(bundle).time


def _claims(bundle: Bundle) -> Claims:
    data = bundle.evidence.get("claims")
    if data is None:
        raise BadInput("the bundle has no claims", where="prove", todo="use a bundle that passes")
    return Claims.decode(data)


def prove(
    bundle: Bundle,
    policy: Policy,
    *,
    now: datetime,
    only: Iterable[Mutation] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Verify ``bundle`` at ``now`` as a live caller would, then every mutation of it. Raises BadInput.

    ``progress`` is told each mutation's name before it is made.
    """
    claims = _claims(bundle)
    case = Case(bundle, policy, now, claims.nonce, claims.tls_spki)
    baseline = case.judge()
    if not baseline.passed:
        return Proof(baseline, ())
    results: list[Result] = []
    for mutation in mutations() if only is None else only:
        progress(mutation.name)
        results.append(_try(mutation, case))
    return Proof(baseline, tuple(results))


def _try(mutation: Mutation, case: Case) -> Result:
    try:
        mutant = mutation.change(case)
    except Inapplicable as reason:
        return Result(mutation, SKIPPED, note=str(reason))
    except Exception as error:  # evidence in a shape that this mutation did not expect hides no other one's result
        return Result(mutation, BROKEN, note=f"can't be made: {type(error).__name__}: {str(error)[:200]}")
    try:  # a mutant is judged as it would be read from a file
        reread = bundles.load(bundles.dump(mutant.bundle))
        verdict = Case(reread, mutant.policy, mutant.now, mutant.nonce, mutant.tls_spki).judge()
    except AttestationError as error:
        return Result(mutation, BROKEN, note=f"no verdict: {error}")
    if verdict.passed:
        return Result(mutation, PASSED)
    expected = {mutation.code, mutation.also}.intersection(verdict.codes)
    return Result(mutation, REFUSED if expected else OTHER_CODE, verdict.codes)
