# SPDX-License-Identifier: Apache-2.0
"""A fake AMD: roots, intermediates, VCEK and VLEK certificates, and reports that they sign, in-process.

Change a ``FakeSnp``'s attributes before ``evidence()`` to get correctly signed evidence of something wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import fake_x509 as fake
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cube_attestation.snp import abi
from cube_attestation.x509 import der

PSS = ("rsapss", "sha384")
ARC = "1.3.6.1.4.1.3704.1."
CPUID = {"Milan": (0x19, 0x01, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 0x02, 1)}
CHIP = bytes(range(1, 65))
POLICY = 0x3001F
TCB = abi.Tcb(bootloader=4, tee=1, snp=24, microcode=219, fmc=2)


def tcb_bytes(tcb: abi.Tcb, product: str) -> bytes:
    if product == "Turin":
        return bytes((tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode))
    return bytes((tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode))


def report(
    fields: Mapping[str, int | bytes] | None = None, *, product: str = "Milan", version: int = 3
) -> bytearray:
    """An unsigned report. ``fields``: name → integer or bytes of the names in LAYOUT."""
    raw = bytearray(abi.REPORT_BYTES)
    tcb = tcb_bytes(TCB, product)
    cpuid = CPUID[product] if version >= 3 else (0, 0, 0)
    chip = CHIP if product != "Turin" else CHIP[:8].ljust(64, b"\0")
    values: dict[str, int | bytes] = {
        "version": version,
        "guest_svn": 7,
        "policy": POLICY,
        "family_id": bytes(15) + b"\1",
        "image_id": bytes(15) + b"\2",
        "signature_algorithm": 1,
        "current_tcb": tcb,
        "platform": 0x25,
        "report_data": bytes(range(64)),
        "measurement": b"\x11" * 48,
        "host_data": b"\x22" * 32,
        "id_key_digest": b"\x33" * 48,
        "author_key_digest": bytes(48),
        "reported_tcb": tcb,
        "cpuid": bytes(cpuid),
        "chip_id": chip,
        "committed_tcb": tcb,
        "current_version": bytes((29, 55, 1)),
        "committed_version": bytes((29, 55, 1)),
        "launch_tcb": tcb,
        **(fields or {}),
    }
    for name, value in values.items():
        offset, size = LAYOUT[name]
        raw[offset : offset + size] = value.to_bytes(size, "little") if isinstance(value, int) else value
    return raw


LAYOUT = {
    "version": (0, 4),
    "guest_svn": (4, 4),
    "policy": (8, 8),
    "family_id": (0x10, 16),
    "image_id": (0x20, 16),
    "vmpl": (0x30, 4),
    "signature_algorithm": (0x34, 4),
    "current_tcb": (0x38, 8),
    "platform": (0x40, 8),
    "flags": (0x48, 4),
    "report_data": (0x50, 64),
    "measurement": (0x90, 48),
    "host_data": (0xC0, 32),
    "id_key_digest": (0xE0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "reported_tcb": (0x180, 8),
    "cpuid": (0x188, 3),
    "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "current_version": (0x1E8, 3),
    "committed_version": (0x1EC, 3),
    "launch_tcb": (0x1F0, 8),
    "launch_mitigations": (0x1F8, 8),
    "current_mitigations": (0x200, 8),
}


def sign(raw: bytearray, key: ec.EllipticCurvePrivateKey) -> bytes:
    r, s = decode_dss_signature(key.sign(bytes(raw[: abi.SIGNED_BYTES]), ec.ECDSA(hashes.SHA384())))
    raw[0x2A0 : 0x2A0 + 144] = r.to_bytes(72, "little") + s.to_bytes(72, "little")
    return bytes(raw)


def amd_name(common: str) -> bytes:
    more = {"unit": "Engineering", "country": "US", "locality": "Santa Clara", "state": "CA"}
    return fake.name(common, "Advanced Micro Devices", **more)


def svn(part: str, value: int) -> bytes:
    return fake.extension(ARC + part, fake.integer(value))


def text(part: str, value: str) -> bytes:
    return fake.extension(ARC + part, der.encode(der.IA5, value.encode()))


@dataclass(frozen=True)
class FakeSnp:
    """One processor, and everything that vouches for it."""

    product: str = "Milan"
    chip: str = ""  # another one of the same product has another key
    kind: str = "vcek"
    version: int = 3
    product_name: str = ""
    key_tcb: abi.Tcb = TCB
    hardware_id: bytes | None = None
    wrapped_id: bool = False
    csp: str = "CN=cc-us-east-2.example.com"
    extra_extensions: tuple[bytes, ...] = ()
    dropped: tuple[str, ...] = ()
    leaf_start: datetime = fake.START
    leaf_end: datetime = fake.END
    leaf_signer: str = ""
    root_role: str = ""
    revoked: tuple[int, ...] = ()
    crl_start: datetime = fake.NOW - timedelta(days=5)
    crl_end: datetime = fake.NOW + timedelta(days=5)
    fields: Mapping[str, int | bytes] = field(default_factory=dict)

    def but(self, **changes: object) -> FakeSnp:
        return replace(self, **changes)  # type: ignore[arg-type]

    def with_fields(self, **fields: int | bytes) -> FakeSnp:
        return replace(self, fields={**self.fields, **fields})

    @property
    def ark(self) -> fake.Issued:
        key = fake.rsa_key(self.root_role or f"ARK-{self.product}")
        common = f"ARK-{self.product}"
        extensions = fake.ca_extensions(crl=True)
        return fake.issue(common, key, extensions=extensions, scheme=PSS, subject=amd_name(common))

    @property
    def ask(self) -> fake.Issued:
        common = f"SEV-{'VLEK-' if self.kind == 'vlek' else ''}{self.product}"
        extensions = fake.ca_extensions(length=0, crl=True)
        return fake.issue(
            common,
            fake.rsa_key(common),
            self.ark,
            extensions=extensions,
            scheme=PSS,
            serial=0x10001,
            subject=amd_name(common),
        )

    @property
    def leaf_extensions(self) -> list[bytes]:
        product = self.product_name or {"Milan": "Milan-B0"}.get(self.product, self.product)
        found = {
            "1": svn("1", 1 if self.product == "Turin" else 0),
            "2": text("2", product),
            "3.1": svn("3.1", self.key_tcb.bootloader),
            "3.2": svn("3.2", self.key_tcb.tee),
            "3.3": svn("3.3", self.key_tcb.snp),
            **{f"3.{reserved}": svn(f"3.{reserved}", 0) for reserved in range(4, 8)},
            "3.8": svn("3.8", self.key_tcb.microcode),
        }
        if self.product == "Turin":
            found["3.9"] = svn("3.9", self.key_tcb.fmc)
        if self.kind == "vcek":
            identity = (
                self.hardware_id if self.hardware_id is not None else CHIP[: 8 if self.product == "Turin" else 64]
            )
            found["4"] = fake.extension(ARC + "4", der.encode(4, identity) if self.wrapped_id else identity)
        else:
            found["5"] = text("5", self.csp)
        return [value for part, value in found.items() if part not in self.dropped] + list(self.extra_extensions)

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return fake.ec_key(f"{self.kind}-{self.product}{self.chip}")

    @property
    def leaf(self) -> fake.Issued:
        issuer = self.ask
        if self.leaf_signer:
            issuer = replace(issuer, key=fake.rsa_key(self.leaf_signer))
        return fake.issue(
            f"SEV-{self.kind.upper()}",
            self.key,
            issuer,
            extensions=self.leaf_extensions,
            serial=0,
            start=self.leaf_start,
            end=self.leaf_end,
            scheme=PSS,
            subject=amd_name(f"SEV-{self.kind.upper()}"),
        )

    @property
    def crl(self) -> bytes:
        return fake.revoke(self.ark, self.revoked, start=self.crl_start, end=self.crl_end, scheme=PSS)

    @property
    def roots(self) -> dict[str, str]:
        """What a verifier pins for this fake AMD."""
        return {keys_digest(f"ARK-{self.product}"): self.product}

    def report(self) -> bytes:
        flags = {"vcek": 0, "vlek": 4}[self.kind]
        fields = {"flags": flags, **({"chip_id": bytes(64)} if self.kind == "vlek" else {}), **self.fields}
        return sign(report(fields, product=self.product, version=self.version), self.key)

    def certificates(self) -> list[bytes]:
        return [self.leaf.der, self.ask.pem + self.ark.pem]


def keys_digest(role: str) -> str:
    from cube_attestation.x509 import keys

    return keys.spki_digest(fake.spki(fake.rsa_key(role)))


def table(entries: Mapping[str, bytes], *, end: bool = True) -> bytes:
    """A certificate table (auxblob) of GUID → content."""
    from uuid import UUID

    at = 24 * (len(entries) + 1)
    header, body = b"", b""
    for guid, content in entries.items():
        header += UUID(guid).bytes + struct.pack("<II", at + len(body), len(content))
        body += content
    return header + (bytes(24) if end else b"") + body
