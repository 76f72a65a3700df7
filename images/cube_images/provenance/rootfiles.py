# SPDX-License-Identifier: Apache-2.0
"""The files of an image's root, read from its disk with the locked tools: what is at which path."""

import stat
import tempfile
from pathlib import Path

from cube_images import flavour, lock, sandbox, trees
from cube_images.errors import ImageError
from cube_images.predict import gpt_event
from cube_images.provenance.described import Described
from cube_images.run import run
from cube_images.wheels import sha256_file

_SECTOR = 512
_SPACE = 1_000_000_000
# systemd's Discoverable Partitions Specification: the root of x86-64.
_ROOT_TYPE = bytes.fromhex("e3bc684fcde8b14d96e7fbcaf984b709")


def _root_offset(disk: Path) -> int:
    """Where the root partition starts in the disk image, in bytes."""
    with disk.open("rb") as handle:
        event = gpt_event(handle.read(1 << 20))
    entries = event[100:]
    for at in range(0, len(entries), 128):
        if entries[at : at + 16] == _ROOT_TYPE:
            return int.from_bytes(entries[at + 32 : at + 40], "little") * _SECTOR
    raise ImageError(f"{disk} has no root partition", "name the folder of a built image")


def _row(path: Path) -> str:
    """What a file is, in one word each: mode, owner, and content or target."""
    info = path.lstat()
    mode = f"{stat.filemode(info.st_mode)} {info.st_uid}:{info.st_gid}"
    if stat.S_ISLNK(info.st_mode):
        return f"{mode} -> {path.readlink()}"
    return f"{mode} {sha256_file(path)[:16]}" if stat.S_ISREG(info.st_mode) else mode


def table(image: Described) -> dict[str, str]:
    """Path → what it is (mode, owner, start of its SHA-256 or target) for every file of the root. Needs root."""
    name = image.payload["flavour"]
    locked = lock.load(name)
    tools = trees.tree(flavour.load(name), locked, "tools")
    disk = image.file("disk.img")
    with tempfile.TemporaryDirectory(prefix="cube-root-", dir=trees.scratch_parent(_SPACE)) as temporary:
        work = Path(temporary)
        offset = str(_root_offset(disk))
        argv = ["unsquashfs", "-quiet", "-no-progress", "-offset", offset, "-dest", "/work/tree", "/disk.img"]
        run(sandbox.command(locked, tools, argv, writable={work: "/work"}, readable={disk: "/disk.img"}), root=True)
        tree = work / "tree"
        return {f"/{path.relative_to(tree)}": _row(path) for path in sorted(tree.rglob("*"))}
