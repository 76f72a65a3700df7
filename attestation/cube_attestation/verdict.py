# SPDX-License-Identifier: Apache-2.0
"""Verdicts: per item authentic and acceptable with reason codes, what was compared, tier and assumptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from . import jcs, times

TIERS = ("software", "provider-vtpm", "hardware-paravisor", "hardware")  # weakest first
FRESHNESS = ("nonce", "receipt", "not_checked")
PASSED, REFUSED, NOT_AUTHENTIC = 0, 1, 2


class Reason(NamedTuple):
    """A stable code (docs/reason-codes.md) and one sentence with the facts of this case."""

    code: str
    words: str

    def to_json(self) -> dict[str, jcs.Json]:
        return {"code": self.code, "words": self.words}


class Comparison(NamedTuple):
    """One value that was found beside the one that was expected."""

    what: str
    expected: str
    found: str

    def to_json(self) -> dict[str, jcs.Json]:
        equal = self.expected == self.found
        return {"what": self.what, "expected": self.expected, "found": self.found, "equal": equal}


@dataclass(frozen=True)
class ItemVerdict:
    """One evidence item. ``forged``: why it is not authentic; ``refused``: why it is not acceptable."""

    item: str
    forged: tuple[Reason, ...] = ()
    refused: tuple[Reason, ...] = ()
    compared: tuple[Comparison, ...] = ()
    facts: dict[str, jcs.Json] = field(default_factory=dict)

    @property
    def authentic(self) -> bool:
        return not self.forged

    @property
    def acceptable(self) -> bool:
        """Only what is authentic can be acceptable."""
        return not self.forged and not self.refused

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return self.forged + self.refused

    def to_json(self) -> dict[str, jcs.Json]:
        return {
            "item": self.item,
            "authentic": self.authentic,
            "acceptable": self.acceptable,
            "reasons": [reason.to_json() for reason in self.reasons],
            "compared": [comparison.to_json() for comparison in self.compared],
            "facts": self.facts,
        }


@dataclass
class Findings:
    """What is found about one item, in order."""

    forged: list[Reason] = field(default_factory=list)
    refused: list[Reason] = field(default_factory=list)
    compared: list[Comparison] = field(default_factory=list)
    facts: dict[str, jcs.Json] = field(default_factory=dict)

    def refuse(self, code: str, words: str) -> None:
        self.refused.append(Reason(code, words))

    def verdict(self, item: str) -> ItemVerdict:
        return ItemVerdict(item, tuple(self.forged), tuple(self.refused), tuple(self.compared), self.facts)


@dataclass(frozen=True)
class Verdict:
    """The whole. ``tier`` is what the evidence reaches (empty: none), ``claims`` the authentic claims or None."""

    items: tuple[ItemVerdict, ...]
    tier: str
    lowest_tier: str
    freshness: str
    assumptions: tuple[str, ...]
    environment: str
    bundle: str
    policy: str
    now: datetime
    claims: dict[str, jcs.Json] | None

    @property
    def passed(self) -> bool:
        return all(item.acceptable for item in self.items)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 refused by policy, 2 something is not authentic (architecture §4)."""
        if self.passed:
            return PASSED
        return REFUSED if all(item.authentic for item in self.items) else NOT_AUTHENTIC

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return tuple(reason for item in self.items for reason in item.reasons)

    @property
    def codes(self) -> tuple[str, ...]:
        """All reason codes, sorted, each once."""
        return tuple(sorted({reason.code for reason in self.reasons}))

    def summary(self) -> tuple[str, str, str]:
        """The verdict in three lines: outcome, what it rests on, why or what for."""
        outcome = {
            PASSED: "PASSED: the evidence is authentic and the policy accepts it",
            REFUSED: "REFUSED: the evidence is authentic, the policy does not accept it",
            NOT_AUTHENTIC: "NOT AUTHENTIC: part of the evidence does not hold",
        }[self.exit_code]
        rests = f"tier {self.tier or 'none'} (lowest taken: {self.lowest_tier}), freshness {self.freshness}"
        if self.assumptions:
            rests += f", assuming {', '.join(self.assumptions)}"
        if self.passed:
            third = f"environment {self.environment}, bundle {self.bundle}"
        else:
            first, more = self.reasons[0], len(self.reasons) - 1
            third = f"{first.code}: {first.words}" + (f" (and {more} more)" if more else "")
        return outcome, rests, third

    def to_json(self) -> dict[str, jcs.Json]:
        return {
            "version": 1,
            "passed": self.passed,
            "exit_code": self.exit_code,
            "tier": self.tier,
            "lowest_tier": self.lowest_tier,
            "freshness": self.freshness,
            "assumptions": list(self.assumptions),
            "environment": self.environment,
            "bundle": self.bundle,
            "policy": self.policy,
            "now": times.format_time(self.now),
            "items": [item.to_json() for item in self.items],
            "claims": self.claims,
        }

    def dump(self) -> bytes:
        """Deterministic JSON with a newline: the same inputs give the same bytes anywhere."""
        return jcs.dumps(self.to_json()) + b"\n"
