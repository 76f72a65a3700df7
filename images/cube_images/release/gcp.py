# SPDX-License-Identifier: Apache-2.0
"""A disk as Google Compute Engine imports it: `disk.raw` of whole GiB in a compressed tar of the old GNU format.

Compute Engine documentation, "Manually import boot disks": the file is called disk.raw, its size is a whole number
of GiB, the archive is made with `--format=oldgnu` and gzip. The partition table stays as it was built and measured:
its second copy ends up before the end of the disk, as it does on every disk that is larger than its image.
"""

import gzip
import tarfile
from pathlib import Path

from cube_images.release.source import CHUNK, Progress, reader, rounded, whole

GIB = 1 << 30
SUFFIX = ".tar.gz"
# Of the image resource; TDX and SEV need them, and boot with UEFI and gVNIC.
FEATURES = ("UEFI_COMPATIBLE", "GVNIC", "TDX_CAPABLE", "SEV_CAPABLE")
# Kernel modules without which a machine of Compute Engine has no disk or no network.
MODULES = ("nvme", "gve")


def write(disk: Path, digest: str, target: Path, epoch: int, say: Progress) -> int:
    """Write the archive; returns the disk's size in bytes. The same disk always gives the same file.

    `digest` (`sha256:…`) is what the disk has to be, `epoch` the time in the archive.
    """
    size = rounded(disk.stat().st_size, GIB)
    with (
        whole(target, disk.stat().st_size) as temporary,
        reader(disk, size, digest, say) as source,
        temporary.open("wb") as out,
        # No name and no time in the header. Level 1: what is not zeros is compressed already.
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=out, mtime=0) as packed,
        tarfile.open(mode="w|", fileobj=packed, format=tarfile.GNU_FORMAT, bufsize=CHUNK) as archive,
    ):
        member = tarfile.TarInfo("disk.raw")
        member.size, member.mtime, member.mode = size, epoch, 0o644
        archive.addfile(member, source)
    return size
