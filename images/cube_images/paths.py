# SPDX-License-Identifier: Apache-2.0
"""Where things are kept between runs, and how a cache entry comes to be: whole or not at all."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cube_images.errors import ImageError


def _home(variable: str, default: str) -> Path:
    base = os.environ.get(variable, "")
    # The XDG specification says that a relative path is to be ignored.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / default
    return root / "cube-confidential"


def cache_dir() -> Path:
    """The user's cache folder of this project (may not exist yet); everything in it can be made again."""
    return _home("XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """The user's state folder of this project (may not exist yet); nothing in it can be made again."""
    return _home("XDG_STATE_HOME", ".local/state")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock named by `path` (a file beside it): a second process waits, none works twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def entry(path: Path, make: Callable[[Path], None]) -> Path:
    """Return the cache entry (a folder) at `path`, made by `make(empty folder)` if it isn't there.

    The folder appears under its final name only when `make` returned, so an entry that exists is whole. What an
    earlier run left behind half-made is removed first.
    """
    if path.is_dir():
        return path
    with locked(path):
        if path.is_dir():
            return path
        for stale in path.parent.glob(f".{path.name}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            temporary.chmod(0o755)
            make(temporary)
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return path


def write_whole(path: Path, text: str) -> None:
    """Write beside `path` and rename over it, so that nobody finds half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def require_space(folder: Path, need: int, what: str) -> None:
    """Raise `ImageError` when the file system of `folder` has less than `need` free bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ImageError(
            f"{what} needs {need / 1e9:.1f} GB in {folder}, but only {free / 1e9:.1f} GB are free",
            "free some space, or point XDG_CACHE_HOME at a larger disk",
        )
