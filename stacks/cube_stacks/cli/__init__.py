# SPDX-License-Identifier: Apache-2.0
"""The `cube` command: look at an environment and keep it well between two runs of Pulumi."""

from cube_stacks.cli.main import main

__all__ = ["main"]
