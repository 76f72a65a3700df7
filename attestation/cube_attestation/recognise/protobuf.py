# SPDX-License-Identifier: Apache-2.0
"""go-tpm-tools' ``attest.Attestation`` message (proto/attest.proto, version 0.4), as strictly as it needs.

Wire format: https://protobuf.dev/programming-guides/encoding. Known members must have their type and occur once
unless they are lists; others may follow in later versions and are left alone. SNP reports and TDX quotes that the
message holds field by field are put back into their signed layouts.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from cube_attestation.errors import BadInput

from .material import Material, Quote

MAX_BYTES = 8 << 20
MAX_FIELDS = 4096
HASHES = {4: "sha1", 11: "sha256", 12: "sha384", 13: "sha512"}
_WHAT = "attest.Attestation"

Value = int | bytes


class Message:
    """One message's fields, by number, in order."""

    def __init__(self, data: bytes) -> None:
        self._fields: dict[int, list[Value]] = {}
        at, count = 0, 0
        while at < len(data):
            count += 1
            if count > MAX_FIELDS:
                raise BadInput(f"more than {MAX_FIELDS} fields", where=_WHAT)
            key, at = _varint(data, at)
            number, wire = key >> 3, key & 7
            value: Value
            if wire == 0:
                value, at = _varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
                value, at = int.from_bytes(_cut(data, at, size), "little"), at + size
            elif wire == 2:
                size, at = _varint(data, at)
                value, at = _cut(data, at, size), at + size
            else:
                raise BadInput(f"wire type {wire} at offset {at}", where=_WHAT)
            if not 1 <= number < 1 << 29:
                raise BadInput(f"field number {number}", where=_WHAT)
            self._fields.setdefault(number, []).append(value)

    def has(self, number: int) -> bool:
        return number in self._fields

    def many(self, number: int) -> list[bytes]:
        found = self._fields.get(number, [])
        values = [value for value in found if isinstance(value, bytes)]
        if len(values) != len(found):
            raise BadInput(f"field {number} is a number", where=_WHAT)
        return values

    def one(self, number: int, size: int | None = None) -> bytes:
        """A bytes field, which may be left out when empty; exactly ``size`` bytes where given (absent: zeros)."""
        found = self.many(number)
        if len(found) > 1:
            raise BadInput(f"field {number} occurs {len(found)} times", where=_WHAT)
        value = found[0] if found else b""
        if size is not None and not value:
            return bytes(size)
        if size is not None and len(value) != size:
            raise BadInput(f"field {number} has {len(value)} bytes, {size} belong there", where=_WHAT)
        return value

    def number(self, number: int, bits: int = 32) -> int:
        found = self._fields.get(number, [0])
        value = found[0]
        if len(found) != 1 or not isinstance(value, int) or value >> bits:
            raise BadInput(f"field {number} is no number of {bits} bits", where=_WHAT)
        return value

    def message(self, number: int) -> Message:
        return Message(self.one(number))


def _cut(data: bytes, at: int, size: int) -> bytes:
    if size > len(data) - at:
        raise BadInput(f"ends in the middle of a field at offset {at}", where=_WHAT)
    return data[at : at + size]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise BadInput("ends in the middle of a number", where=_WHAT)
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            if value >> 64:
                break
            return value, at
    raise BadInput(f"a number of more than 64 bits before offset {at}", where=_WHAT)


def is_attestation(data: bytes) -> bool:
    """Whether it begins like one: an AK's TPMT_PUBLIC (RSA or ECC), or without one a quote."""
    if data[:1] != b"\x0a" or len(data) < 64:
        return False
    try:
        size, at = _varint(data, 1)
    except BadInput:
        return False
    return 32 <= size <= 1024 and data[at : at + 2] in (b"\0\x01", b"\0\x23")


def read_attestation(data: bytes) -> Material:
    """Every part of the message. Raises BadInput."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 20} MiB", where=_WHAT)
    whole = Message(data)
    material = Material(
        publics=tuple(filter(None, [whole.one(1)])),
        quotes=tuple(_quote(Message(part)) for part in whole.many(2)),
        logs=tuple(filter(None, [whole.one(3)])),
        certificates=tuple(filter(None, [whole.one(6), *whole.many(7)])),
    )
    if whole.has(8):
        material += _snp(whole.message(8))
    if whole.has(9):
        material += Material(tdx_quotes=(_tdx(whole.message(9)),))
    return material


def _quote(message: Message) -> Quote:
    pcrs = message.message(3)
    bank = HASHES.get(pcrs.number(1))
    if bank is None:
        raise BadInput(f"PCR bank {pcrs.number(1)} is not known", where=_WHAT)
    values: dict[int, bytes] = {}
    for entry in pcrs.many(2):
        pair = Message(entry)
        index = pair.number(1)
        if index > 31 or index in values:
            raise BadInput(f"PCR {index} is no PCR or occurs twice", where=_WHAT)
        values[index] = pair.one(2)
    given: Mapping[str, Mapping[int, bytes]] = {bank: values}
    return Quote(message.one(1), message.one(2), given)


def _snp(message: Message) -> Material:
    """sevsnp.Attestation: the report in AMD's layout (56860, table 23) and its certificates."""
    report = message.message(1)
    fms = report.number(29)
    family = (fms >> 8 & 0xF) + (fms >> 20 & 0xFF)
    model = (fms >> 4 & 0xF) | (fms >> 12 & 0xF0)
    data = b"".join(
        (
            struct.pack("<IIQ", report.number(1), report.number(2), report.number(3, 64)),
            report.one(4, 16),
            report.one(5, 16),
            struct.pack(
                "<IIQQII",
                report.number(6),
                report.number(7),
                report.number(8, 64),
                report.number(9, 64),
                report.number(10),
                0,
            ),
            *(
                report.one(n, size)
                for n, size in ((11, 64), (12, 48), (13, 32), (14, 48), (15, 48), (16, 32), (17, 32))
            ),
            struct.pack("<Q", report.number(18, 64)),
            bytes((family & 0xFF, model, fms & 0xF)).ljust(24, b"\0"),
            report.one(19, 64),
            struct.pack("<Q", report.number(20, 64)),
            *(bytes((*(report.number(n, 8) for n in numbers), 0)) for numbers in ((21, 22, 23), (24, 25, 26))),
            struct.pack("<QQQ", report.number(27, 64), report.number(30, 64), report.number(31, 64)),
        )
    ).ljust(0x2A0, b"\0")
    chain = message.message(2)
    return Material(
        snp_reports=(data + report.one(28, 512),),
        certificates=tuple(filter(None, (chain.one(n) for n in (1, 6, 2, 3)))),
    )  # fmt: skip


def _tdx(message: Message) -> bytes:
    """tdx.QuoteV4 as the quote that it was made from (Intel's quote generation API, appendix A.3)."""
    head, body, signed = message.message(1), message.message(2), message.message(4)
    rtmrs = body.many(11)
    if len(rtmrs) != 4 or any(len(rtmr) != 48 for rtmr in rtmrs):
        raise BadInput(f"{len(rtmrs)} RTMRs", where=_WHAT)
    header = struct.pack("<HHI", head.number(1, 16), head.number(2, 16), head.number(3))
    header += head.one(4, 2) + head.one(5, 2) + head.one(6, 16) + head.one(7, 20)
    sizes = ((1, 16), (2, 48), (3, 48), (4, 8), (5, 8), (6, 8), (7, 48), (8, 48), (9, 48), (10, 48))
    report = b"".join(body.one(n, size) for n, size in sizes) + b"".join(rtmrs) + body.one(12, 64)
    data = signed.message(3)
    qe = data.message(3)
    enclave = qe.message(1)
    qe_report = b"".join(
        (
            enclave.one(1, 16),
            struct.pack("<I", enclave.number(2)),
            *(enclave.one(n, size) for n, size in ((3, 28), (4, 16), (5, 32), (6, 32), (7, 32), (8, 96))),
            struct.pack("<HH", enclave.number(9, 16), enclave.number(10, 16)),
            enclave.one(11, 60),
            enclave.one(12, 64),
        )
    )
    auth, pck = qe.message(3).one(2), qe.message(4)
    chain = pck.one(3)
    certification = qe_report + qe.one(2, 64) + struct.pack("<H", len(auth)) + auth
    certification += struct.pack("<HI", pck.number(1, 16), len(chain)) + chain
    signature = signed.one(1, 64) + signed.one(2, 64)
    signature += struct.pack("<HI", data.number(1, 16), len(certification)) + certification
    return header + report + struct.pack("<I", len(signature)) + signature + message.one(5)
