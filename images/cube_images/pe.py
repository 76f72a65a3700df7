# SPDX-License-Identifier: Apache-2.0
"""PE/COFF images as firmware and systemd-stub see them: Authenticode digest and sections."""

import hashlib
from dataclasses import dataclass

import pefile  # type: ignore[import-untyped]

from cube_images.errors import ImageError

_SECURITY_DIRECTORY = 4


@dataclass(frozen=True)
class Image:
    """A PE image. `sections` maps names to contents as loaded: cut or zero-filled to the virtual size.

    `hashed` are the parts that count for its Authenticode digest, in order.
    """

    sections: dict[str, bytes]
    hashed: tuple[bytes, ...]

    def digest(self, algorithm: str) -> bytes:
        """The Authenticode digest with `algorithm` (sha256, sha384)."""
        total = hashlib.new(algorithm)
        for part in self.hashed:
            total.update(part)
        return total.digest()

    @property
    def authenticode(self) -> bytes:
        """The Authenticode digest with SHA-256."""
        return self.digest("sha256")


def parse(data: bytes, what: str) -> Image:
    """Read a PE image; raises `ImageError` that names `what` when it is none.

    Digests follow the "Windows Authenticode Portable Executable Signature Format" (Calculating the PE Image Hash):
    all but the checksum, the certificate table's directory entry and the certificates.
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
    hashed = [data[:checksum], data[checksum + 4 : entry], data[entry + 8 : header_size]]
    end = header_size
    for _, start, size, _ in sorted((item for item in found if item[2]), key=lambda item: item[1]):
        hashed.append(data[start : start + size])
        end += size
    hashed.append(data[end : len(data) - certificates])
    sections = {
        name: data[start : start + min(size, virtual)].ljust(virtual, b"\0") for name, start, size, virtual in found
    }
    return Image(sections, tuple(hashed))
