# SPDX-License-Identifier: Apache-2.0
"""A disk as Azure takes it: a fixed VHD of whole MiB, footer at the end, for a page blob.

Azure documentation, "Prepare Linux for imaging in Azure": fixed format, virtual size a whole number of MiB; a page
blob is written in pages of 512 bytes. Footer: Virtual Hard Disk Image Format Specification 1.0, "Hard Disk Footer".
"""

import struct
import uuid
from pathlib import Path

from cube_images.release.source import CHUNK, Progress, reader, rounded, whole

MIB = 1 << 20
SUFFIX = ".vhd"
FOOTER = 512
# Kernel modules without which a machine of Azure has no disk or no network.
MODULES = ("hv_vmbus", "hv_storvsc", "hv_netvsc")
_LAYOUT = ">8sIIQI4sI4sQQHBBII16sB427x"
_SINCE_2000 = 946_684_800
_FIXED = 2
_NAMESPACE = uuid.UUID("7a4a2f0c-9e0c-4b2d-8f26-3c1c6d2f6f55")


def geometry(sectors: int) -> tuple[int, int, int]:
    """(cylinders, heads, sectors per track), after the specification's appendix "CHS Calculation"."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        per_track, heads = 255, 16
        tracks = sectors // per_track
    else:
        per_track = 17
        tracks = sectors // per_track
        heads = max(4, (tracks + 1023) // 1024)
        if tracks >= heads * 1024 or heads > 16:
            per_track, heads = 31, 16
            tracks = sectors // per_track
        if tracks >= heads * 1024:
            per_track, heads = 63, 16
            tracks = sectors // per_track
    return tracks // heads, heads, per_track


def footer(size: int, identity: uuid.UUID, epoch: int) -> bytes:
    """The footer of a fixed disk of `size` bytes, made at `epoch` (seconds since 1970)."""
    cylinders, heads, sectors = geometry(size // 512)

    def packed(checksum: int) -> bytes:
        return struct.pack(
            _LAYOUT,
            b"conectix",
            2,  # no features; this bit is always set
            0x00010000,
            0xFFFFFFFFFFFFFFFF,  # a fixed disk has no header
            epoch - _SINCE_2000,
            b"win ",  # readers take the size from the size field, not from the geometry, if this made it
            0x000A0000,
            b"Wi2k",
            size,
            size,
            cylinders,
            heads,
            sectors,
            _FIXED,
            checksum,
            identity.bytes,
            0,
        )

    # One's complement of the sum of all bytes but the checksum's own.
    return packed(~sum(packed(0)) & 0xFFFFFFFF)


def write(disk: Path, digest: str, target: Path, epoch: int, say: Progress) -> int:
    """Write the VHD, with holes where the disk has zeros; returns the virtual size. Always the same bytes."""
    size = rounded(disk.stat().st_size, MIB)
    with (
        whole(target, disk.stat().st_size) as temporary,
        reader(disk, size, digest, say) as source,
        temporary.open("wb") as out,
    ):
        while data := source.read(CHUNK):
            if any(data):
                out.write(data)
            else:
                out.seek(len(data), 1)
        out.write(footer(size, uuid.uuid5(_NAMESPACE, digest), epoch))
    return size
