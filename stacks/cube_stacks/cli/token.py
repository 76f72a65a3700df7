# SPDX-License-Identifier: Apache-2.0
"""`cube token issue` and `cube token revoke`."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import timedelta
from typing import Any

from cube_stacks import records, tokens
from cube_stacks.gate import utc_now
from cube_stacks.keys import KeyFailure, domain_key, open_key
from cube_stacks.provider import domain_set
from cube_stacks.provider.base import Failed
from cube_stacks.reconcile import with_revocations

_DURATION = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add(commands: Any) -> None:
    parts = commands.add_parser("token", help="make and revoke access tokens").add_subparsers(
        required=True, metavar="ACTION"
    )
    issue = parts.add_parser("issue", help="print a new token of a domain (its id, jti, goes to stderr)")
    issue.add_argument("domain", help="the domain's name", nargs="?")
    issue.add_argument("--domain", dest="domain_option", metavar="DOMAIN", help="the same")
    default = ",".join(tokens.INFERENCE)
    issue.add_argument("--scopes", default=default, help=f"of {', '.join(tokens.SCOPES)} (default: {default})")
    issue.add_argument("--ttl", type=_duration, default=timedelta(hours=1), help="e.g. 30m, 12h, 7d (default 1h)")
    issue.add_argument("--key", help="reference of the domain's token key (default: the environment's own)")
    issue.set_defaults(run=run_issue)
    revoke = parts.add_parser("revoke", help="revoke a token by its id, on all machines at once")
    revoke.add_argument("words", nargs="+", metavar="[DOMAIN] JTI", help="the domain's name, and the token's id")
    revoke.add_argument("--domain", metavar="DOMAIN", help="the domain's name")
    revoke.set_defaults(run=run_revoke)


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write e.g. 30m, 12h or 7d")
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def deployed(environment: str, name: str) -> dict[str, Any]:
    """The domain named `name` as it is deployed. Raises ValueError that lists those that are."""
    domains = [
        domain
        for record in records.all_of(environment, "domain-sets").values()
        for domain in record["inputs"]["domains"]
    ]
    for domain in domains:
        if name in (domain["name"], domain["id"]):
            found: dict[str, Any] = domain
            return found
    known = ", ".join(sorted(domain["name"] for domain in domains)) or "none; run: pulumi up"
    raise ValueError(f"environment {environment} has no domain {name!r}; deployed: {known}")


def run_issue(asked: argparse.Namespace) -> int:
    if not (asked.domain or asked.domain_option):
        raise ValueError("name a domain: cube token issue DOMAIN")
    domain = deployed(asked.environment, asked.domain_option or asked.domain)
    key = open_key(asked.key or domain_key(asked.environment, domain["name"]))
    if tokens.token_key(key).kid not in [known["kid"] for known in domain["tokens"]["keys"]]:
        raise KeyFailure(
            f"domain {domain['name']} does not accept tokens of {key.keyid}; name its key with --key file:<path>"
        )
    scopes = [scope for scope in asked.scopes.split(",") if scope]
    token, claims = tokens.issue(key, asked.environment, domain["id"], scopes, asked.ttl, utc_now())
    print(f"jti {claims['jti']}", file=sys.stderr)
    print(token)
    return 0


def run_revoke(asked: argparse.Namespace) -> int:
    named = [*([asked.domain] if asked.domain else []), *asked.words]
    if len(named) != 2:
        raise ValueError("name a domain and a token: cube token revoke DOMAIN JTI")
    domain, jti = deployed(asked.environment, named[0]), named[1]
    tokens.revoke(asked.environment, domain["name"], jti)
    for name, record in records.all_of(asked.environment, "domain-sets").items():
        if any(each["id"] == domain["id"] for each in record["inputs"]["domains"]):
            try:
                state = domain_set.install(name, with_revocations(asked.environment, record["inputs"]))
            except Failed as error:
                words = f"kept, but not in force yet (run: cube reconcile): {error.message}"
                raise Failed(error.code, words) from error
            print(f"{jti} is revoked for {domain['name']}, generation {state.outputs['generation']}")
    return 0
