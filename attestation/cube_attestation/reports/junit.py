# SPDX-License-Identifier: Apache-2.0
"""JUnit XML, as build servers read it: one test suite of named cases. Written by hand, so that bytes are stable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cube_attestation.verdict import ItemVerdict, Verdict

# XML 1.0 has no place for these characters, not even escaped
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class TestCase:
    """``failure`` empty: passed. ``skipped`` tells why it was not run. ``kind`` names the failure's type."""

    group: str
    name: str
    failure: str = ""
    kind: str = ""
    skipped: str = ""
    output: str = ""


def escape(text: str) -> str:
    """``text`` for element content and quoted attributes."""
    clean = _FORBIDDEN.sub("?", text)
    for raw, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&apos;")):
        clean = clean.replace(raw, entity)
    return clean.replace("\n", "&#10;").replace("\r", "&#13;").replace("\t", "&#9;")


def suite(name: str, cases: Sequence[TestCase], *, timestamp: str) -> bytes:
    """The document, UTF-8. ``timestamp`` is ISO 8601; durations are left at 0, so that one input gives one file."""
    failures = sum(bool(case.failure) for case in cases)
    skipped = sum(bool(case.skipped) for case in cases)
    counts = f'tests="{len(cases)}" failures="{failures}" errors="0" skipped="{skipped}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuites {counts}>",
        f'<testsuite name="{escape(name)}" {counts} timestamp="{escape(timestamp)}" time="0">',
        *(_case(case) for case in cases),
        "</testsuite>",
        "</testsuites>",
    ]
    return "\n".join(lines).encode() + b"\n"


def _case(case: TestCase) -> str:
    inner = ""
    if case.failure:
        message = case.failure.partition("\n")[0]
        inner += f'<failure message="{escape(message)}" type="{escape(case.kind)}">{escape(case.failure)}</failure>'
    if case.skipped:
        inner += f'<skipped message="{escape(case.skipped)}"/>'
    if case.output:
        inner += f"<system-out>{escape(case.output)}</system-out>"
    head = f'<testcase classname="{escape(case.group)}" name="{escape(case.name)}" time="0"'
    return f"{head}>{inner}</testcase>" if inner else f"{head}/>"


def render(verdict: Verdict) -> bytes:
    """Two cases for each item: authentic, and acceptable (skipped where it is not authentic)."""
    cases = [case for item in verdict.items for case in _item(item)]
    _, rests, _ = verdict.summary()
    cases.append(TestCase("verdict", "passed", "" if verdict.passed else "see the items", "verdict", output=rests))
    return suite("attestation", cases, timestamp=_time(verdict))


def _time(verdict: Verdict) -> str:
    return str(verdict.to_json()["now"]).removesuffix("Z")


def _item(item: ItemVerdict) -> tuple[TestCase, TestCase]:
    forged, refused = (
        "\n".join(f"{reason.code}: {reason.words}" for reason in reasons) for reasons in (item.forged, item.refused)
    )
    kinds = [reasons[0].code if reasons else "" for reasons in (item.forged, item.refused)]
    authentic = TestCase(item.item, "authentic", forged, kinds[0])
    if item.forged:
        return authentic, TestCase(item.item, "acceptable", skipped="not authentic", output=refused)
    return authentic, TestCase(item.item, "acceptable", refused, kinds[1])
