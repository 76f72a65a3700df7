# SPDX-License-Identifier: Apache-2.0
"""`cube machine`: reboot one of this host, or stop whatever of an environment still runs here."""

from __future__ import annotations

import argparse
from typing import Any

from cube_stacks import edge
from cube_stacks.local import machine
from cube_stacks.local.machine import LocalMachine
from cube_stacks.state import state_folder


def add(commands: Any) -> None:
    parts = commands.add_parser("machine", help="machines of this host").add_subparsers(
        required=True, metavar="ACTION"
    )
    reboot = parts.add_parser("reboot", help="reset a machine; it serves nothing until it is verified again")
    reboot.add_argument("name", nargs="?", help="needed only when several run")
    reboot.set_defaults(run=run_reboot)
    stop = parts.add_parser("stop", help="end every machine and edge of the environment on this host")
    stop.set_defaults(run=run_stop)


def _named(environment: str, name: str | None) -> LocalMachine:
    running = [found for found in machine.load_all(environment) if found.alive()]
    chosen = [found for found in running if name in (None, found.name, found.instance)]
    if len(chosen) != 1:
        names = ", ".join(found.name for found in running) or "none"
        raise ValueError(f"environment {environment}: name one of the running machines: {names}")
    return chosen[0]


def run_reboot(asked: argparse.Namespace) -> int:
    found = _named(asked.environment, asked.name)
    found.reboot()
    print(f"{found.instance} reboots; `cube reconcile` verifies and admits the new boot")
    return 0


def run_stop(asked: argparse.Namespace) -> int:
    edges = state_folder(asked.environment) / "edges"
    for folder in sorted(edges.iterdir()) if edges.is_dir() else []:
        if edge.find(folder) is not None:
            edge.stop(folder)
            print(f"edge {folder.name} stopped")
    for found in machine.load_all(asked.environment):
        if found.alive() or (found.swtpm is not None and found.swtpm.alive()):
            found.stop()
            print(f"machine {found.instance} stopped")
    return 0
