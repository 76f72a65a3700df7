# SPDX-License-Identifier: Apache-2.0
"""What every evidence kind is given, and what it gives back. A kind is one function from Subject to Outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeVar

from .claims import Claims
from .cmw import Collection
from .errors import BadInput
from .manifest import ImageManifest
from .policy import Policy
from .verdict import ItemVerdict

_T = TypeVar("_T")


@dataclass(frozen=True)
class Subject:
    """One machine's evidence, and what of it was read already; None where that part is missing or malformed.

    ``launch_payload`` are the exact bytes of the launch document's payload, whoever signed it.
    """

    evidence: Collection
    policy: Policy
    now: datetime
    claims: Claims | None
    launch_payload: bytes | None
    manifest: ImageManifest | None


class Outcome(NamedTuple):
    """A kind's items. ``tier`` is what they reach when all are authentic and bind the claims; else empty."""

    items: tuple[ItemVerdict, ...]
    tier: str
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """An evidence kind: the labels of its items with their media types, and its appraisal.

    ``demanded``: whether policy or claims ask for it, so that its absence is a finding of its own.
    """

    labels: dict[str, str]
    appraise: Callable[[Subject], Outcome]
    demanded: Callable[[Subject], bool] = lambda _: False

    def concerns(self, subject: Subject) -> bool:
        """Whether there is evidence of this kind, or there should be."""
        return any(label in subject.evidence.items for label in self.labels) or self.demanded(subject)


def attempt(parse: Callable[[], _T]) -> tuple[_T | None, str]:
    """The parsed value, or None and what is wrong with the input."""
    try:
        return parse(), ""
    except BadInput as error:
        return None, str(error)
