# SPDX-License-Identifier: Apache-2.0
"""Evidence of Azure confidential VMs as Confidential Containers' attesters write it (az-snp-vtpm, az-tdx-vtpm)."""

from __future__ import annotations

import binascii
from base64 import b64decode
from dataclasses import dataclass

from cube_attestation import jcs
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields

from .abi import parse_signature
from .verify import VtpmQuote

MAX_BYTES = 256 << 10
PCRS, PCR_BYTES = 24, 32


@dataclass(frozen=True)
class Evidence:
    """``vcek`` is PEM and there for SNP, ``td_quote`` for TDX; ``ak_certificate`` where the attester adds it."""

    hcl: bytes
    quote: VtpmQuote
    vcek: bytes = b""
    td_quote: bytes = b""
    ak_certificate: bytes = b""


def is_evidence(value: object) -> bool:
    """Whether parsed JSON looks like such evidence."""
    return isinstance(value, dict) and any({"hcl_report", "report"} & value.keys() and q in value for q in _QUOTES)


_QUOTES = ("tpm_quote", "quote")


def read(data: bytes) -> Evidence:
    """Read the JSON; byte strings are lists of numbers, hex or base64. Raises BadInput."""
    what = "CoCo Azure evidence"
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=what)
    value = jcs.loads(data, where=what)
    if not is_evidence(value):
        raise BadInput("has no quote and HCL report", where=what)
    fields = Fields(value, what)
    quote = fields.member(next(name for name in _QUOTES if fields.has(name)))
    report = "hcl_report" if fields.has("hcl_report") else "report"
    return Evidence(
        hcl=_bytes(fields, report),
        quote=read_quote(quote),
        vcek=fields.text("vcek", limit=32 << 10).encode() if fields.has("vcek") else b"",
        td_quote=_bytes(fields, "td_quote") if fields.has("td_quote") else b"",
        ak_certificate=_bytes(fields, "ak_cert") if fields.has("ak_cert") else b"",
    )


def read_quote(fields: Fields) -> VtpmQuote:
    """The ``message``, ``signature`` and 24 SHA-256 ``pcrs`` of a virtual TPM's quote. Raises BadInput."""
    values: dict[int, bytes] = {}
    for i, entry in enumerate(fields.array("pcrs", PCRS)):
        values[i] = _bytes(Fields({"": entry}, f"{fields.path('pcrs')}[{i}]"), "")
        if len(values[i]) != PCR_BYTES:
            raise BadInput(f"{len(values[i])} bytes, expected {PCR_BYTES}", where=f"{fields.path('pcrs')}[{i}]")
    return VtpmQuote(_bytes(fields, "message"), parse_signature(_bytes(fields, "signature")), {"sha256": values})


def read_bincode_quote(data: bytes) -> VtpmQuote:
    """The same quote as the az-cvm-vtpm tools store it: signature, message, PCR values, each counted by a u64."""
    what = "az-cvm-vtpm quote"
    at = 0

    def count(limit: int) -> int:
        nonlocal at
        found = int.from_bytes(data[at : at + 8], "little")
        at += 8
        if at > len(data) or found > limit:
            raise BadInput(f"a count of {found} at offset {at - 8}", where=what)
        return found

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        if at > len(data):
            raise BadInput(f"ends at {len(data)} bytes, in the middle of a field", where=what)
        return data[at - size : at]

    signature, message = take(count(512)), take(count(4096))
    values = {i: take(PCR_BYTES) for i in range(count(PCRS))}
    if at != len(data):
        raise BadInput(f"{len(data) - at} bytes after the end", where=what)
    return VtpmQuote(message, parse_signature(signature), {"sha256": values})


def _bytes(fields: Fields, name: str) -> bytes:
    value = fields.raw(name)
    where = fields.path(name)
    if isinstance(value, list):
        if not all(isinstance(number, int) and 0 <= number <= 255 for number in value):
            raise BadInput("not a list of bytes", where=where)
        return bytes(value)
    text = fields.text(name, limit=MAX_BYTES)
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass  # then it is base64, in one of its two alphabets
    try:
        return b64decode(
            text.rstrip("=").translate({45: 43, 95: 47}) + "=" * (-len(text.rstrip("=")) % 4), validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise BadInput("neither a list of bytes nor hex nor base64", where=where) from error
