# SPDX-License-Identifier: Apache-2.0
"""Root trees of locked packages (mkosi's tools, Ollama's compiler), made once per lock and kept in the cache."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from cube_images import debian
from cube_images.flavour import Flavour
from cube_images.lock import Lock
from cube_images.paths import cache_dir, entry
from cube_images.run import run

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- only where the kernel offers it, and only when there is room


def scratch_parent(need: int) -> Path:
    """A folder for `need` bytes of temporary files: in memory when that leaves room for the work, else on disk."""
    if _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK) and _available_memory() > 3 * need:
        return _SHARED_MEMORY
    folder = cache_dir() / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _available_memory() -> int:
    """Bytes that may be used up in shared memory without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(available, shutil.disk_usage(_SHARED_MEMORY).free)


def tree(definition: Flavour, lock: Lock, purpose: str, on_tick: Callable[[], None] | None = None) -> Path:
    """The installed tree of one package set of the lock; its packages are in the cache already."""
    digest = lock.digest(purpose)
    names: Sequence[str] = definition.debian[purpose].packages

    def make(folder: Path) -> None:
        repository = debian.repository(lock.debian[purpose], lock.suite, digest)
        source = f"deb [trusted=yes] copy://{quote(str(repository))} ./"
        run(
            [
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--architectures=amd64"),
                *("--format=directory", f"--include={','.join(names)}", "--skip=check/empty"),
                *(definition.suite, str(folder / "tree"), source),
            ],
            # The epoch keeps time stamps of generated files out of what is built with the tree.
            env={"SOURCE_DATE_EPOCH": str(definition.image["epoch"]), "TMPDIR": "/tmp"},  # noqa: S108 -- of the tree
            root=True,
            on_tick=on_tick,
            hint="apt-get install mmdebstrap",
        )

    return entry(cache_dir() / "trees" / f"{purpose}-{digest[:32]}", make) / "tree"
