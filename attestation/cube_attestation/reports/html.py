# SPDX-License-Identifier: Apache-2.0
"""A verdict as one self-contained page: no scripts, nothing loaded from anywhere, everything escaped."""

from __future__ import annotations

import html

from cube_attestation import jcs, times
from cube_attestation.bundle import Bundle
from cube_attestation.verdict import ItemVerdict, Verdict

from . import logs, version
from .sarif import assumption

_STYLE = """
:root{--bg:#fff;--fg:#1a1a1a;--dim:#5c5c5c;--line:#d8d8d8;--card:#f6f6f6;--good:#14692c;--bad:#a4161a;--warn:#8a5300;
--badbg:#fde8e8}
@media(prefers-color-scheme:dark){:root{--bg:#141414;--fg:#ececec;--dim:#a8a8a8;--line:#3a3a3a;--card:#1e1e1e;
--good:#6fd08c;--bad:#ff8b8b;--warn:#f0b75e;--badbg:#3b1a1a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0}
h2{font-size:1.15rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:0}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
header{border:2px solid;border-radius:.5rem;padding:1rem}
header *{color:var(--fg)}header h1{color:inherit}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.15rem .8rem;margin:.6rem 0}
dt{color:var(--dim)}dd{margin:0}
code,.mono{font:.82rem/1.45 ui-monospace,monospace}
.item{background:var(--card);border-left:.3rem solid var(--line);border-radius:.3rem;padding:.7rem .9rem;
margin:.6rem 0}
.item.isgood{border-color:var(--good)}.item.isbad{border-color:var(--bad)}.item.iswarn{border-color:var(--warn)}
.head{display:flex;flex-wrap:wrap;justify-content:space-between;gap:.5rem}
ul{margin:.4rem 0;padding-left:1.2rem}
details{margin:.4rem 0}summary{cursor:pointer}
.log{display:grid;grid-template-columns:1fr 1fr;border-top:1px solid var(--line);margin:.4rem 0}
.log>div{padding:.25rem .4rem;border-bottom:1px solid var(--line);min-width:0}
.log .title{font-weight:600}
.diverges{background:var(--badbg)}.diverges b{color:var(--bad)}
.after{opacity:.6}
@media(max-width:40rem){.log{grid-template-columns:1fr}.log .title{display:none}
.log .left::before{content:"predicted ";color:var(--dim)}.log .right::before{content:"measured ";color:var(--dim)}
dl{grid-template-columns:1fr}dt{margin-top:.3rem}}
@media print{details{display:block}}
"""
_CSP = "default-src 'none'; style-src 'unsafe-inline'"
_WORDS = {
    "software": "software: proves the flow, protects nothing",
    "provider-vtpm": "provider-vtpm: the provider's word",
    "hardware-paravisor": "hardware with the provider's paravisor",
    "hardware": "hardware",
    "": "none",
}
_FRESHNESS = {
    "nonce": "the evidence answers a fresh nonce",
    "receipt": "a gate's receipt says when the evidence was fresh",
    "not_checked": "not checked: nothing says when this evidence was made",
}


def _e(text: object) -> str:
    """Escaped for content and attributes; control characters become question marks."""
    return html.escape("".join(c if c.isprintable() else "?" for c in str(text)), quote=True)


def render(verdict: Verdict, bundle: Bundle, subject: str) -> bytes:
    """The page, UTF-8. ``subject`` is what was verified: a file's name or a URL."""
    found = logs.read(bundle)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{_e(_title(verdict))} – {_e(subject)}</title><style>{_STYLE}</style></head><body>",
        _top(verdict, subject),
        "<main><h2>Items</h2>",
        *(_item(item) for item in verdict.items),
        *_logs(found),
        *_claims(verdict),
        "</main>",
        f'<footer><p class="mono">{_e(version())}; this page is a copy for reading. Verify the bundle itself.</p>'
        "</footer></body></html>",
    ]
    return "\n".join(parts).encode() + b"\n"


def _title(verdict: Verdict) -> str:
    return {0: "Passed", 1: "Refused", 2: "Not authentic"}[verdict.exit_code]


def _top(verdict: Verdict, subject: str) -> str:
    outcome, _, _ = verdict.summary()
    style = "good" if verdict.passed else "bad"
    pairs = [
        ("Tier", f"{_WORDS[verdict.tier]} (the policy takes {verdict.lowest_tier} and better)"),
        ("Freshness", _FRESHNESS[verdict.freshness]),
        ("Environment", verdict.environment),
        ("Verified at", times.format_time(verdict.now)),
        ("Subject", subject),
        ("Bundle", verdict.bundle),
        ("Policy", verdict.policy),
    ]
    lines = [f'<header class="{style}"><h1>{_e(outcome)}</h1>']
    if not verdict.passed:
        reasons = (f"<li><code>{_e(r.code)}</code> {_e(r.words)}</li>" for r in verdict.reasons)
        lines.append(f"<ul>{''.join(reasons)}</ul>")
    lines.append(_pairs(pairs))
    if verdict.assumptions:
        rests = (f"<li>{_e(assumption(a))} <code>{_e(a)}</code></li>" for a in verdict.assumptions)
        lines.append(f"<h3>This rests on</h3><ul>{''.join(rests)}</ul>")
    return "\n".join([*lines, "</header>"])


def _pairs(pairs: list[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_e(name)}</dt><dd>{_e(value)}</dd>" for name, value in pairs) + "</dl>"


def _item(item: ItemVerdict) -> str:
    word, style = "authentic and acceptable", "good"
    if not item.authentic:
        word, style = "not authentic", "bad"
    elif not item.acceptable:
        word, style = "authentic, refused by policy", "warn"
    lines = [
        f'<section class="item is{style}"><div class="head"><h3>{_e(item.item)}</h3>'
        f'<span class="{style}">{word}</span></div>'
    ]
    if item.reasons:
        found = (f"<li><code>{_e(r.code)}</code> {_e(r.words)}</li>" for r in item.reasons)
        lines.append(f"<ul>{''.join(found)}</ul>")
    if item.compared:
        wrong = any(c.expected != c.found for c in item.compared)
        lines.append(f"<details{' open' if wrong else ''}><summary>{len(item.compared)} compared</summary>")
        for c in item.compared:
            same = c.expected == c.found
            mark = "equal" if same else '<b class="bad">differs</b>'
            lines.append(
                f'<dl class="mono"><dt>{_e(c.what)}</dt><dd>{mark}</dd><dt>expected</dt><dd>{_e(c.expected)}</dd>'
                f"<dt>found</dt><dd>{_e(c.found or 'nothing')}</dd></dl>"
            )
        lines.append("</details>")
    if item.facts:
        pairs = [(name, _text(value)) for name, value in sorted(item.facts.items())]
        lines.append(f"<details><summary>facts</summary>{_pairs(pairs)}</details>")
    return "\n".join([*lines, "</section>"])


def _text(value: jcs.Json) -> str:
    return value if isinstance(value, str) else jcs.dumps(value).decode()


def _logs(found: logs.Logs) -> list[str]:
    if not found.registers and not found.problems:
        return []
    lines = ["<h2>Event logs</h2>"]
    lines += [f'<p class="bad">{_e(problem)}</p>' for problem in found.problems]
    diverging = [register.name for register in found.registers if register.diverges]
    if diverging:
        lines.append(f'<p class="bad">{_e(", ".join(diverging))}: another boot than the predicted one.</p>')
    for register in found.registers:
        note = "as predicted" if register.predicted else "no prediction by event"
        if register.diverges:
            note = "diverges"
        opened = " open" if register.diverges else ""
        lines.append(
            f"<details{opened}><summary>{_e(register.name)}: {_counted(len(register.rows))}, {note}</summary>"
            '<div class="log mono"><div class="title">predicted</div><div class="title">measured</div>'
        )
        for row in register.rows:
            mark = "<b>first difference</b> " if row.state == logs.DIVERGES else ""
            lines.append(
                f'<div class="left {row.state}">{mark}{_cell(row.predicted)}</div>'
                f'<div class="right {row.state}">{_cell(row.measured)}</div>'
            )
        lines.append("</div></details>")
    return lines


def _counted(number: int) -> str:
    return "1 event" if number == 1 else f"{number} events"


def _cell(cell: logs.Cell | None) -> str:
    return f"{_e(cell.digest)} {_e(cell.words)}" if cell else "(nothing)"


def _claims(verdict: Verdict) -> list[str]:
    if verdict.claims is None:
        return []
    pairs = [(name, _text(value)) for name, value in sorted(verdict.claims.items())]
    return ["<h2>What the machine claims</h2>", _pairs(pairs)]
