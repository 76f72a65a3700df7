# SPDX-License-Identifier: Apache-2.0
"""SEV-SNP bytes: attestation report, TCB versions, certificate table, endorsement key extensions.

AMD publications 56860 (SNP firmware ABI, tables 3 to 23) and 57230 (VCEK certificate and KDS interface).
Integers are little-endian.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from cube_attestation.errors import BadInput
from cube_attestation.x509 import der
from cube_attestation.x509.certificate import Certificate

REPORT_BYTES, SIGNED_BYTES = 1184, 0x2A0
MAX_TRAILING = 64 << 10
VERSIONS = (2, 3, 4, 5)
ECDSA_P384_SHA384 = 1
_ZEROS = bytes(REPORT_BYTES - SIGNED_BYTES)
SIGNING_KEYS = {0: "vcek", 1: "vlek", 7: "none"}

# GUEST_POLICY (table 9) and PLATFORM_INFO (table 24): bit → name
POLICY_BITS = {
    16: "smt_allowed",
    18: "migration_agent_allowed",
    19: "debug_allowed",
    20: "single_socket_required",
    21: "cxl_allowed",
    22: "aes_256_xts_required",
    23: "rapl_disabled_required",
    24: "ciphertext_hiding_required",
    25: "page_swap_disabled",
}
# with the ABI version (bits 0 to 15) and bit 17, which is always one
KNOWN_POLICY = 0x2FFFF | sum(1 << bit for bit in POLICY_BITS)
PLATFORM_BITS = {
    0: "smt_enabled",
    1: "tsme_enabled",
    2: "ecc_enabled",
    3: "rapl_disabled",
    4: "ciphertext_hiding_enabled",
    5: "alias_check_complete",
    7: "tio_enabled",
}
_FLAGS = {name: (bit, bits is POLICY_BITS) for bits in (PLATFORM_BITS, POLICY_BITS) for bit, name in bits.items()}


@dataclass(frozen=True)
class Tcb:
    """TCB_VERSION: security version numbers of what the processor runs. ``fmc`` exists from Turin on."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0

    def to_json(self, product: str) -> dict[str, int]:
        parts = {"bootloader": self.bootloader, "tee": self.tee, "snp": self.snp, "microcode": self.microcode}
        return {**({"fmc": self.fmc} if product == "Turin" else {}), **parts}

    def covers(self, other: Tcb) -> bool:
        """Whether every component is at least ``other``'s."""
        mine = (self.fmc, self.bootloader, self.tee, self.snp, self.microcode)
        theirs = (other.fmc, other.bootloader, other.tee, other.snp, other.microcode)
        return all(a >= b for a, b in zip(mine, theirs, strict=True))


@lru_cache(maxsize=256)
def parse_tcb(data: bytes, product: str) -> Tcb:
    """The 8 bytes of a TCB_VERSION; their meaning depends on the product line (table 3)."""
    if product == "Turin":
        return Tcb(fmc=data[0], bootloader=data[1], tee=data[2], snp=data[3], microcode=data[7])
    return Tcb(bootloader=data[0], tee=data[1], snp=data[6], microcode=data[7])


class Firmware(NamedTuple):
    """A version of the SNP firmware."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"

    def number(self) -> tuple[int, int, int]:
        return self.major, self.minor, self.build


@dataclass(frozen=True)
class Report:
    """ATTESTATION_REPORT (table 23). TCB fields are raw: ``parse_tcb`` needs the product line.

    ``product`` comes from the CPUID fields (version 3 on), else it is empty. ``trailing`` counts bytes after the
    report, which nothing signs.
    """

    raw: bytes = field(repr=False)
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform: int
    author_key: bool
    masked_chip: bool
    signing_key: str
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int]
    chip_id: bytes
    committed_tcb: bytes
    current: Firmware
    committed: Firmware
    launch_tcb: bytes
    launch_mitigations: int
    current_mitigations: int
    trailing: int = 0

    @property
    def signed(self) -> bytes:
        return self.raw[:SIGNED_BYTES]

    @property
    def abi(self) -> tuple[int, int]:
        """The least firmware ABI that the guest policy demands: major, minor."""
        return self.policy >> 8 & 0xFF, self.policy & 0xFF

    @property
    def product(self) -> str:
        return product_of_cpuid(*self.cpuid[:2]) if self.version >= 3 else ""

    def flag(self, name: str) -> bool:
        """A bit of the guest policy or of the platform information by its name in POLICY_BITS, PLATFORM_BITS."""
        bit, of_policy = _FLAGS[name]
        return bool((self.policy if of_policy else self.platform) >> bit & 1)

    def signature(self) -> bytes | None:
        """r ‖ s, 48 bytes each, big-endian; None if a number is too long for P-384 or unused bytes are not zero."""
        body = self.raw[SIGNED_BYTES:]
        if body[48:72] != _ZEROS[:24] or body[120:] != _ZEROS[: len(body) - 120]:
            return None
        return body[47::-1] + body[119:71:-1]


def product_of_cpuid(family: int, model: int) -> str:
    """The product line whose keys and TCB layout a processor has; empty if it is not known."""
    if family == 0x19 and model <= 0x0F:
        return "Milan"
    if family == 0x19 and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
        return "Genoa"  # Bergamo and Siena too
    if family == 0x1A and model <= 0x11:
        return "Turin"
    return ""


def parse_report(data: bytes, *, max_trailing: int = 0) -> Report:
    """Read a report of 1184 bytes with at most ``max_trailing`` unsigned bytes after it. Raises BadInput.

    A guest-message header of 32 bytes in front (MSG_REPORT_RSP, table 25) is recognised and taken off.
    """
    what = "SNP report"
    if len(data) >= 32 + REPORT_BYTES and data[:32] == struct.pack("<II24x", 0, REPORT_BYTES):
        data = data[32:]
    if len(data) < REPORT_BYTES:
        raise BadInput(f"{len(data)} bytes, a report has {REPORT_BYTES}", where=what)
    trailing = len(data) - REPORT_BYTES
    if trailing > max_trailing:
        raise BadInput(f"{trailing} bytes after the report", where=what, todo="cut it to 1184 bytes")
    data = data[:REPORT_BYTES]
    version, svn, policy = struct.unpack_from("<IIQ", data)
    if version not in VERSIONS:
        raise BadInput(f"version {version} is not known", where=what, todo="this reader knows versions 2 to 5")
    if not policy >> 17 & 1:
        raise BadInput("bit 17 of the guest policy must be one", where=what)
    vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
    platform, flags = struct.unpack_from("<QI", data, 0x40)
    mitigations = struct.unpack_from("<QQ", data, 0x1F8) if version >= 5 else (0, 0)
    return Report(
        raw=data,
        version=version,
        guest_svn=svn,
        policy=policy,
        family_id=data[0x10:0x20],
        image_id=data[0x20:0x30],
        vmpl=vmpl,
        signature_algorithm=algorithm,
        current_tcb=data[0x38:0x40],
        platform=platform,
        author_key=bool(flags & 1),
        masked_chip=bool(flags & 2),
        signing_key=SIGNING_KEYS.get(flags >> 2 & 7, "unknown"),
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        id_key_digest=data[0xE0:0x110],
        author_key_digest=data[0x110:0x140],
        report_id=data[0x140:0x160],
        report_id_ma=data[0x160:0x180],
        reported_tcb=data[0x180:0x188],
        cpuid=(data[0x188], data[0x189], data[0x18A]) if version >= 3 else (0, 0, 0),
        chip_id=data[0x1A0:0x1E0],
        committed_tcb=data[0x1E0:0x1E8],
        current=Firmware(data[0x1EA], data[0x1E9], data[0x1E8]),
        committed=Firmware(data[0x1EE], data[0x1ED], data[0x1EC]),
        launch_tcb=data[0x1F0:0x1F8],
        launch_mitigations=mitigations[0],
        current_mitigations=mitigations[1],
        trailing=trailing,
    )


# --- certificates ---

TABLE_KINDS = {
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ark",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ask",
    "63da758d-e664-4564-adc5-f4b93be8accd": "vcek",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "vlek",
    "92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "crl",
}
_TABLE_GUIDS = frozenset(UUID(guid).bytes for guid in TABLE_KINDS)
MAX_TABLE = 64 << 10
MAX_ENTRIES = 16


def parse_table(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """The certificate table of an extended guest request (configfs-tsm ``auxblob``): (kind or GUID, content).

    Entries of GUID (in big-endian byte order), offset, length end with a zero GUID. Raises BadInput.
    """
    what = "SNP certificate table"
    if len(data) > MAX_TABLE:
        raise BadInput(f"larger than {MAX_TABLE >> 10} KiB", where=what)
    found: list[tuple[str, bytes]] = []
    seen: set[str] = set()
    for at in range(0, 24 * (MAX_ENTRIES + 1), 24):
        entry = data[at : at + 24]
        if len(entry) < 16:
            raise BadInput("ends without a zero GUID", where=what)
        if not any(entry[:16]):
            return tuple(found)
        if len(entry) < 24:
            raise BadInput("ends in the middle of an entry", where=what)
        guid = str(UUID(bytes=entry[:16]))
        offset, length = struct.unpack_from("<II", entry, 16)
        if guid in seen:
            raise BadInput(f"entry {guid} occurs twice", where=what)
        if offset > len(data) or length > len(data) - offset:
            raise BadInput(f"entry {guid} reaches beyond the table", where=what)
        seen.add(guid)
        found.append((TABLE_KINDS.get(guid, guid), data[offset : offset + length]))
    raise BadInput(f"more than {MAX_ENTRIES} entries", where=what)


def is_table(data: bytes) -> bool:
    """Whether ``data`` begins like a certificate table rather than like a certificate."""
    return data[:16] in _TABLE_GUIDS


class EndorsementKey(NamedTuple):
    """What a VCEK or VLEK certificate says beside its key (57230, tables 6 to 9).

    ``hardware_id`` is empty for a VLEK, ``csp`` for a VCEK. ``product`` is the product line.
    """

    kind: str
    product: str
    product_name: str
    tcb: Tcb
    hardware_id: bytes
    csp: str


_ARC = "1.3.6.1.4.1.3704.1."
_VERSION, _PRODUCT, _HARDWARE, _CSP = (der.oid(_ARC + part) for part in ("1", "2", "4", "5"))
_SVNS = {
    "bootloader": der.oid(_ARC + "3.1"),
    "tee": der.oid(_ARC + "3.2"),
    "snp": der.oid(_ARC + "3.3"),
    "microcode": der.oid(_ARC + "3.8"),
}
_FMC = der.oid(_ARC + "3.9")
_LINES = {"Milan": "Milan", "Genoa": "Genoa", "Bergamo": "Genoa", "Siena": "Genoa", "Turin": "Turin"}
_NAME = re.compile(r"[A-Za-z]{3,16}(?:-[A-Z][0-9])?")


def key_kind(certificate: Certificate) -> str:
    """``vcek`` or ``vlek`` by the subject's common name, else the empty string."""
    return {"SEV-VCEK": "vcek", "SEV-VLEK": "vlek"}.get(certificate.common_name, "")


def parse_endorsement_key(certificate: Certificate) -> EndorsementKey:
    """AMD's extensions of a VCEK or VLEK certificate. Raises BadInput when one is missing or malformed."""
    kind = key_kind(certificate)
    what = kind.upper() or "endorsement key"
    if not kind:
        raise BadInput(f"{certificate.name} is neither a VCEK nor a VLEK", where=what)
    name = _text(certificate, _PRODUCT, what, "product name")
    line = _LINES.get(name.partition("-")[0])
    if line is None or not _NAME.fullmatch(name):
        raise BadInput(f"product name {name[:40]!r} is not known", where=what)
    svns = {part: _svn(certificate, oid, what) for part, oid in _SVNS.items()}
    fmc = _svn(certificate, _FMC, what) if line == "Turin" else 0
    csp, identity = "", b""
    if kind == "vlek":
        csp = _text(certificate, _CSP, what, "CSP identifier")
        if certificate.value(_HARDWARE) is not None:
            raise BadInput("a VLEK with a hardware identifier", where=what)
    else:
        size = 8 if line == "Turin" else 64
        identity = certificate.value(_HARDWARE) or b""
        if len(identity) == size + 2 and identity[:2] == bytes((der.OCTET_STRING, size)):
            identity = identity[2:]
        if len(identity) != size:
            raise BadInput(f"a hardware identifier of {len(identity)} bytes, expected {size}", where=what)
    return EndorsementKey(kind, line, name, Tcb(fmc=fmc, **svns), identity, csp)


def _svn(certificate: Certificate, oid: bytes, what: str) -> int:
    value = certificate.value(oid)
    if value is None:
        raise BadInput(f"extension {der.dotted(oid)} is missing", where=what)
    cursor = der.Cursor(value, what)
    number = cursor.integer(2)
    cursor.done()
    if not 0 <= number <= 255:
        raise BadInput(f"a security version of {number}", where=what)
    return number


def _text(certificate: Certificate, oid: bytes, what: str, name: str) -> str:
    value = certificate.value(oid)
    if value is None:
        raise BadInput(f"the {name} is missing", where=what)
    cursor = der.Cursor(value, what)
    text = cursor.take(der.IA5)
    cursor.done()
    if not text.isascii() or len(text) > 200 or not text.decode("ascii").isprintable():
        raise BadInput(f"the {name} is malformed", where=what)
    return text.decode("ascii")
