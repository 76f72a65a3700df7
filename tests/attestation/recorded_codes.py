# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: the reason codes that real verdicts carried, each with a passing test in which it did.

`pytest -p recorded_codes --recorded-codes FILE …` writes ``{code: test}`` as JSON. Codes count where a reason, an
assumption or a finding about an audit chain is made with them; what tests assert, their own tables say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cube_attestation.audit.verify import Finding
from cube_attestation.subject import Outcome
from cube_attestation.verdict import Reason, Verdict

_seen: set[str] = set()
_fired: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--recorded-codes", type=Path, default=None)


def pytest_configure(config: pytest.Config) -> None:
    _watch(Reason, lambda reason: [reason.code])
    _watch(Outcome, lambda outcome: outcome.assumptions)
    _watch(Verdict, lambda verdict: verdict.assumptions)
    _watch(Finding, lambda finding: [finding.code])


def _watch(kind: type, codes: Callable[[Any], Any]) -> None:
    if issubclass(kind, tuple):
        new = kind.__new__

        def make_tuple(cls: type, *args: Any, **named: Any) -> Any:
            made = new(cls, *args, **named)
            _seen.update(codes(made))
            return made

        kind.__new__ = make_tuple  # type: ignore[method-assign,assignment]
        return
    init = kind.__init__

    def make(self: Any, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        _seen.update(codes(self))

    kind.__init__ = make  # type: ignore[misc]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    _seen.clear()
    yield  # raises when the test fails, and then nothing of it counts
    for code in sorted(_seen):
        _fired.setdefault(code, item.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--recorded-codes")
    if target is not None:
        target.write_text(json.dumps(_fired, indent=1, sort_keys=True))
