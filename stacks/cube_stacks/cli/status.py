# SPDX-License-Identifier: Apache-2.0
"""`cube status`: machine, gate, domains and edge, as recorded and as they are now."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

from cube_attestation import client, times
from cube_attestation.errors import AttestationError

from cube_stacks import edge, records
from cube_stacks.local import machine

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Line:
    """One resource: whether it is well, and what it is doing."""

    what: str
    name: str
    well: bool
    words: str


def add(commands: Any) -> None:
    found = commands.add_parser("status", help="machine, lease, boot, domains and edge, as they are now")
    found.add_argument("--json", action="store_true", help="print JSON")
    found.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    lines = look(asked.environment)
    if asked.json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    elif not lines:
        print(f"environment {asked.environment}: nothing is deployed; run: pulumi up")
    else:
        for line in lines:
            print(f"{'ok ' if line.well else 'BAD'}  {line.what:<8} {line.name:<10} {line.words}")
    return 0 if lines and all(line.well for line in lines) else 1


def look(environment: str) -> list[Line]:
    """Every machine, gate, domain set and edge of the environment."""
    lines = [Line("machine", found.name, found.alive(), _machine(found)) for found in machine.load_all(environment)]
    lines += [_gate(name, record["outputs"]) for name, record in records.all_of(environment, "gates").items()]
    lines += [_domains(name, record) for name, record in records.all_of(environment, "domain-sets").items()]
    return lines + [_edge(environment, name, each) for name, each in records.all_of(environment, "edges").items()]


def _machine(found: machine.LocalMachine) -> str:
    state = "runs" if found.alive() else "is gone; run: pulumi up"
    return f"{found.instance} {state} ({found.accelerator}), console {found.console}"


def _gate(name: str, outputs: dict[str, Any]) -> Line:
    address = outputs["attestedAddress"]
    try:
        state = client.state(address, expected_spki=outputs["attestedKey"], timeout=_TIMEOUT_S)
        ready, reasons = client.ready(address, timeout=_TIMEOUT_S)
    except AttestationError as error:
        return Line("gate", name, False, f"{error}; `cube reconcile` verifies it again")
    until = f" until {times.format_time(state.lease_expires)}" if state.lease_expires else ""
    lease = f"lease {state.lease}{until}"
    words = f"{outputs['tier']}, boot {state.boot[:12]}, {lease}, verified {outputs['verifiedAt']}"
    return Line("gate", name, ready, words if ready else f"{words}, not ready: {', '.join(reasons)}")


def _domains(name: str, record: dict[str, Any]) -> Line:
    inputs, outputs = record["inputs"], record["outputs"]
    names = ", ".join(f"{domain['name']} ({'+'.join(domain['models'])})" for domain in outputs["domains"])
    try:
        key = inputs["attestedKey"]
        state = client.state(inputs["attestedAddress"], expected_spki=key, timeout=_TIMEOUT_S)
    except AttestationError as error:
        return Line("domains", name, False, f"{names}: can't be looked at: {error}")
    if state.domains_digest != outputs["digest"]:
        return Line("domains", name, False, f"{names}: not in force; run: cube reconcile")
    return Line("domains", name, True, f"{names}, generation {state.domains_generation}")


def _edge(environment: str, name: str, record: dict[str, Any]) -> Line:
    folder = records.folder(environment, "edges", name)
    if edge.find(folder) is None:
        return Line("edge", name, False, "does not run; run: cube reconcile")
    ready, members = edge.healthy(folder), len(record["inputs"]["members"])
    return Line("edge", name, ready > 0, f"{record['outputs']['endpoint']}, {ready} of {members} members ready")
