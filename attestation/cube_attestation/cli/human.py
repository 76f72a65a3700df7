# SPDX-License-Identifier: Apache-2.0
"""Verdicts for people: the outcome in three lines first, then every item; colour on a terminal only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from cube_attestation.explain import Explanation
    from cube_attestation.verdict import ItemVerdict, Verdict

_GREEN, _YELLOW, _RED, _BOLD, _OFF = "\033[32m", "\033[33m", "\033[31m", "\033[1m", "\033[0m"


def wants_colour(stream: TextIO) -> bool:
    """A terminal, and nobody said NO_COLOR."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _paint(text: str, style: str, colour: bool) -> str:
    return f"{style}{text}{_OFF}" if colour else text


def _safe(text: str) -> str:
    """What a machine says can't steer the terminal that shows it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def render(verdict: Verdict, *, colour: bool) -> str:
    """The whole verdict as text with a final newline."""
    outcome, rests, third = map(_safe, verdict.summary())
    style = _BOLD + (_GREEN if verdict.passed else _RED)
    lines = [_paint(outcome, style, colour), rests, third, ""]
    for item in verdict.items:
        lines += _item(item, colour)
    return "\n".join(lines) + "\n"


def _item(item: ItemVerdict, colour: bool) -> list[str]:
    if item.acceptable:
        word, style = "ok", _GREEN
    elif item.authentic:
        word, style = "refused", _YELLOW
    else:
        word, style = "not authentic", _RED
    lines = [f"{item.item:15} {_paint(word, style, colour)}"]
    lines += [f"    {reason.code}: {_safe(reason.words)}" for reason in item.reasons]
    for comparison in item.compared:
        if comparison.expected != comparison.found:
            lines.append(f"    {comparison.what}: expected {comparison.expected}")
            lines.append(f"    {' ' * len(comparison.what)}     found {comparison.found or 'nothing'}")
    return lines


def render_explanation(verdict: Verdict, explanation: Explanation, *, colour: bool) -> str:
    """The verdict in three lines, each divergence in words, then the diverging PCRs' histories side by side."""
    lines = [_safe(line) for line in verdict.summary()]
    lines.append("")
    if not explanation.divergences:
        lines.append("the machine's logged events are the predicted ones")
    lines += [_paint(_safe(divergence.words), _BOLD, colour) for divergence in explanation.divergences]
    pcr = -1
    for line in explanation.lines:
        if line.pcr != pcr:
            pcr = line.pcr
            lines += ["", f"PCR {pcr}: predicted | measured"]
        text = f"{line.mark} {line.predicted or '(nothing)':60.60} | {line.measured or '(nothing)'}"
        text = _safe(text)
        lines.append(_paint(text, _RED, colour) if line.mark == "!" else text)
    return "\n".join(lines) + "\n"
