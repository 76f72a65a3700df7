# SPDX-License-Identifier: Apache-2.0
"""``attestation audit verify``: an exported audit chain, checked offline."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .prove import Commands

if TYPE_CHECKING:
    from cube_attestation import jcs
    from cube_attestation.audit.verify import Given, Report

NOT_AUTHENTIC = 2


def add(commands: Commands) -> None:
    """The command's arguments; nothing heavy is imported."""
    parser = commands.add_parser(
        "audit",
        help="check the audit chain of a domain",
        description="A machine chains a record of every request, for each domain (docs/formats.md §11).",
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="verify")
    verify = parts.add_parser(
        "verify",
        help="name what was removed, changed, moved or put into an exported chain",
        description="Checks an export of /{domain}/audit/v1/records (docs/formats.md §11), offline. Exit codes: 0 "
        "intact · 1 the evidence is refused by the policy · 2 not as the machine wrote it · 3 bad input.",
    )
    verify.add_argument(
        "file", metavar="FILE", help="the export: records, one a line, with the machine's signed head"
    )
    verify.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="H",
        help="what you know from elsewhere: a file with a signed head, or the digest of a record (repeatable)",
    )
    verify.add_argument(
        "--after", default="", metavar="DIGEST", help="the last record of the export before this one"
    )
    verify.add_argument("--key", default="", metavar="DIGEST", help="the machine's audit key (claims: audit_spki)")
    verify.add_argument("--bundle", metavar="FILE", help="take the key from this machine's evidence …")
    verify.add_argument("--policy", metavar="FILE", help="… if this policy accepts it")
    verify.add_argument("--at", metavar="TIME", help="verify the evidence as of this time")
    verify.add_argument("--format", choices=("human", "json"), default="human")
    verify.set_defaults(run=run_verify)


def run_verify(options: argparse.Namespace) -> int:
    """Print what was found; returns the exit code. Raises AttestationError."""
    from cube_attestation import jcs
    from cube_attestation.audit.verify import examine
    from cube_attestation.errors import BadInput

    from .commands import _read

    given, refused = _given(options)
    if refused:
        return refused
    try:
        report = examine(_read(options.file), given)
    except BadInput as error:
        raise BadInput(error.what, where=error.where or options.file, todo=error.todo) from error
    if options.format == "json":
        sys.stdout.write(jcs.dumps(report.to_json()).decode() + "\n")
    else:
        sys.stdout.write(render(report))
    return 0 if report.passed else NOT_AUTHENTIC


def _given(options: argparse.Namespace) -> tuple[Given, int]:
    """What the auditor holds, and the evidence's exit code where the policy refuses it."""
    import re

    from cube_attestation import jcs
    from cube_attestation.audit.verify import Given
    from cube_attestation.claims import Claims
    from cube_attestation.errors import BadInput
    from cube_attestation.fields import DIGEST

    from .commands import _read

    for name in ("key", "after"):
        if getattr(options, name) and not re.fullmatch(DIGEST, getattr(options, name)):
            raise BadInput("is no digest", where=f"--{name}", todo="write sha256:<64 hex digits>")
    if bool(options.bundle) != bool(options.policy):
        raise BadInput(
            "evidence counts only under a policy", where="--bundle", todo="give both --bundle and --policy"
        )
    digests = [head for head in options.head if re.fullmatch(DIGEST, head)]
    heads: list[jcs.Json] = [
        jcs.loads(_read(head), where=head) for head in options.head if not re.fullmatch(DIGEST, head)
    ]
    claims: Claims | None = None
    if options.bundle:
        from cube_attestation import bundle as bundles
        from cube_attestation import policy as policies

        from . import human
        from .commands import _clock, _core

        policy = policies.load(_read(options.policy), where=options.policy)
        bundle = bundles.load(_read(options.bundle), where=options.bundle)
        verdict = _core(bundle, policy, _clock(options.at), None, None)
        if not verdict.passed:
            sys.stdout.write(human.render(verdict, colour=human.wants_colour(sys.stdout)))
            return Given(), verdict.exit_code
        claims = Claims.decode(bundle.evidence.items["claims"].value)
    return Given(tuple(heads), tuple(digests), options.after, options.key, claims), 0


def render(report: Report) -> str:
    """The report for people, with a final newline."""
    from .human import _safe

    outcome = "INTACT" if report.passed else "NOT INTACT"
    span = f"records {report.first} to {report.last} ({report.records})"
    lines = [
        f"{outcome}: {span} of domain {report.domain}, boot {report.boot}, {report.gaps} named gaps",
        f"last record {report.head}",
    ]
    lines += [
        f"  {finding.code}{f' (line {finding.line})' if finding.line else ''}: {_safe(finding.words)}"
        for finding in report.findings
    ]
    lines += [f"  note {notice.code}: {_safe(notice.words)}" for notice in report.notices]
    return "\n".join(lines) + "\n"
