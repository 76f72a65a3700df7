# SPDX-License-Identifier: Apache-2.0
"""A fake Azure confidential VM: HCL report over a fake SNP or TD report, vTPM quote, AK certificate chain.

Change a ``FakeAzure``'s attributes before use to get correctly signed evidence of something wrong.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import fake_snp
import fake_x509 as fake
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cube_attestation.azure import abi, verify
from cube_attestation.x509 import keys

EKU = ("1.3.6.1.4.1.311.10.3.12", "2.23.133.8.3")
NONCE = bytes(range(32))
HASH_TYPES = {1: "sha256", 2: "sha384", 3: "sha512"}
PKI = "http://www.microsoft.com/pkiops"  # where certificates say that lists and issuers are
ROOT, CA2025, CA24 = "Fake vTPM Root", "Fake vTPM CA 2025", "Fake vTPM CA - 24"


def jwk(kid: str, key: rsa.RSAPrivateKey) -> dict[str, object]:
    numbers = key.public_key().public_numbers()

    def encode(value: int) -> str:
        return urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).decode().rstrip("=")

    return {"kid": kid, "key_ops": ["sign"], "kty": "RSA", "e": encode(numbers.e), "n": encode(numbers.n)}


@functools.cache
def chain() -> tuple[fake.Issued, fake.Issued, fake.Issued]:
    """Root, its CA and the CA that issues AK certificates."""
    scheme = ("rsassa", "sha384")
    root = fake.issue(ROOT, fake.rsa_key(ROOT), extensions=fake.ca_extensions(), serial=1, scheme=scheme)
    points = [fake.crl_point(f"{PKI}/crl/{name}.crl") for name in ("root", "ca2025")]
    extensions = [*fake.ca_extensions(length=1), points[0], fake.authority_information(f"{PKI}/certs/root.crt")]
    ca2025 = fake.issue(CA2025, fake.rsa_key(CA2025), root, extensions=extensions, serial=25, scheme=scheme)
    extensions = [*fake.ca_extensions(length=0), points[1], fake.authority_information(f"{PKI}/certs/ca2025.crt")]
    ca24 = fake.issue(CA24, fake.rsa_key(CA24), ca2025, extensions=extensions, serial=24, scheme=scheme)
    return root, ca2025, ca24


def roots() -> list[str]:
    return [keys.spki_digest(fake.spki(fake.rsa_key(ROOT)))]


@dataclass(frozen=True)
class FakeAzure:
    """One machine. ``claims_key`` is the role of the key in the claims, ``quote_key`` of the one that quotes."""

    tee: str = "snp"
    snp: fake_snp.FakeSnp = field(default_factory=fake_snp.FakeSnp)
    hash_type: int = 1
    version: int = 2
    vm: Mapping[str, object] = field(default_factory=dict)
    dropped_vm: tuple[str, ...] = ()
    claims: Mapping[str, object] = field(default_factory=dict)
    raw_claims: bytes | None = None
    bound_to: bytes | None = None
    td_report_data: bytes | None = None
    claims_key: str = "AK"
    quote_key: str = "AK"
    certificate_key: str = "AK"
    nonce: bytes = NONCE
    eku: tuple[str, ...] = EKU
    leaf_end: datetime = fake.END
    leaf_start: datetime = fake.START
    ca24_revoked: bool = False
    crl_end: datetime = fake.NOW + timedelta(days=5)
    crl_start: datetime = fake.NOW - timedelta(days=5)

    def but(self, **changes: object) -> FakeAzure:
        return replace(self, **changes)  # type: ignore[arg-type]

    def claims_bytes(self) -> bytes:
        if self.raw_claims is not None:
            return self.raw_claims
        vm: dict[str, object] = {
            "root-cert-thumbprint": "",
            "console-enabled": False,
            "secure-boot": True,
            "tpm-enabled": True,
            "tpm-persisted": True,
            "filtered-vpci-devices-allowed": False,
            "vmUniqueId": "3C18C97A-0D2A-4565-969D-166CDCEF26A3",
            **self.vm,
        }
        keys_ = [jwk("HCLAkPub", fake.rsa_key(self.claims_key)), jwk("HCLEkPub", fake.rsa_key("EK"))]
        claims = {
            "keys": keys_,
            "vm-configuration": {name: value for name, value in vm.items() if name not in self.dropped_vm},
            "user-data": "00" * 64,
            **self.claims,
        }
        return json.dumps(claims, separators=(",", ":")).encode()

    def report_data(self) -> bytes:
        """What the hardware report (or TD quote) carries."""
        bound = self.bound_to if self.bound_to is not None else self.claims_bytes()
        return hashlib.new(HASH_TYPES[self.hash_type], bound).digest().ljust(64, b"\0")

    def machine(self) -> fake_snp.FakeSnp:
        return self.snp.with_fields(report_data=self.report_data())

    def hcl(self, *, size: int = 2600) -> bytes:
        claims = self.claims_bytes()
        if self.tee == "snp":
            hardware, tee = self.machine().report(), 2
        else:
            td = bytearray(1184)
            td[0] = 0x81
            td[128:192] = self.report_data() if self.td_report_data is None else self.td_report_data
            hardware, tee = bytes(td), 4
        runtime = struct.pack("<IIIII", 20 + len(claims), 1, tee, self.hash_type, len(claims)) + claims
        header = b"HCLA" + struct.pack("<III", self.version, 32 + 1184 + len(runtime), 2) + bytes(16)
        return (header + hardware + runtime).ljust(size, b"\0")

    def quote(self, selection: tuple[int, ...] = tuple(range(24))) -> verify.VtpmQuote:
        pcrs = {i: hashlib.sha256(bytes([i])).digest() for i in range(24)}
        digest = hashlib.sha256(b"".join(pcrs[i] for i in selection)).digest()
        bits = sum(1 << i for i in selection).to_bytes(3, "little")
        attest = b"\xffTCG\x80\x18" + bytes((0, 34)) + b"\0\x0b" + bytes(32)
        attest += len(self.nonce).to_bytes(2, "big") + self.nonce + bytes(17) + bytes(8)
        attest += b"\0\0\0\1\0\x0b\3" + bits + b"\0\x20" + digest
        signature = fake.rsa_key(self.quote_key).sign(attest, padding.PKCS1v15(), hashes.SHA256())
        return verify.VtpmQuote(attest, abi.parse_signature(signature), {"sha256": pcrs})

    def ak_certificate(self) -> fake.Issued:
        extensions = [fake.basic_constraints(False), fake.key_usage(0x80)]
        extensions.append(fake.authority_information(f"{PKI}/certs/ca24.crt"))
        if self.eku:
            extensions.append(fake.extended_key_usage(*self.eku))
        return fake.issue(
            "0123456789ab.ConfidentialVM.Azure.windows.net",
            fake.rsa_key(self.certificate_key),
            chain()[2],
            extensions=extensions,
            serial=99,
            start=self.leaf_start,
            end=self.leaf_end,
            scheme=("rsassa", "sha512"),
        )

    def certificates(self) -> list[bytes]:
        """As a machine gives them: the AK's in DER padded with zeros, the issuers in PEM."""
        root, ca2025, ca24 = chain()
        return [self.ak_certificate().der.ljust(2048, b"\0"), ca24.pem + ca2025.pem + root.pem]

    def crls(self) -> list[bytes]:
        root, ca2025, _ = chain()
        start, end = self.crl_start, self.crl_end
        revoked = [24] if self.ca24_revoked else []
        return [fake.revoke(root, start=start, end=end), fake.revoke(ca2025, revoked, start=start, end=end)]
