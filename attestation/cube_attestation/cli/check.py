# SPDX-License-Identifier: Apache-2.0
"""``attestation check``: one item as other tools write it, verified without a policy."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .prove import Commands

if TYPE_CHECKING:
    from cube_attestation.check.result import Result
    from cube_attestation.recognise import Material

KINDS = (
    "snp", "tdx", "tpm-quote", "tpm-eventlog", "ccel", "azure-hcl", "nvidia-gpu", "nvidia-switch", "nvidia-rim",
    "token",
)  # fmt: skip
OPTIONS = {
    "cert": "certificates: PEM, DER, chains, certificate tables; for a token the issuer's keys (JWK set, PEM)",
    "crl": "revocation lists: DER, PEM or hex",
    "collateral": "Intel's TCB info and QE identity as published, or all in one JSON; key sets of a token",
    "rim": "NVIDIA's reference manifests",
    "ocsp": "NVIDIA's OCSP responses",
    "log": "event logs: TCG, CCEL, systemd, dstack",
}
BAD_INPUT = 3


EPILOG = """\
examples:
  attestation check snp report.bin --cert vcek.der --cert cert_chain.pem --crl milan.crl
  attestation check tdx quote.bin --collateral collateral.json --at 2026-06-30T10:00:00Z
  attestation check azure-hcl evidence.json --crl genoa.crl --nonce 6368616c6c656e6765
  attestation check nvidia-gpu report.txt --cert chain.txt --rim driver.swidtag --rim vbios.swidtag --ocsp a.der

Files are recognised by content (binary, hex, base64, PEM, DER, JSON, protobuf), whichever option names them. What
is missing is refused with a code that names it; --allow-missing takes the names that policies take.
exit codes: 0 good, 1 authentic and refused, 2 not authentic, 3 bad input, 64 usage
"""


def add(commands: Commands) -> None:
    """The command's arguments; nothing heavy is imported."""
    parser = commands.add_parser(
        "check",
        help="verify one item as other tools write it, without a policy",
        description="Is the item authentic by the vendors' pinned roots, and free of what no policy takes (DEBUG, "
        "an outdated TCB, measurements that are in no manifest)?",
    )
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help=", ".join(KINDS))
    parser.add_argument("files", metavar="FILE", nargs="+", help="the evidence, with all that belongs to it")
    for name, words in OPTIONS.items():
        parser.add_argument(f"--{name}", metavar="FILE", action="append", default=[], help=words)
    parser.add_argument("--nonce", metavar="HEX", help="what the evidence must answer")
    parser.add_argument(
        "--at", metavar="TIME", help="verify as of this time, 2026-11-24T12:00:00Z or the day alone"
    )
    parser.add_argument("--allow-missing", metavar="NAME", action="append", default=[],
                        help="go on without this collateral, e.g. snp.crl, nvidia.rim_ocsp")  # fmt: skip
    parser.add_argument("--root", metavar="FILE|DIGEST", action="append", default=[],
                        help="accept this root too: its certificate, or sha256:<hex> of its SPKI")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Raises AttestationError for bad input; with ``--json`` the result says so as well."""
    from cube_attestation.check.result import Given, check, malformed
    from cube_attestation.errors import BadInput

    from .commands import _clock, _nonce

    day = options.at is not None and len(options.at) == 10
    now = _clock(f"{options.at}T00:00:00Z" if day else options.at)
    nonce = _nonce(options.nonce.removeprefix("0x") if options.nonce is not None else None)
    allowed = [name for text in options.allow_missing for name in text.split(",")]
    try:
        material = gather(options)
        result = check(Given(options.kind, material, now, nonce, allowed, roots(options.root)))
    except BadInput as error:
        if options.json and not error.where.startswith("--"):
            sys.stdout.write(malformed(options.kind, str(error), now).dump().decode())
        raise
    sys.stdout.write(result.dump().decode() if options.json else render(result))
    return result.exit_code


def roots(given: list[str]) -> tuple[str, ...]:
    """SPKI digests of the roots that the caller adds. Raises BadInput."""
    from cube_attestation.errors import BadInput
    from cube_attestation.fields import DIGEST
    from cube_attestation.recognise import recognise
    from cube_attestation.x509 import certificate

    from .commands import _read

    found: list[str] = []
    for text in given:
        if DIGEST.fullmatch(text):
            found.append(text)
            continue
        certificates = recognise(_read(text), where=text).certificates
        if not certificates:
            raise BadInput("holds no certificate", where="--root", todo="pass a root's certificate or its digest")
        found += [certificate.parse(data).spki_digest for data in certificates]
    return tuple(found)


def gather(options: argparse.Namespace) -> Material:
    """The material of every file. Keys and certificates of options are the caller's word about a token's issuer."""
    from dataclasses import replace

    from cube_attestation.recognise import Material, recognise

    from .commands import _read

    material = Material()
    for path in options.files:
        found = recognise(_read(path), where=path)
        material += replace(found, keys=(), offered_keys=found.keys)
    for name in OPTIONS:
        for path in getattr(options, name):
            found = recognise(_read(path), where=path)
            if options.kind == "token":
                found = replace(found, keys=(*found.keys, *found.certificates), certificates=())
            material += found
    return material


def render(result: Result) -> str:
    """The result for people: outcome, reasons, then what the evidence says."""
    from cube_attestation import jcs

    word = "good" if result.acceptable else "authentic, refused" if result.authentic else "NOT AUTHENTIC"
    lines = [f"{result.kind}: {word}"]
    if result.roots:
        lines.append(f"  roots added by the caller: {', '.join(result.roots)}")
    if result.allowed_missing:
        lines.append(f"  not looked at: {', '.join(result.allowed_missing)}")
    lines += [f"  {reason.code}: {reason.words}" for reason in result.reasons]
    for item in result.items:
        lines.append(item.item)
        lines += [
            f"  {name}: {value if isinstance(value, str) else jcs.dumps(value).decode()}"
            for name, value in item.facts.items()
        ]
    return "".join("".join(c if c.isprintable() else "?" for c in line) + "\n" for line in lines)
