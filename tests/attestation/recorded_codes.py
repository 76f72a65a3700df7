# SPDX-License-Identifier: Apache-2.0
"""The reason codes that real verdicts carry in this session, each with a passing test in which it did.

Codes count where a reason, an assumption or a finding about an audit chain is made with them; what tests assert,
their own tables say. `conftest.py` has the hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cube_attestation.audit.verify import Finding
from cube_attestation.subject import Outcome
from cube_attestation.verdict import Reason, Verdict

seen: set[str] = set()
fired: dict[str, str] = {}


def _watch(kind: type, codes: Callable[[Any], Any]) -> None:
    if issubclass(kind, tuple):
        new = kind.__new__

        def make_tuple(cls: type, *args: Any, **named: Any) -> Any:
            made = new(cls, *args, **named)
            seen.update(codes(made))
            return made

        kind.__new__ = make_tuple  # type: ignore[method-assign,assignment]
        return
    init = kind.__init__

    def make(self: Any, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        seen.update(codes(self))

    kind.__init__ = make  # type: ignore[misc]


_watch(Reason, lambda reason: [reason.code])
_watch(Outcome, lambda outcome: outcome.assumptions)
_watch(Verdict, lambda verdict: verdict.assumptions)
_watch(Finding, lambda finding: [finding.code])
