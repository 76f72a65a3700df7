# SPDX-License-Identifier: Apache-2.0
"""Collect the wheels that fuzzing needs on a machine without a network, in the versions that the project pins.

Here: `python tests/fuzz/wheels.py --python 3.12` fills build/fuzz/wheels (about 46 MB, ignored by git), and
`cp -r ../shared/vectors build/fuzz/vectors` adds real evidence. There, from the checkout's root with build/fuzz:

    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/fuzz-site build/fuzz/wheels/*.whl &&
    PYTHONPATH=/tmp/fuzz-site python3 tests/fuzz/run.py --within 580 --confirm 40 --jobs 0
        --vectors build/fuzz/vectors --corpus /tmp/corpus --output /tmp/fuzz

``--jobs 0`` runs all targets side by side; ``--within`` counts everything from the seeds to the table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("cffi", "cryptography", "joserfc", "lxml", "pycparser")  # beside the fuzz group of pyproject.toml
# pip takes a platform literally: the ones that wheels of these packages are built for
PLATFORMS = ("manylinux_2_28", "manylinux_2_26", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")
MAX_BYTES = 60 << 20


def pinned(lock: str, project: str) -> tuple[str, ...]:
    """``name==version``: the fuzz group of pyproject.toml, and NEEDED as locked. Raises ValueError without one."""
    found = dict(re.findall(r"^([a-z0-9.-]+)==([^ \\;\n]+)", lock, re.MULTILINE))
    if missing := [name for name in NEEDED if name not in found]:
        raise ValueError(f"requirements.lock has no {', '.join(missing)}")
    group: list[str] = tomllib.loads(project)["dependency-groups"]["fuzz"]
    return (*group, *(f"{name}=={found[name]}" for name in NEEDED))


def command(requirements: Sequence[str], python: str, machine: str, folder: Path) -> list[str]:
    """The download of exactly ``requirements`` as wheels for CPython ``python`` on ``machine``."""
    platforms = [f"--platform={platform}_{machine}" for platform in PLATFORMS]
    fixed = [
        "--no-deps",
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={python}",
        f"--dest={folder}",
    ]
    return [sys.executable, "-m", "pip", "download", "--quiet", *fixed, *platforms, *requirements]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    parser.add_argument("--machine", default="x86_64")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz" / "wheels")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in options.folder.glob("*.whl"):
        old.unlink()
    requirements = pinned((ROOT / "requirements.lock").read_text(), (ROOT / "pyproject.toml").read_text())
    done = subprocess.run(command(requirements, options.python, options.machine, options.folder), check=False)
    if done.returncode:
        return done.returncode
    wheels = sorted(options.folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in wheels)
    for path in wheels:
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path.name}")
    print(f"{size / 1e6:6.1f} MB in {options.folder}")
    return 1 if size > MAX_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
