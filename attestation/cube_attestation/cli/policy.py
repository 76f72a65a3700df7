# SPDX-License-Identifier: Apache-2.0
"""``attestation policy new|lint|explain``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .prove import Commands

REFUSED = 1


def add(commands: Commands) -> None:
    """The commands' arguments; nothing heavy is imported."""
    parser = commands.add_parser(
        "policy",
        help="write, check and explain policies",
        description="A policy says what a verifier accepts (docs/formats.md §9).",
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="new|lint|explain")

    new = parts.add_parser("new", help="write a commented policy from an image's signed manifest")
    new.add_argument("manifest", metavar="MANIFEST", help="manifest.json of the image")
    new.add_argument("--environment", required=True, metavar="ID")
    new.add_argument("--machine", required=True, choices=("local", "snp", "gcp", "azure"))
    for option, what in (
        ("--launch-key", "operator's control key"),
        ("--ek-root", "root of the TPM's maker"),
        ("--ak-issuer", "CA that certifies attestation keys"),
        ("--receipt-key", "gate's key"),
    ):
        words = f"{what}: sha256:… or a PEM file (repeatable)"
        new.add_argument(option, action="append", default=[], metavar="KEY", help=words)
    new.add_argument("--gpus", type=int, default=0, metavar="N", help="demand so many GPUs")
    new.add_argument("--pin", action="store_true", help="accept this one image only")
    new.add_argument("--output", "-o", metavar="FILE", help="write it there instead of printing it")
    new.set_defaults(run=run_new)

    lint = parts.add_parser("lint", help="refuse a policy that lets anything through, or nothing")
    lint.add_argument("policies", nargs="+", metavar="POLICY")
    lint.add_argument("--strict", action="store_true", help="refuse warnings too")
    lint.set_defaults(run=run_lint)

    explain = parts.add_parser("explain", help="say in words what a policy accepts")
    explain.add_argument("policy", metavar="POLICY")
    explain.set_defaults(run=run_explain)


def run_new(options: argparse.Namespace) -> int:
    """Write the policy; say on standard error what is still to be filled in. Raises AttestationError."""
    import re

    from cube_attestation import jcs, policy_draft
    from cube_attestation import policy as policies
    from cube_attestation.errors import BadInput
    from cube_attestation.fields import ENVIRONMENT
    from cube_attestation.nvidia.abi import MAX_DEVICES

    from .commands import _read, _write

    if not re.fullmatch(ENVIRONMENT, options.environment):
        raise BadInput(f"{options.environment[:80]!r} is no environment's id", where="--environment")
    if not 0 <= options.gpus <= MAX_DEVICES:
        raise BadInput(f"{options.gpus} is not between 0 and {MAX_DEVICES}", where="--gpus")
    choices = policy_draft.Choices(
        environment=options.environment,
        machine=options.machine,
        launch_keys=[_digest(key) for key in options.launch_key],
        ek_roots=[_digest(key) for key in options.ek_root],
        ak_issuers=[_digest(key) for key in options.ak_issuer],
        receipt_keys=[_digest(key) for key in options.receipt_key],
        gpus=options.gpus,
        pin=options.pin,
    )
    text = policy_draft.draft(jcs.loads(_read(options.manifest), where=options.manifest), choices)
    if options.output:
        if Path(options.output).exists():
            raise BadInput("is there already", where=options.output, todo="move it away or name another file")
        _write(options.output, text.encode())
    else:
        sys.stdout.write(text)
    try:
        policies.load(text.encode(), where=options.output or "policy")
    except BadInput as error:
        print(f"attestation: to be completed: {error}", file=sys.stderr)
    return 0


def _digest(key: str) -> str:
    """The SPKI digest of a key or certificate in PEM, or the digest as it is."""
    from cube_attestation import dsse
    from cube_attestation.errors import BadInput
    from cube_attestation.fields import DIGEST
    from cube_attestation.x509 import certificate

    from .commands import _read

    if key.startswith("sha256:"):
        if not DIGEST.fullmatch(key):
            raise BadInput("is no digest", where=key[:100], todo="write sha256: and 64 hex digits")
        return key
    data = _read(key)
    if b"-----BEGIN CERTIFICATE-----" in data or data[:1] == b"\x30":
        return certificate.load(data, where=key)[0].spki_digest
    try:
        return dsse.digest(dsse.spki_from_pem(data.decode("ascii"), where=key))
    except UnicodeDecodeError as error:
        raise BadInput("neither a public key nor a certificate in PEM", where=key) from error


def run_lint(options: argparse.Namespace) -> int:
    """Print the findings of each file; 1 if one is an error. Raises AttestationError for what is no policy."""
    from cube_attestation import policy as policies
    from cube_attestation import policy_lint

    from .commands import _read

    refused = (policy_lint.ERROR, policy_lint.WARNING) if options.strict else (policy_lint.ERROR,)
    bad = 0
    for path in options.policies:
        data = _read(path)
        findings = policy_lint.lint(policies.load(data, where=path), data)
        for finding in findings:
            print(f"{path}: {finding.level}: {finding.where}: {finding.words}")
        worst = sum(finding.level in refused for finding in findings)
        print(f"{path}: {'REFUSED' if worst else 'good'}, {len(findings)} findings")
        bad += worst
    return REFUSED if bad else 0


def run_explain(options: argparse.Namespace) -> int:
    """Print every section in words. Raises AttestationError for what is no policy."""
    from cube_attestation import policy as policies
    from cube_attestation import policy_words

    from .commands import _read

    text = policy_words.text(policy_words.explain(policies.load(_read(options.policy), where=options.policy)))
    sys.stdout.write("".join(c if c.isprintable() or c == "\n" else "?" for c in text))
    return 0
