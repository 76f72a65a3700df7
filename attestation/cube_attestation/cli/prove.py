# SPDX-License-Identifier: Apache-2.0
"""``attestation prove``: does the verifier refuse what it must?"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Protocol

NOT_PROVED = 1


class Commands(Protocol):
    """What adds a command: argparse's sub-parsers."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
        """A parser for ``name``."""


def add(commands: Commands) -> None:
    """The command's arguments; nothing heavy is imported."""
    parser = commands.add_parser(
        "prove",
        help="mutate evidence that passes, and show that every mutant is refused",
        description="Makes every mutation that the bundle leaves room for, verifies it, and fails unless each is "
        "refused with the reason code that it names. The bundle itself must pass under the policy.",
    )
    parser.add_argument("subject", metavar="BUNDLE")
    parser.add_argument("--policy", required=True, metavar="FILE", help="a policy under which the bundle passes")
    parser.add_argument("--at", metavar="TIME", help="verify as of this time; left out: when the claims were made")
    parser.add_argument("--format", choices=("human", "json"), default="human")
    parser.add_argument("--output", metavar="FILE", help="write the table there instead of printing it")
    parser.add_argument("--junit", metavar="FILE", help="write JUnit XML too")
    parser.add_argument("--all", action="store_true", help="list the mutations that do not apply as well")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Raises AttestationError for bad input."""
    from cube_attestation import bundle as bundles
    from cube_attestation import jcs, times
    from cube_attestation import policy as policies
    from cube_attestation.prove import run as proving
    from cube_attestation.prove import show

    from .commands import _read, _write

    policy = policies.load(_read(options.policy), where=options.policy)
    bundle = bundles.load(_read(options.subject), where=options.subject)
    now = times.parse(options.at, where="--at") if options.at else proving.moment(bundle)
    proof = proving.prove(bundle, policy, now=now, progress=_Progress())
    if not proof.baseline.passed:
        print("attestation: prove starts from a bundle that passes; this one does not:", file=sys.stderr)
        for line in proof.baseline.summary():
            print(f"  {''.join(c if c.isprintable() else '?' for c in line)}", file=sys.stderr)
        return proof.baseline.exit_code
    if options.junit:
        _write(options.junit, show.to_junit(proof))
    if options.format == "json":
        text = (jcs.dumps(show.to_json(proof)) + b"\n").decode()
    else:
        text = show.table(proof, everything=options.all)
    if options.output:
        _write(options.output, text.encode())
    else:
        sys.stdout.write(text)
    return 0 if proof.holds else NOT_PROVED


class _Progress:
    """Tells a terminal every second what is being tried."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, name: str) -> None:
        if time.monotonic() - self.last > 1:
            self.last = time.monotonic()
            print(f"attestation: trying {name}", file=sys.stderr)
