# SPDX-License-Identifier: Apache-2.0
"""Arguments of the `cube` command, and one line for every error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cube_attestation.errors import AttestationError

from cube_stacks.cli import doctor, machine, reconcile, status, token
from cube_stacks.keys import KeyFailure
from cube_stacks.local.process import ProcessFailure
from cube_stacks.local.qemu import QemuFailure
from cube_stacks.provider.base import Failed


def parser() -> argparse.ArgumentParser:
    """The command line, each part added by its module."""
    top = argparse.ArgumentParser(prog="cube", description="Look at an environment and keep it well.")
    top.add_argument(
        "--stack",
        "--environment",
        dest="environment",
        default=os.environ.get("PULUMI_STACK", "local"),
        help="environment, which is the stack's name (default: $PULUMI_STACK, else local)",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (status, reconcile, token, machine, doctor):
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `cube`. 0: well. 1: something is not, said on stderr or in the output. 2: wrong arguments."""
    asked = parser().parse_args(arguments)
    try:
        code: int = asked.run(asked)
    except (AttestationError, Failed, KeyFailure, ProcessFailure, QemuFailure, ValueError, OSError) as error:
        print(f"cube: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code
