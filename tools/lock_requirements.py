# SPDX-License-Identifier: Apache-2.0
"""Write requirements.lock: every third-party package of the rooms and of development, by version and hash.

Beside it requirements-guest.lock (see guest_library.py) and requirements-fuzz.lock, for what only some need.

Runs ``uv pip compile`` over what the pyproject files name, so that there is one list and no second one to forget.
The lock holds no address: the package index is the host's own.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = {"guest": ("setuptools", "setuptools-scm", "pkgconfig", "wheel")}
ROOMS = ("attestation", "images", "proxy", "stacks", "templates")


def third_party() -> list[str]:
    """Requirements of all rooms and of the ``dev`` group, without our own distributions."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = [*whole["dependency-groups"]["dev"]]
    for room in ROOMS:
        found += tomllib.loads((ROOT / room / "pyproject.toml").read_text())["project"]["dependencies"]
    return sorted({requirement for requirement in found if not requirement.startswith("cube-")})


def group(name: str) -> list[str]:
    """Requirements of the group ``name``, and what building its sdists needs, which they only say when unpacked."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[str] = whole["dependency-groups"][name]
    return [*found, *BUILD.get(name, ())]


def compile_lock(requirements: list[str], lock: Path, *more: str) -> int:
    """Resolve `requirements` into `lock`; returns uv's exit status."""
    done = subprocess.run(
        [
            *("uv", "pip", "compile", "-", "--quiet", "--universal", "--python-version", "3.11"),
            *("--generate-hashes", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate"),
            *("--output-file", str(lock), *more),
        ],
        input="\n".join(requirements),
        text=True,
        check=False,
    )
    return done.returncode


def main() -> int:
    lock = ROOT / "requirements.lock"
    status = compile_lock(third_party(), lock, *sys.argv[1:])
    for name in ("guest", "fuzz"):
        own = ROOT / f"requirements-{name}.lock"
        status = status or compile_lock(group(name), own, "--constraints", str(lock), *sys.argv[1:])
    return status


if __name__ == "__main__":
    raise SystemExit(main())
