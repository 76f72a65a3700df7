# SPDX-License-Identifier: Apache-2.0
"""The disk of an image as a stream of an exact length, checked against its manifest as it is read."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cube_attestation.errors import NotAuthentic

from cube_images.paths import require_space

Progress = Callable[[str], None]
CHUNK = 1 << 20
_EVERY_SECONDS = 1.5


def rounded(size: int, unit: int) -> int:
    """`size` rounded up to whole units, at least one."""
    return max(1, -(-size // unit)) * unit


class Pace:
    """Says how far work on `size` bytes is, now and then."""

    def __init__(self, what: str, size: int, say: Progress) -> None:
        self._what, self._size, self._say = what, size, say
        self._last = time.monotonic()

    def at(self, done: int) -> None:
        """`done` bytes are."""
        if time.monotonic() - self._last > _EVERY_SECONDS:
            self._last = time.monotonic()
            self._say(f"{self._what}: {done * 100 // max(1, self._size)} % of {self._size >> 20} MiB")


def digest(path: Path, say: Progress) -> str:
    """`sha256:…` of a file."""
    pace, total, done = Pace(f"checking {path.name}", path.stat().st_size, say), hashlib.sha256(), 0
    with path.open("rb") as source:
        while chunk := source.read(CHUNK):
            total.update(chunk)
            done += len(chunk)
            pace.at(done)
    return f"sha256:{total.hexdigest()}"


class DiskReader:
    """Reads a file, then zeros up to `length`; at the end of the file its SHA-256 has to be `digest`."""

    def __init__(self, path: Path, length: int, digest: str, say: Progress) -> None:
        self._path, self._length, self._digest = path, length, digest
        self._file = path.open("rb")
        self._hash = hashlib.sha256()
        self._at, self._whole = 0, False
        self._pace = Pace("writing", length, say)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; b"" at the end. Raises `NotAuthentic` when the file is not that of the manifest."""
        left = self._length - self._at
        size = left if size < 0 else min(size, left)
        data = self._file.read(size)
        self._hash.update(data)
        if len(data) < size or self._at + len(data) == self._length:
            self._check()
        data = data.ljust(size, b"\0")
        self._at += len(data)
        self._pace.at(self._at)
        return data

    def _check(self) -> None:
        if self._whole:
            return
        if (found := f"sha256:{self._hash.hexdigest()}") != self._digest or self._file.read(1):
            raise NotAuthentic(
                f"the disk is {found}, its manifest says {self._digest}", why="invalid", where=str(self._path)
            )
        self._whole = True

    def close(self) -> None:
        self._file.close()


@contextmanager
def reader(path: Path, length: int, digest: str, say: Progress) -> Iterator[DiskReader]:
    """A `DiskReader` that is closed afterwards."""
    disk = DiskReader(path, length, digest, say)
    try:
        yield disk
    finally:
        disk.close()


@contextmanager
def whole(target: Path, need: int) -> Iterator[Path]:
    """A path beside `target` to write to; it becomes `target` if all went well, and is gone if not."""
    require_space(target.parent, need, target.name)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
