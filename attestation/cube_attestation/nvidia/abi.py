# SPDX-License-Identifier: Apache-2.0
"""SPDM measurement reports of NVIDIA GPUs and NVSwitches as bytes (DMTF DSP0274 1.1, GET_MEASUREMENTS).

A report is the request (37 bytes) followed by the response; the signature covers both. Little-endian lengths.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cube_attestation import jcs
from cube_attestation.errors import BadInput

REQUEST_BYTES = 37  # header 4, nonce 32, slot 1
NONCE_BYTES = 32
DIGEST_BYTES = 48  # SHA-384
SIGNATURE_BYTES = 96  # P-384, r ‖ s, big-endian
PDI_BYTES = 8
MAX_TRAILING = 1  # some tools leave one stray byte behind the signature
MAX_REPORT = 16 << 10
MAX_CHAIN = 32 << 10
MAX_DEVICES = 64
MAX_FILE = 1 << 20
GPU_BLOCKS = 64  # GH100, GB100
SWITCH_BLOCKS = 31  # LS10

# Opaque fields that are used or shown; others are kept raw
DRIVER_VERSION, VBIOS_VERSION, NVDEC0, MEASUREMENT_COUNT, BOARD, CHIP_SKU = 3, 6, 11, 12, 14, 15
PROJECT, PROJECT_SKU, FWID, PPCIE, SWITCH_PDI, SWITCH_LOCK = 17, 18, 20, 21, 22, 25
SWITCH_GPU_PDIS, CHIP_INFO, FEATURE_FLAG = 26, 35, 36
FIELD_NAMES: Mapping[int, str] = {
    1: "cert_issuer_name", 2: "cert_authority_key_identifier", 3: "driver_version", 4: "gpu_info", 5: "sku",
    6: "vbios_version", 7: "manufacturer_id", 8: "tamper_detection", 9: "smc", 10: "vpr", 11: "nvdec0_status",
    12: "measurement_count", 13: "cpr_info", 14: "board_id", 15: "chip_sku", 16: "chip_sku_mod", 17: "project",
    18: "project_sku", 19: "project_sku_mod", 20: "fwid", 21: "protected_pcie", 22: "switch_pdi",
    23: "floorswept_ports", 24: "position_id", 25: "lock_switch_status", 26: "gpu_pdis", 32: "gpu_link_conn",
    33: "sys_enable_status", 34: "opaque_data_version", 35: "chip_info", 36: "feature_flag",
}  # fmt: skip
DISABLED, ENABLED = 0x55, 0xAA
MODES = {0: "spt", 1: "mpt", 2: "ppcie"}  # single-GPU pass-through, multi-GPU pass-through, protected PCIe

_BLOCK = struct.Struct("<BBHBH")
_TLV = struct.Struct("<HH")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_TEXT = re.compile(r"[A-Za-z0-9._-]{0,32}")


class Report(NamedTuple):
    """One report. ``measurements[i]`` is the value of RIM index i (SPDM block i+1), usually a SHA-384 digest."""

    request_nonce: bytes
    slot: int
    measurements: tuple[bytes, ...]
    response_nonce: bytes
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes
    trailing: int

    @property
    def is_switch(self) -> bool:
        """An NVSwitch report carries no driver version."""
        return DRIVER_VERSION not in self.opaque

    def text(self, field: int) -> str:
        """An ASCII field without its zero padding; empty when the field is absent."""
        raw = self.opaque.get(field, b"").rstrip(b"\0")
        text = raw.decode("ascii", "replace")
        if not _TEXT.fullmatch(text):
            raise BadInput(f"field {FIELD_NAMES[field]} is not text: {raw[:16].hex()}", where="SPDM opaque data")
        return text

    @property
    def driver_version(self) -> str:
        return self.text(DRIVER_VERSION)

    @property
    def vbios_version(self) -> str:
        """As in RIMs, ``96.00.9F.00.01``. GPUs give 8 bytes (first word little-endian), switches text."""
        raw = self.opaque.get(VBIOS_VERSION, b"")
        if self.is_switch:
            return self.text(VBIOS_VERSION).upper()
        if len(raw) != 8:
            raise BadInput(f"a VBIOS version of {len(raw)} bytes", where="SPDM opaque data")
        return ".".join(f"{byte:02X}" for byte in (raw[3], raw[2], raw[1], raw[0], raw[4]))

    @property
    def board(self) -> str:
        """Project and SKU, which alone tell an H100 from an H200: ``1010-0200-882``."""
        return "-".join(self.text(field) for field in (PROJECT, PROJECT_SKU, CHIP_SKU))

    @property
    def mode(self) -> str:
        """``spt``, ``mpt`` or ``ppcie``; reports of old drivers say only whether PCIe is protected."""
        if FEATURE_FLAG in self.opaque:
            flag = int.from_bytes(self.opaque[FEATURE_FLAG], "little")
            return MODES.get(flag, f"unknown-{flag}")
        return "ppcie" if self.opaque.get(PPCIE) == bytes([ENABLED]) else "spt"

    def rim_ids(self, chip: str) -> tuple[str, ...]:
        """The names under which NVIDIA publishes the reference values of a device with ``chip``."""
        vbios = self.vbios_version.replace(".", "")
        board = self.board.upper().replace("-", "_")
        if self.is_switch:  # switches do not report their board; this is the one that NVIDIA publishes
            return (f"NV_SWITCH_BIOS_5612_0002_890_{vbios}",)
        driver = f"NV_GPU_DRIVER_{chip}_" if chip == "GH100" else f"NV_GPU_CC_DRIVER_{chip}_"
        return (f"{driver}{self.driver_version}", f"NV_GPU_VBIOS_{board}_{vbios}")


def parse_report(data: bytes) -> Report:
    """Read request ‖ response. Raises BadInput. At most one byte may follow the signature; it is not covered."""
    where = "SPDM report"
    if not REQUEST_BYTES + 8 < len(data) <= MAX_REPORT:
        raise BadInput(f"{len(data)} bytes can't be a request and its response", where=where)
    if data[:2] != b"\x11\xe0":
        raise BadInput(f"starts with {data[:2].hex()}, not with an SPDM 1.1 GET_MEASUREMENTS request", where=where)
    if not data[2] & 1:
        raise BadInput("the request does not ask for a signature", where=where)
    if data[37:39] != b"\x11\x60":
        raise BadInput(f"the response starts with {data[37:39].hex()}, not with MEASUREMENTS 1.1", where=where)
    count, size = data[41], int.from_bytes(data[42:45], "little")
    at = 45
    end = at + size
    if len(data) < end + NONCE_BYTES + 2 + SIGNATURE_BYTES:
        raise BadInput(f"ends after {len(data)} bytes, before its signature", where=where)
    values: list[bytes] = []
    for block in range(1, count + 1):
        if at + 7 > end:
            raise BadInput(f"the measurement record ends in the middle of block {block}", where=where)
        index, specification, length, kind, value_size = _BLOCK.unpack_from(data, at)
        if index != block or specification != 1 or length != value_size + 3 or kind & 0x80:
            raise BadInput(f"block {block} is not a DMTF digest with index {block}", where=where)
        at += 7 + value_size
        if at > end:
            raise BadInput(f"block {block} is longer than the measurement record", where=where)
        values.append(data[at - value_size : at])
    if at != end or not values:
        raise BadInput(f"{end - at} bytes after the last of {count} blocks", where=where)
    nonce, at = data[at : at + NONCE_BYTES], at + NONCE_BYTES
    opaque_size, at = int.from_bytes(data[at : at + 2], "little"), at + 2
    signed = at + opaque_size
    trailing = len(data) - signed - SIGNATURE_BYTES
    if trailing < 0:
        raise BadInput(f"ends after {len(data)} bytes, before its signature", where=where)
    if trailing > MAX_TRAILING:
        raise BadInput(f"{trailing} bytes after the signature", where=where)
    return Report(
        request_nonce=data[4:36],
        slot=data[36],
        measurements=tuple(values),
        response_nonce=nonce,
        opaque=_opaque(data[at:signed]),
        signed=data[:signed],
        signature=data[signed : signed + SIGNATURE_BYTES],
        trailing=trailing,
    )


def _opaque(data: bytes) -> dict[int, bytes]:
    """Type-length-value fields, each type once."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise BadInput("ends in the middle of a field's header", where="SPDM opaque data")
        kind, size = _TLV.unpack_from(data, at)
        at += 4 + size
        if at > len(data):
            raise BadInput(f"field {kind} is longer than the data", where="SPDM opaque data")
        if kind in fields:
            raise BadInput(f"field {kind} occurs twice", where="SPDM opaque data")
        fields[kind] = data[at - size : at]
    return fields


def switch_links(report: Report) -> frozenset[bytes]:
    """A GPU's view: identifiers (PDI) of the switches at its NVLinks, listed there in reverse byte order."""
    return frozenset(pdi[::-1] for pdi in _pdis(report.opaque.get(SWITCH_PDI, b"")))


def gpu_links(report: Report) -> frozenset[bytes]:
    """A switch's view: identifiers of its GPUs; what follows the first eight entries maps ports to them."""
    return _pdis(report.opaque.get(SWITCH_GPU_PDIS, b"")[: 8 * PDI_BYTES])


def _pdis(value: bytes) -> frozenset[bytes]:
    """Identifiers of 8 bytes each; all-zero and all-one entries stand for links that are off."""
    if len(value) % PDI_BYTES:
        raise BadInput(f"{len(value)} bytes are no list of 8-byte identifiers", where="SPDM opaque data")
    entries = {value[i : i + PDI_BYTES] for i in range(0, len(value), PDI_BYTES)}
    return frozenset(entries - {bytes(PDI_BYTES), b"\xff" * PDI_BYTES})


@dataclass(frozen=True)
class Evidence:
    """What one device hands over: the raw report and its certificate chain (PEM, leaf first)."""

    report: bytes
    chain: bytes


def decode_report(data: bytes) -> bytes:
    """A report as tools write it (binary, hex or base64) as bytes. Raises BadInput."""
    if data[:2] == b"\x11\xe0":
        return data
    if len(data) > 3 * MAX_REPORT:
        raise BadInput("too large for one report", where="SPDM report")
    text = b"".join(data.split())
    return _decode(text.decode("ascii", "replace"), "SPDM report")


def decode_evidence(data: bytes, *, where: str = "NVIDIA evidence") -> tuple[Evidence, ...]:
    """Evidence of one or more devices, in our bundle's JSON or that of other tools.

    A list of ``{"evidence": base64 of the report, "certificate": base64 of the PEM chain, …}`` as NVIDIA's tools
    write it, or an object that holds the list (NRAS requests, Confidential Containers); the report may be hex and
    the chain plain PEM. Other members (architecture, versions, nonce) are statements about the report and not used.
    Raises BadInput.
    """
    try:
        value = json.loads(jcs.bounded(data.removeprefix(_MARK), where=where, limit=MAX_FILE))
    except (ValueError, RecursionError) as error:
        raise BadInput("not JSON", where=where) from error
    if isinstance(value, dict):
        value = next((value[name] for name in _LISTS if name in value), [value])
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_DEVICES:
        raise BadInput(f"expected a list of 1 to {MAX_DEVICES} devices", where=where)
    found: list[Evidence] = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise BadInput("expected an object with evidence and certificate", where=f"{where}[{i}]")
        parts: list[bytes] = []
        for name, limit in (("evidence", MAX_REPORT), ("certificate", MAX_CHAIN)):
            text = entry.get(name)
            if not isinstance(text, str) or len(text) > 3 * limit:
                raise BadInput("expected text of a fitting length", where=f"{where}[{i}].{name}")
            parts.append(_decode(text, f"{where}[{i}].{name}"))
        found.append(Evidence(*parts))
    return tuple(found)


_MARK = b"\xef\xbb\xbf"  # some tools write a byte order mark
_LISTS = ("evidences", "evidence_list", "device_evidence_list")


def _decode(text: str, where: str) -> bytes:
    """PEM as it is, hex, base64, or base64 of hex."""
    if text.startswith("-----BEGIN"):
        return text.encode("ascii", "replace")
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    data = _base64(text, where)
    inner = data.decode("ascii", "replace").strip()
    return bytes.fromhex(inner) if _HEX.fullmatch(inner) else data


def encode_evidence(devices: tuple[Evidence, ...]) -> bytes:
    """The JSON that ``decode_evidence`` reads, deterministic."""
    return json.dumps(
        [
            {
                "certificate": base64.b64encode(device.chain).decode(),
                "evidence": base64.b64encode(device.report).decode(),
            }
            for device in devices
        ],
        separators=(",", ":"),
    ).encode()


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise BadInput("neither binary, hex nor base64", where=where) from error
