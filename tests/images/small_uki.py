# SPDX-License-Identifier: Apache-2.0
"""A UKI small enough to be made in a test, and disks with a given partition table."""

import struct

SECTIONS = {
    ".osrel": b"ID=test\n",
    ".cmdline": b"console=ttyS0 roothash=" + b"ab" * 32,
    ".initrd": b"initrd",
    ".uname": b"6.12.0-test",
    ".sbat": b"sbat,1,SBAT\n",
}
_ALIGN = 512


def pe(sections: dict[str, bytes]) -> bytes:
    """A PE32+ image with these sections, no code."""
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, 0, 0, 0, 0, 0)
    optional += struct.pack("<QIIHHHHHHIIIIHH", 0, _ALIGN, _ALIGN, 0, 0, 0, 0, 0, 0, 0, 1 << 20, 1024, 0, 10, 0)
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16) + bytes(16 * 8)
    header = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    header += b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0x22) + optional
    table, body, at = b"", b"", 1024
    for number, (name, content) in enumerate(sections.items(), 1):
        raw = content.ljust(-(-len(content) // _ALIGN) * _ALIGN, b"\0")
        table += struct.pack(
            "<8sIIIIIIHHI", name.encode(), len(content), number << 20, len(raw), at, 0, 0, 0, 0, 0x40000040
        )
        body += raw
        at += len(raw)
    return (header + table).ljust(1024, b"\0") + body


def uki(**changes: bytes) -> bytes:
    """A UKI; `changes` replaces or adds sections by name without the dot."""
    sections = {
        ".linux": pe({".text": b"kernel"}),
        **SECTIONS,
        **{f".{name}": data for name, data in changes.items()},
    }
    return pe(sections)


def disk_head(event: bytes) -> bytes:
    """The first MiB of a disk whose partition table is measured as `event` (UEFI_GPT_DATA)."""
    header, (count,), entries = event[:92], struct.unpack_from("<Q", event, 92), event[100:]
    assert len(entries) == count * 128
    (start,) = struct.unpack_from("<Q", header, 72)
    head = bytearray(1 << 20)
    head[512 : 512 + len(header)] = header
    head[start * 512 : start * 512 + len(entries)] = entries
    return bytes(head)
