# SPDX-License-Identifier: Apache-2.0
"""The linters, as tests: format, lint, types and the rooms' import rules."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["attestation", "images", "proxy", "stacks", "templates", "tools"]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([BIN / "ruff", "format", "--check", "."], id="format"),
        pytest.param([BIN / "ruff", "check", "."], id="lint"),
        pytest.param([BIN / "mypy", *ROOMS], id="types"),
        pytest.param([BIN / "lint-imports"], id="import-rules"),
    ],
)
def test_linter(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_python_file_names_its_licence() -> None:
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    unnamed = [
        name
        for name in files.stdout.split()
        if (ROOT / name).exists() and "SPDX-License-Identifier: Apache-2.0" not in (ROOT / name).read_text()[:200]
    ]
    assert unnamed == []


def test_lock_files_hold_no_address() -> None:
    locks = [ROOT / "requirements.lock", *ROOT.glob("images/cube_images/locks/*.json")]
    assert [path.name for path in locks if "://" in path.read_text()] == []
