# SPDX-License-Identifier: Apache-2.0
"""PE/COFF images as firmware and systemd-stub see them: Authenticode digest and sections."""

import hashlib
from dataclasses import dataclass

import pefile  # type: ignore[import-untyped]

from cube_images.errors import ImageError

_SECURITY_DIRECTORY = 4


@dataclass(frozen=True)
class Image:
    """A PE image. `sections` maps names to contents as loaded: cut or zero-filled to the virtual size."""

    authenticode: bytes
    sections: dict[str, bytes]


def parse(data: bytes, what: str) -> Image:
    """Read a PE image; raises `ImageError` that names `what` when it is none.

    The digest is SHA-256 after the "Windows Authenticode Portable Executable Signature Format" (Calculating the PE
    Image Hash): all but the checksum, the certificate table's directory entry and the certificates.
    """
    try:
        image = pefile.PE(data=data, fast_load=True)
        header_size: int = image.OPTIONAL_HEADER.SizeOfHeaders
        checksum: int = image.OPTIONAL_HEADER.get_field_absolute_offset("CheckSum")
        security = image.OPTIONAL_HEADER.DATA_DIRECTORY[_SECURITY_DIRECTORY]
        entry: int = security.get_file_offset()
        certificates: int = security.Size
        found = [
            (
                section.Name.rstrip(b"\0").decode("ascii"),
                int(section.PointerToRawData),
                int(section.SizeOfRawData),
                int(section.Misc_VirtualSize),
            )
            for section in image.sections
        ]
    except (pefile.PEFormatError, IndexError, UnicodeDecodeError, AttributeError) as error:
        raise ImageError(f"{what} is not a PE image: {error}") from error
    total = hashlib.sha256(data[:checksum])
    total.update(data[checksum + 4 : entry])
    total.update(data[entry + 8 : header_size])
    end = header_size
    for _, start, size, _ in sorted((item for item in found if item[2]), key=lambda item: item[1]):
        total.update(data[start : start + size])
        end += size
    total.update(data[end : len(data) - certificates])
    sections = {
        name: data[start : start + min(size, virtual)].ljust(virtual, b"\0") for name, start, size, virtual in found
    }
    return Image(total.digest(), sections)
