# SPDX-License-Identifier: Apache-2.0
"""Into .venv, for the tests: the library by which the agent in the guest speaks to its TPM.

The image has it from Debian. On this host it is built against Debian's TPM stack, from requirements-guest.lock,
so that the agent's tests run the agent itself.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final

import packages
from environment import ROOT, EnvironmentProblem

LOCK: Final = ROOT / "requirements-guest.lock"
DISTRIBUTION: Final = "tpm2-pytss"


def locked() -> str:
    """The locked version of the library."""
    lines = LOCK.read_text().splitlines()
    return next(line.partition("==")[2].rstrip(" \\") for line in lines if line.startswith(f"{DISTRIBUTION}=="))


def present() -> bool:
    """Whether this environment has the locked version."""
    try:
        return metadata.version(DISTRIBUTION) == locked()
    except metadata.PackageNotFoundError:
        return False


def build_packages() -> list[str]:
    """Debian packages that building it needs and that are missing; none when it is there already."""
    if present():
        return []
    wanted = []
    if shutil.which("gcc") is None:
        wanted += ["gcc", "libc6-dev"]
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        wanted.append("python3-dev")
    known = shutil.which("pkg-config") and subprocess.run(["pkg-config", "--exists", "tss2-esys"], check=False)
    if not known or known.returncode:
        wanted += ["libtss2-dev", "pkg-config"]
    return wanted


def _requirements() -> tuple[str, str]:
    """The lock in two parts: what the build runs with, and the library itself."""
    blocks = re.split(r"\n(?=\S)", LOCK.read_text().strip())
    library = [block for block in blocks if block.startswith(f"{DISTRIBUTION}==")]
    return "\n".join(block for block in blocks if block not in library), "\n".join(library)


def install(say: Callable[[str], None]) -> None:
    """Build and install it if it is not there. Raises EnvironmentProblem with the end of what pip said."""
    if present():
        return
    say(f"building {DISTRIBUTION} {locked()}, the agent's TPM library, for the tests")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off"]
    with tempfile.TemporaryDirectory(prefix="cube-guest-") as name:
        for number, part in enumerate(_requirements()):
            requirements = Path(name) / f"{number}.txt"
            requirements.write_text(part)
            words = [*pip, "--require-hashes", "--no-build-isolation", "--requirement", str(requirements)]
            try:
                packages.watch(words, f"building {DISTRIBUTION}")
            except packages.Unmakeable as error:
                todo = "it needs gcc, python3-dev, pkg-config and libtss2-dev"
                raise EnvironmentProblem(f"{DISTRIBUTION} could not be built: {error}; {todo}") from error
