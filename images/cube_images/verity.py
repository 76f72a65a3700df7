# SPDX-License-Identifier: Apache-2.0
"""dm-verity hash trees: format 1, SHA-256, 4096-byte blocks.

Linux: Documentation/admin-guide/device-mapper/verity.rst; cryptsetup: docs/on-disk-format for the superblock.
Gives what `veritysetup format` gives for the same salt and UUID.
"""

import hashlib
import struct
import uuid
from pathlib import Path

BLOCK = 4096
_SUPERBLOCK = "<8sII16s32sIIQH6x256s168x"


def superblock(blocks: int, salt: bytes, identity: uuid.UUID) -> bytes:
    """The superblock, one block long, of a tree over `blocks` data blocks."""
    fields = (b"verity\0\0", 1, 1, identity.bytes, b"sha256", BLOCK, BLOCK, blocks, len(salt), salt)
    return struct.pack(_SUPERBLOCK, *fields).ljust(BLOCK, b"\0")


def tree(data: Path, salt: bytes) -> tuple[bytes, bytes]:
    """(root hash, hash blocks from the top level down) of a file whose size is a multiple of 4096."""
    base = hashlib.sha256(salt)

    def digest(block: bytes | memoryview) -> bytes:
        one = base.copy()
        one.update(block)
        return one.digest()

    hashes = []
    with data.open("rb") as source:
        while block := source.read(BLOCK):
            hashes.append(digest(block))
    levels: list[bytes] = []
    while True:
        level = b"".join(hashes)
        level += bytes(-len(level) % BLOCK)
        levels.insert(0, level)
        view = memoryview(level)
        hashes = [digest(view[at : at + BLOCK]) for at in range(0, len(level), BLOCK)]
        if len(hashes) == 1:
            return hashes[0], b"".join(levels)


def append(data: Path, salt: bytes, identity: uuid.UUID) -> tuple[str, int]:
    """Pad the file to whole blocks and append superblock and tree; (root hash in hex, offset of the superblock)."""
    size = data.stat().st_size
    with data.open("ab") as out:
        out.write(bytes(-size % BLOCK))
    offset = data.stat().st_size
    root, blocks = tree(data, salt)
    with data.open("ab") as out:
        out.write(superblock(offset // BLOCK, salt, identity))
        out.write(blocks)
    return root.hex(), offset
