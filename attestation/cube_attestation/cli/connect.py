# SPDX-License-Identifier: Apache-2.0
"""``attestation connect``: a port of this computer that leads to machines which pass, and to no other."""

from __future__ import annotations

import argparse
import sys

from .prove import Commands

EPILOG = """\
examples:
  attestation connect https://llm.example:8443 --policy policy.toml --endorsements bundle.json
  curl http://127.0.0.1:9000/acme/v1/models -H "Authorization: Bearer $TOKEN"
  OPENAI_BASE_URL=http://127.0.0.1:9000/acme/v1 OPENAI_API_KEY=$TOKEN python app.py

  # a balancer before two machines, whose management ports are reached directly
  attestation connect https://llm.example:8443 --evidence https://10.0.0.4:8444 --evidence https://10.0.0.5:8444 \\
      --policy policy.toml --endorsements a.json --endorsements b.json

  # management ports out of reach: the gate's newest bundle instead, by a gate that the policy names
  attestation connect https://llm.example:8443 --evidence bundle.json --policy policy.toml

URL is a service port (default 8443); several are replicas, which take turns. A machine's service and management
port end TLS with the same key, made in its memory at boot. For every key that a service port presents, evidence is
asked for over a connection that ends in the same key, at the management port (default: the URL's host, port 8444).
Only when the verdict passes does anything of a client's go out over that key. A bundle's file is read again at each
verification: keep it fresh.

Clients need no change but their base URL, and their tokens. Between client and this program there is no encryption,
so that it listens on loopback only. A machine that does not pass is answered for with 502 and the reason code.

exit codes: 0 ended by a signal, 1 no machine passed, 2 not authentic, 3 bad input, 4 none reached, 64 usage
"""


def add(commands: Commands) -> None:
    """The command's arguments; nothing heavy is imported."""
    parser = commands.add_parser(
        "connect",
        help="forward unmodified clients to machines that pass",
        description="Listens on this computer in plain HTTP and forwards to machines over TLS, after it attested "
        "the key of each connection.",
    )
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("urls", metavar="URL", nargs="+", help="https://host[:8443] of a service port")
    parser.add_argument("--policy", required=True, metavar="FILE", help="what to accept (TOML)")
    parser.add_argument(
        "--evidence",
        metavar="URL|BUNDLE",
        action="append",
        default=[],
        help="https://host[:8444] of a management port, or a bundle with a gate's receipt (repeatable)",
    )
    parser.add_argument(
        "--endorsements",
        metavar="BUNDLE",
        action="append",
        default=[],
        help="take certificates, collateral and the image manifest from this bundle (one for each machine)",
    )
    parser.add_argument("--listen", default="127.0.0.1:9000", metavar="HOST:PORT")
    parser.add_argument(
        "--allow-remote", action="store_true", help="let other computers use this port, unencrypted"
    )
    parser.add_argument(
        "--recheck", type=float, default=300.0, metavar="S", help="seconds that a verdict counts (default 300)"
    )
    parser.add_argument(
        "--max-age", type=float, default=86400.0, metavar="S", help="seconds that a bundle's receipt counts (a day)"
    )
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds for one verification")
    parser.add_argument("--idle", type=float, default=600.0, metavar="S", help="end connections that are silent")
    parser.add_argument("--max-connections", type=int, default=256, metavar="N")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Forward until a signal. Raises BadInput."""
    import asyncio
    from datetime import timedelta

    from cube_attestation import bundle as bundles
    from cube_attestation import policy as policies
    from cube_attestation.connect import server, targets
    from cube_attestation.connect.attest import Attester
    from cube_attestation.errors import BadInput

    from .commands import _read

    for name, value, low, high in (
        ("--recheck", options.recheck, 1, 86400),
        ("--max-age", options.max_age, 1, 31 * 86400),
        ("--timeout", options.timeout, 1, 600),
        ("--idle", options.idle, 1, 86400),
        ("--max-connections", options.max_connections, 1, 10000),
    ):
        if not low <= value <= high:
            raise BadInput(f"{value:g} is not between {low} and {high}", where=name)
    settings = server.Settings(
        listen=targets.listening(options.listen, remote=options.allow_remote),
        targets=targets.targets(options.urls, options.evidence),
        recheck_s=options.recheck,
        attest_s=options.timeout,
        idle_s=options.idle,
        connections=options.max_connections,
    )
    policy = policies.load(_read(options.policy), where=options.policy)
    known = [bundles.load(_read(path), where=path) for path in options.endorsements]
    for path in filter(targets.is_file, options.evidence):
        bundles.load(_read(path), where=path)
        if not policy.receipt_keys:
            todo = "name the gate's key in receipt_keys of [freshness], or give https://host:port of a machine"
            raise BadInput("the policy names no gate whose receipts count", where=f"--evidence {path}", todo=todo)
    attester = Attester(policy, _read, known, timedelta(seconds=options.max_age))
    return asyncio.run(server.serve(settings, attester, _tell))


def _tell(line: str) -> None:
    safe = "".join(c if c.isprintable() else "?" for c in line)
    print(f"attestation: {safe}", file=sys.stderr, flush=True)
