# SPDX-License-Identifier: Apache-2.0
"""Each room works from its built wheel alone, in an empty environment with just its declared dependencies."""

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each room may bring along of ours: the arrows of docs/architecture.md §2.
NEEDS = {
    "templates": [],
    "attestation": [],
    "images": ["attestation", "templates"],
    "proxy": ["attestation", "templates"],
    "stacks": ["attestation", "images", "proxy", "templates"],
}


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("wheels")
    for room in NEEDS:
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
            cwd=ROOT / room,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return {room: next(out.glob(f"cube_{room}-*.whl")) for room in NEEDS}


@pytest.fixture(scope="session")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The locked versions as constraints (pip refuses hashes beside our own unhashed wheels)."""
    pins = re.findall(r"^([a-z0-9._-]+==[^ \\;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    path = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    path.write_text("\n".join(pins))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("room", NEEDS)
def test_room_works_from_its_wheel(room: str, wheels: dict[str, Path], constraints: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    ours = [wheels[name] for name in (*NEEDS[room], room)]
    _run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, *ours)

    walk = (
        "import importlib, pkgutil, sys; package = importlib.import_module(sys.argv[1]); "
        "names = [m.name for m in pkgutil.walk_packages(package.__path__, sys.argv[1] + '.')]; "
        "[importlib.import_module(n) for n in names if not n.endswith('__main__')]; print(len(names))"
    )
    count = int(_run(python, "-I", "-c", walk, f"cube_{room}"))
    assert count > 0 or room == "templates"

    scripts = tomllib.loads((ROOT / room / "pyproject.toml").read_text())["project"].get("scripts", {})
    for script in scripts:
        if not script.startswith("pulumi-resource-"):
            assert "usage:" in _run(home / "bin" / script, "--help").lower()
