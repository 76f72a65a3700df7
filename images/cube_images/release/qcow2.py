# SPDX-License-Identifier: Apache-2.0
"""A disk as QEMU keeps it with holes: qcow2, made by qemu-img."""

from pathlib import Path

from cube_attestation.errors import NotAuthentic

from cube_images.release import source
from cube_images.release.source import Pace, Progress, whole
from cube_images.run import run

SUFFIX = ".qcow2"


def write(disk: Path, digest: str, target: Path, epoch: int, say: Progress) -> int:  # noqa: ARG001 -- has no times
    """Write the qcow2; returns the virtual size in bytes. Needs qemu-img."""
    if (found := source.digest(disk, say)) != digest:
        raise NotAuthentic(f"the disk is {found}, its manifest says {digest}", why="invalid", where=str(disk))
    size = disk.stat().st_size
    with whole(target, size) as temporary:
        pace = Pace("qemu-img convert", size, say)
        run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", disk, temporary],
            on_tick=lambda: pace.at(temporary.stat().st_size if temporary.exists() else 0),
            timeout=1800,
            hint="apt-get install qemu-utils",
        )
    return size
