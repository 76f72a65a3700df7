# SPDX-License-Identifier: Apache-2.0
"""The ``attestation`` command. Exit codes: 0 passed · 1 refused by policy · 2 not authentic · 3 bad input ·
4 could not reach the subject · 64 usage."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from cube_attestation.reports import FORMATS

BAD_INPUT, UNREACHABLE, USAGE = 3, 4, 64


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


# Each of these commands is a module of its own, with whatever it needs
_MODULES = {
    "check": "check",
    "import": "importing",
    "collateral": "collateral",
    "prove": "prove",
    "policy": "policy",
    "audit": "audit",
    "connect": "connect",
}


def _parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of ``command`` and of nothing else if it is known, so that one command does not wait for all."""
    parser = _Parser(prog="attestation", description="Verify the evidence of confidential machines, offline.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    verify = commands.add_parser("verify", help="give the verdict over a bundle or a running machine")
    verify.add_argument("subject", metavar="BUNDLE|URL", help="a bundle file, or https://host:port of a machine")
    verify.add_argument("--policy", required=True, metavar="FILE", help="what to accept (TOML)")
    verify.add_argument("--at", metavar="TIME", help="verify as of this time, e.g. 2026-11-24T12:00:00Z")
    verify.add_argument("--nonce", metavar="HEX", help="the nonce that the evidence must answer")
    verify.add_argument(
        "--endorsements",
        metavar="BUNDLE",
        help="with a URL: take certificates and the image manifest from this bundle",
    )
    verify.add_argument("--format", choices=("human", *FORMATS), default="human")
    verify.add_argument("--sign", metavar="file:KEY", help="with --format ear: sign it with this P-256 key (a JWT)")
    verify.add_argument("--output", metavar="FILE", help="write the verdict there instead of printing it")
    verify.add_argument("--save", metavar="FILE", help="with a URL: keep the fetched bundle")
    verify.add_argument("--timeout", type=float, default=30.0, metavar="S", help="with a URL: seconds in all")

    inspect = commands.add_parser(
        "inspect",
        help="say what files are and what they hold",
        description="Reads bundles, claims, signed documents, launch disks, policies, and evidence of every kind "
        "as other tools write it: reports, quotes, logs, manifests, OCSP, TCB information, lists, tokens, "
        "certificates. Recognised by content; nothing is verified.",
    )
    inspect.add_argument("files", nargs="+", metavar="FILE")

    explain = commands.add_parser("explain", help="name the first event where a boot leaves the prediction")
    explain.add_argument("subject", metavar="BUNDLE")
    explain.add_argument("--policy", required=True, metavar="FILE")
    explain.add_argument("--at", metavar="TIME", help="verify as of this time")

    known = {*commands.choices, *_MODULES}
    for name, module in _MODULES.items():
        if name == command or command not in known:
            import_module(f".{module}", __package__).add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    command = given[0] if given else ""
    collecting = gc.isenabled()
    if command == "verify":  # so short that looking for garbage would take a twelfth of it, most while importing
        gc.disable()
    try:
        return _run(_parser(command).parse_args(given))
    finally:
        if collecting:
            gc.enable()


def _run(options: argparse.Namespace) -> int:
    from cube_attestation.errors import AttestationError, Unreachable

    from . import commands

    try:
        return commands.run(options)
    except Unreachable as error:
        print(f"attestation: {error}", file=sys.stderr)
        return UNREACHABLE
    except AttestationError as error:
        print(f"attestation: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        return BAD_INPUT
