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


class DiskReader:
    """Reads a file, then zeros up to `length`; at the end of the file its SHA-256 has to be `digest`."""

    def __init__(self, path: Path, length: int, digest: str, say: Progress) -> None:
        self._path, self._length, self._digest, self._say = path, length, digest, say
        self._file = path.open("rb")
        self._hash = hashlib.sha256()
        self._at, self._whole = 0, False
        self._last = time.monotonic()

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
        if time.monotonic() - self._last > _EVERY_SECONDS:
            self._last = time.monotonic()
            self._say(f"{self._at * 100 // self._length} % of {self._length >> 20} MiB")
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
