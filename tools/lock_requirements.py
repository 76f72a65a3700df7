# SPDX-License-Identifier: Apache-2.0
"""Write requirements.lock: every third-party package of the rooms and of development, by version and hash.

Beside it requirements-guest.lock, what the agent's tests need of the guest (see guest_library.py).

Runs ``uv pip compile`` over what the pyproject files name, so that there is one list and no second one to forget.
The lock holds no address: the package index is the host's own.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("attestation", "images", "proxy", "stacks", "templates")


def third_party() -> list[str]:
    """Requirements of all rooms and of the ``dev`` group, without our own distributions."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = [*whole["dependency-groups"]["dev"]]
    for room in ROOMS:
        found += tomllib.loads((ROOT / room / "pyproject.toml").read_text())["project"]["dependencies"]
    return sorted({requirement for requirement in found if not requirement.startswith("cube-")})


def guest() -> list[str]:
    """The agent's TPM library and what building it needs; sdists say that of themselves only when unpacked."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [*whole["dependency-groups"]["guest"], "setuptools", "setuptools-scm", "pkgconfig", "wheel"]


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
    if status:
        return status
    return compile_lock(guest(), ROOT / "requirements-guest.lock", "--constraints", str(lock), *sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
