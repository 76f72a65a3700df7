# SPDX-License-Identifier: Apache-2.0
"""A proof as a table, as JSON and as JUnit XML."""

from __future__ import annotations

from cube_attestation import jcs, times
from cube_attestation.reports import junit

from .run import BROKEN, OTHER_CODE, PASSED, REFUSED, SKIPPED, Proof, Result


def headline(proof: Proof) -> str:
    """One line with the counts."""
    bad = proof.count(PASSED, OTHER_CODE, BROKEN)
    run = f"{proof.count(REFUSED)} mutations refused as expected, {bad} not"
    return f"{'PROVED' if proof.holds else 'NOT PROVED'}: {run}, {proof.count(SKIPPED)} do not apply to this bundle"


def table(proof: Proof, *, everything: bool = False) -> str:
    """One line for each mutation that was run; with ``everything`` also for those that do not apply."""
    shown = [result for result in proof.results if everything or result.outcome != SKIPPED]
    width = max((len(result.mutation.name) for result in shown), default=0)
    codes = max((len(result.mutation.code) for result in shown), default=0)
    lines = []
    for result in shown:
        mutation = result.mutation
        lines.append(f"{mutation.name:{width}}  {result.outcome:10}  {mutation.code:{codes}}  {mutation.words}")
        if note := _note(result):
            lines.append(f"{'':{width}}  {note}")
    return "\n".join([*lines, headline(proof)]) + "\n"


def _note(result: Result) -> str:
    if result.outcome == OTHER_CODE:
        return f"refused, but with {', '.join(result.codes)}"
    return result.note


def to_json(proof: Proof) -> dict[str, jcs.Json]:
    """Deterministic: the codes do not depend on the keys that the mutations make."""
    results: list[jcs.Json] = []
    for result in proof.results:
        mutation = result.mutation
        results.append(
            {
                "name": mutation.name,
                "what": mutation.words,
                "expected": mutation.code,
                "outcome": result.outcome.lower(),
                "codes": list(result.codes),
                "note": result.note,
            }
        )
    return {
        "version": 1,
        "holds": proof.holds,
        "bundle": proof.baseline.bundle,
        "policy": proof.baseline.policy,
        "now": times.format_time(proof.baseline.now),
        "mutations": results,
    }


def to_junit(proof: Proof) -> bytes:
    """One case for each mutation; a mutant that is not refused as expected is a failure."""
    cases = []
    for result in proof.results:
        mutation = result.mutation
        failure = (
            "" if result.good else f"{result.outcome}: expected {mutation.code}; {_note(result) or 'no reason'}"
        )
        skipped = result.note if result.outcome == SKIPPED else ""
        family = mutation.name.partition(".")[0]
        cases.append(junit.TestCase(family, mutation.name, failure, mutation.code, skipped, mutation.words))
    now = times.format_time(proof.baseline.now).removesuffix("Z")
    return junit.suite("attestation prove", cases, timestamp=now)
