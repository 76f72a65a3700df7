# SPDX-License-Identifier: Apache-2.0
"""The smallest guest that proves something: a firmware that enters long mode, uses the FPU, prints a line, halts.

It shows in milliseconds, and without anything to download, whether an accelerator really runs guests. A
/dev/kvm that opens proves nothing, and neither does one that runs real mode only: both exist.
"""

from __future__ import annotations

_SEGMENT = 0x10000  # the processor starts 16 bytes below 4 GiB, in the last 64 KiB
_CODE, _TEXT, _RESET = 0xF000, 0xF100, 0xFFF0
_MAXIMUM = 160

# Page tables at 0x1000 map the last 2 MiB below 4 GiB, where this code is.
_ASSEMBLED = bytes.fromhex(
    "fa"  # f000  cli
    "2e660f0116b0f0"  # lgdt cs:[f0b0]
    "0f20c0 0c01 0f22c0"  # cr0.PE = 1
    "66ea18f0ffff0800"  # jmp 8:fffff018
    "66b81800 8ed8 8ec0"  # f018  32 bits: ds = es = 0x18
    "dbe3"  # fninit
    "c7050010000003200000"  # mov dword [1000], 2003    PML4[0]
    "c7051820000003300000"  # mov dword [2018], 3003    PDPT[3]
    "c705f83f00008300e0ff"  # mov dword [3ff8], ffe00083    PD[511], 2 MiB
    "0f20e0 0d20020000 0f22e0"  # cr4 |= PAE | OSFXSR
    "b800100000 0f22d8"  # cr3 = 1000
    "b9800000c0 0f32 80cc01 0f30"  # EFER.LME = 1
    "0f20c0 24fb 0d02000080 0f22c0"  # cr0 = cr0 & ~EM | MP | PG
    "ea73f0ffff1000"  # jmp 10:fffff073
    "660fefc0"  # f073  64 bits: pxor xmm0, xmm0
    "be00f1ffff 66baf803"  # esi = text, dx = COM1
    "ac 84c0 7403 ee ebf8"  # while (al = [rsi++]): out dx, al
    "66baf400 ee"  # out f4, al    ends QEMU where there is an isa-debug-exit device
    "f4 ebfd"  # hlt, for ever
    "0000000000000000 ffff0000009acf00 ffff0000009aaf00 ffff00000092cf00"  # f090  GDT: code32, code64, data
    "1f00 90f0ffff"  # f0b0  GDT's limit and base
)


def firmware(text: str, size: int = _SEGMENT) -> bytes:
    """A firmware image of `size` bytes (a multiple of 64 KiB) that prints `text` (ASCII, up to 160 bytes)."""
    line = text.encode("ascii") + b"\n\0"
    if len(text) > _MAXIMUM or size % _SEGMENT or size < _SEGMENT:
        raise ValueError("the text is too long, or the size is no multiple of 64 KiB")
    image = bytearray(b"\xff" * size)
    jump = (_CODE - (_RESET + 3)) & 0xFFFF
    for offset, content in (
        (_CODE, _ASSEMBLED),
        (_TEXT, line),
        (_RESET, b"\xe9" + jump.to_bytes(2, "little")),
    ):
        start = size - _SEGMENT + offset
        image[start : start + len(content)] = content
    return bytes(image)
