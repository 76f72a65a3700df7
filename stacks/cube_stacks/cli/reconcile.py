# SPDX-License-Identifier: Apache-2.0
"""`cube reconcile`: re-verify, renew, re-admit, restore; once or for ever."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from cube_attestation import times

from cube_stacks import edge, records
from cube_stacks.gate import utc_now
from cube_stacks.reconcile import reconcile

_WATCH_READY_S = 10.0  # the next round looks again; leases must not wait for a slow edge


def add(commands: Any) -> None:
    found = commands.add_parser("reconcile", help="verify again, renew leases, admit new boots, restore domains")
    found.add_argument("--watch", action="store_true", help="do it for ever")
    found.add_argument(
        "--interval", type=_seconds, default=60, metavar="S", help="seconds between two (default 60)"
    )
    found.set_defaults(run=run)


def _seconds(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 and 86400 seconds")
    return int(text)


def run(asked: argparse.Namespace) -> int:
    while True:
        well = once(asked.environment, _WATCH_READY_S if asked.watch else edge.READY_S)
        if not asked.watch:
            return 0 if well else 1
        time.sleep(asked.interval)


def once(environment: str, ready_s: float) -> bool:
    """One round; whether all is well."""
    if not records.all_of(environment, "gates"):
        print(f"environment {environment}: nothing is deployed; run: pulumi up", file=sys.stderr)
        return False
    said = [""]

    def progress(line: str) -> None:
        if line != said[0]:
            said[0] = line
            print(f"     {line}", file=sys.stderr, flush=True)

    well = True
    for outcome in reconcile(environment, progress, ready_s=ready_s):
        well = well and outcome.well
        mark = "ok " if outcome.well else "BAD"
        now = times.format_time(utc_now())
        print(f"{now}  {mark}  {outcome.kind[:-1]:<10} {outcome.name:<10} {outcome.words}", flush=True)
    return well
