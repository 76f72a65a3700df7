# SPDX-License-Identifier: Apache-2.0
"""Debian packages of the host that the local environment needs: find what is missing, and install it."""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from cube_images.errors import ImageError
from cube_images.run import RunError, run

NEEDED: Final[Mapping[str, str]] = {
    "qemu-system-x86_64": "qemu-system-x86",  # runs the machine
    "swtpm": "swtpm",  # its TPM
    "swtpm_localca": "swtpm-tools",  # makes the TPM's certificates
    "mmdebstrap": "mmdebstrap",  # installs the locked trees that build the image
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
}
"""Programs and the packages that bring them."""

SAY_SECONDS: Final = 2
APT_SECONDS: Final = 1800
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> list[str]:
    """Packages whose programs are not here."""
    return packages(
        program for program in NEEDED if not (shutil.which(program) or shutil.which(program, path=PATH))
    )


def packages(programs: Iterable[str]) -> list[str]:
    return sorted({NEEDED[program] for program in programs})


def install(say: Callable[[str], None]) -> None:
    """Install what is missing with apt, as root or through sudo. Raises ImageError with what to do by hand."""
    wanted = missing()
    if not wanted:
        return
    by_hand = f"install {' '.join(wanted)} yourself"
    if "apt" in wanted or "dpkg" in wanted:
        raise ImageError("this host has no apt", f"use Debian 12 or 13, or {by_hand}")
    say(f"installing {', '.join(wanted)} with apt")
    last = time.monotonic()

    def tell(line: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= SAY_SECONDS:
            last = time.monotonic()
            say(f"apt: {line[:90] or 'working'}")

    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    lock = ["-o", "DPkg::Lock::Timeout=120"]
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *wanted]):
        try:
            run(
                ["apt-get", *lock, "--quiet", *arguments],
                env=environment,
                root=True,
                on_line=tell,
                on_tick=tell,
                timeout=APT_SECONDS,
                hint=f"{by_hand}, then go on",
            )
        except RunError:
            # Lists that can't be refreshed may still do; what can't be installed from them is the error.
            if arguments != ["update"]:
                raise
    still = missing()
    if still:
        raise ImageError(f"{', '.join(still)} is installed but its programs are not on PATH", "see PATH")
