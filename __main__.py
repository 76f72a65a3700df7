# SPDX-License-Identifier: Apache-2.0
"""Pulumi's entry: everything is in `cube_stacks.program`."""

from cube_stacks.program import run

run()
