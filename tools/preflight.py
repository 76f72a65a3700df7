# SPDX-License-Identifier: Apache-2.0
"""Before the engine starts: install the Debian packages that are missing, and say what else is in the way.

What is needed and checked is `cube doctor`'s to know.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cube_images.errors import ImageError
from cube_images.run import RunError, run
from cube_stacks.cli import doctor
from cube_stacks.state import cache_folder, state_folder

SAY_SECONDS: Final = 2
APT_SECONDS: Final = 1800


def missing() -> list[str]:
    """Packages whose programs are not here."""
    return doctor.missing_packages(f"{os.environ.get('PATH', '')}:{doctor.SYSTEM_PATH}")


def install(say: Callable[[str], None], also: Iterable[str] = ()) -> None:
    """Install what is missing, and `also`, with apt, as root or through sudo.

    Raises ImageError with what to do by hand.
    """
    wanted = [*missing(), *also]
    if not wanted:
        return
    say(f"installing {', '.join(wanted)} with apt")
    last = time.monotonic()

    def tell(line: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= SAY_SECONDS:
            last = time.monotonic()
            say(f"apt: {line[:90] or 'working'}")

    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *wanted]):
        try:
            run(
                ["apt-get", "-o", "DPkg::Lock::Timeout=120", "--quiet", *arguments],
                env={"DEBIAN_FRONTEND": "noninteractive"},
                root=True,
                on_line=tell,
                on_tick=tell,
                timeout=APT_SECONDS,
                hint=f"install {' '.join(wanted)} yourself, then go on",
            )
        except RunError:
            # Lists that can't be refreshed may still do; what can't be installed from them is the error.
            if arguments != ["update"]:
                raise
    still = missing()
    if still:
        raise ImageError(f"apt installed {', '.join(still)}, but the programs are not on PATH", "see PATH")


def problems(environment: str, listen: str) -> Iterator[str]:
    """What would stop the environment later, in a line each: a port in use, a full disk, a wrong passphrase."""
    for finding in (
        doctor.namespaces(os.geteuid()),
        doctor.port(environment, listen),
        doctor.disk("cache", cache_folder(), doctor.NEEDED_CACHE),
        doctor.disk("state", state_folder(environment), doctor.NEEDED_STATE),
        doctor.passphrase(state_folder(environment), environment),
    ):
        if finding.level == "bad":
            yield f"{finding.check}: {finding.words}; {finding.todo}"
