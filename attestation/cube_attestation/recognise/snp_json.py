# SPDX-License-Identifier: Apache-2.0
"""An SNP report field by field in JSON, as Confidential Containers' attester writes it, back in AMD's layout.

The names are those of the report's fields (56860, table 23) in virtee's spelling; numbers, lists of bytes, hex or
base64. Whatever is put together wrongly here does not carry AMD's signature.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from cube_attestation.errors import BadInput

_WHERE = "SNP report in JSON"


def report(value: Mapping[str, object]) -> bytes:
    """The 1184 bytes. Raises BadInput."""
    signature = value.get("signature")
    if not isinstance(signature, Mapping):
        raise BadInput("has no signature", where=_WHERE)
    cpuid = bytes(_number(value, 8, name) for name in ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step"))
    signed = b"".join(
        (
            struct.pack(
                "<IIQ", _number(value, 32, "version"), _number(value, 32, "guest_svn"), _number(value, 64, "policy")
            ),
            _bytes(value, 16, "family_id"),
            _bytes(value, 16, "image_id"),
            struct.pack("<II", _number(value, 32, "vmpl"), _number(value, 32, "sig_algo", "signature_algo")),
            _tcb(value, "current_tcb", "platform_version"),
            struct.pack(
                "<QII",
                _number(value, 64, "plat_info", "platform_info"),
                _number(value, 32, "key_info", "author_key_en", "_author_key_en"),
                0,
            ),
            _bytes(value, 64, "report_data"),
            _bytes(value, 48, "measurement"),
            _bytes(value, 32, "host_data"),
            _bytes(value, 48, "id_key_digest"),
            _bytes(value, 48, "author_key_digest"),
            _bytes(value, 32, "report_id"),
            _bytes(value, 32, "report_id_ma"),
            _tcb(value, "reported_tcb"),
            cpuid.ljust(24, b"\0"),
            _bytes(value, 64, "chip_id"),
            _tcb(value, "committed_tcb"),
            _firmware(value, "current"),
            _firmware(value, "committed"),
            _tcb(value, "launch_tcb"),
            struct.pack("<QQ", _number(value, 64, "launch_mit_vector"), _number(value, 64, "current_mit_vector")),
        )
    ).ljust(0x2A0, b"\0")
    return signed + (_bytes(signature, 72, "r") + _bytes(signature, 72, "s")).ljust(512, b"\0")


def _number(value: Mapping[str, object], bits: int, *names: str) -> int:
    """The first of ``names`` that is there; absent or null: zero, as in versions without that field."""
    found = next((value[name] for name in names if value.get(name) is not None), 0)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0 or found >> bits:
        raise BadInput(f"{names[0]} is no number of {bits} bits", where=_WHERE)
    return found


def _bytes(value: Mapping[str, object], size: int, name: str) -> bytes:
    from .content import decodings

    found = value.get(name)
    data = b""
    if isinstance(found, list) and all(isinstance(n, int) and 0 <= n <= 255 for n in found):
        data = bytes(found)
    elif isinstance(found, str):
        data = next((one for one in decodings(found.encode("ascii", "replace")) if len(one) == size), b"")
    if len(data) != size:
        raise BadInput(f"{name} is no {size} bytes", where=_WHERE)
    return data


def _tcb(value: Mapping[str, object], *names: str) -> bytes:
    """A TCB_VERSION as a number or by its parts; ``fmc`` is there on Turin, whose parts stand elsewhere."""
    found = next((value[name] for name in names if name in value), None)
    if not isinstance(found, Mapping):
        return _number(value, 64, *names).to_bytes(8, "little")
    bootloader, tee, snp, microcode = (
        _number(found, 8, name) for name in ("bootloader", "tee", "snp", "microcode")
    )
    if found.get("fmc") is not None:
        return bytes((_number(found, 8, "fmc"), bootloader, tee, snp, 0, 0, 0, microcode))
    return bytes((bootloader, tee, 0, 0, 0, 0, snp, microcode))


def _firmware(value: Mapping[str, object], name: str) -> bytes:
    found = value.get(name)
    if isinstance(found, Mapping):
        return bytes((*(_number(found, 8, part) for part in ("build", "minor", "major")), 0))
    return bytes((*(_number(value, 8, f"{name}_{part}") for part in ("build", "minor", "major")), 0))
