# SPDX-License-Identifier: Apache-2.0
"""docs/images.md names only commands and options that there are, and all commands of this room."""

import re
import shlex
from pathlib import Path

import pytest
from cube_images import cli
from cube_images.platforms import azure, gcp

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "images.md").read_text()
COMMANDS = [
    line.partition("#")[0].partition(">")[0].strip()
    for line in PAGE.splitlines()
    if line.startswith("measured-image ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_is_one(line: str) -> None:
    cli._parser().parse_args(shlex.split(line)[1:])


def test_every_command_is_there() -> None:
    named = {line.split()[1] for line in COMMANDS}
    help_text = cli._parser().format_help()
    known = set(re.search(r"\{([a-z,-]+)\}", help_text).group(1).split(","))  # type: ignore[union-attr]
    # What builds and shows an image is told where the local environment is.
    assert known - named == {"lock", "show"}


def test_what_is_unknown_is_said_for_each_machine() -> None:
    for machine in (gcp.MACHINE, azure.MACHINE):
        assert machine in PAGE
