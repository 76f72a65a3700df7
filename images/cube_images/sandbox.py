# SPDX-License-Identifier: Apache-2.0
"""Run a program of a locked tree instead of the host's: own mounts, no network, of the host only named folders.

mkosi's own sandbox does the work; it needs no other program and leaves no mount behind.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cube_images import debian
from cube_images.lock import Lock
from cube_images.paths import cache_dir, entry


def mkosi(lock: Lock) -> Path:
    """Folder of the locked mkosi's Python package (the folder to put on PYTHONPATH)."""
    package = lock.package("mkosi")
    folder = entry(cache_dir() / "parts" / package.sha256, lambda folder: debian.extract(package, folder))
    return folder / "usr" / "lib" / "python3" / "dist-packages"


def command(
    lock: Lock,
    tree: Path,
    argv: Sequence[str | Path],
    *,
    writable: Mapping[Path, str],
    readable: Mapping[Path, str] | None = None,
    env: Mapping[str, str] | None = None,
    chdir: str = "/",
) -> list[str | Path]:
    """The argument list that runs `argv` with `tree` as its root.

    `writable` and `readable` map folders or files of the host to where they appear. `env` is the whole environment.
    """
    words: list[str | Path] = [sys.executable, "-SI", mkosi(lock) / "mkosi" / "sandbox.py"]
    for name in ("usr", "etc"):
        words += ["--ro-bind", tree / name, f"/{name}"]
    for name in ("bin", "sbin", "lib", "lib64"):
        words += ["--symlink", f"usr/{name}", f"/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--unshare-net", "--unshare-ipc"]  # noqa: S108
    for source, target in (readable or {}).items():
        words += ["--ro-bind", source, target]
    for source, target in writable.items():
        words += ["--bind", source, target]
    words += ["--chdir", chdir, "--", "env", "--ignore-environment", "PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8"]
    words += [f"{key}={value}" for key, value in (env or {}).items()]
    return [*words, *argv]
