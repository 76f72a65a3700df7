# SPDX-License-Identifier: Apache-2.0
"""Azure's HCL report (TPM NV index 0x01400001) and the runtime claims of the paravisor in it, as bytes.

Layout: Azure's "guest attestation design" documentation. Header 32 bytes, hardware report slot 1184 bytes, runtime
data header 20 bytes, claims as JSON. Integers are little-endian.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from cube_attestation import jcs
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields
from cube_attestation.snp.abi import REPORT_BYTES
from cube_attestation.tpm import abi as tpm

MAGIC = b"HCLA"
HEADER, RUNTIME_HEADER = 32, 20
CLAIMS_AT = HEADER + REPORT_BYTES + RUNTIME_HEADER
MAX_BYTES = 64 << 10
MAX_CLAIMS = 32 << 10
REQUEST_TYPE = 2
TEES = {2: "snp", 4: "tdx"}
HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
TDREPORT_BYTES, TDREPORT_TYPE, TDREPORT_DATA = 1024, 0x81, 128
AK, EK = "HCLAkPub", "HCLEkPub"


@dataclass(frozen=True)
class HclReport:
    """``hardware`` is an SNP report (``tee`` snp) or a TDREPORT (``tee`` tdx); ``claims`` the bytes hashed."""

    version: int
    tee: str
    hardware: bytes = field(repr=False)
    hash: str
    claims: bytes = field(repr=False)

    def bound_data(self) -> bytes:
        """What the hardware's 64 bytes of report data must be: H(claims), then zeros."""
        return hashlib.new(self.hash, self.claims).digest().ljust(64, b"\0")

    def td_report_data(self) -> bytes:
        """The report data of the TDREPORT. No key signs it: the TD quote must carry the same."""
        return self.hardware[TDREPORT_DATA : TDREPORT_DATA + 64]


def parse_hcl(data: bytes) -> HclReport:
    """Read an HCL report; after the claims only zeros may follow. Raises BadInput."""
    what = "HCL report"
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=what)
    if data[:4] != MAGIC:
        raise BadInput("does not begin with HCLA", where=what)
    if len(data) < CLAIMS_AT:
        raise BadInput(f"{len(data)} bytes, at least {CLAIMS_AT} are needed", where=what)
    version, size, request = struct.unpack_from("<III", data, 4)
    if version not in (1, 2):
        raise BadInput(f"version {version} is not known", where=what, todo="this reader knows versions 1 and 2")
    if request != REQUEST_TYPE:
        raise BadInput(f"request type {request} is not known", where=what)
    if any(data[16:HEADER]):
        raise BadInput("status or reserved bytes of the header are not zero", where=what)
    runtime_size, runtime_version, tee, hash_type, claims_size = struct.unpack_from(
        "<IIIII", data, HEADER + REPORT_BYTES
    )
    if runtime_version != 1:
        raise BadInput(f"runtime data version {runtime_version} is not known", where=what)
    if tee not in TEES or hash_type not in HASHES:
        raise BadInput(f"report type {tee} or hash type {hash_type} is not known", where=what)
    end = CLAIMS_AT + claims_size
    if runtime_size != RUNTIME_HEADER + claims_size or size != HEADER + REPORT_BYTES + runtime_size:
        raise BadInput("the sizes in its headers contradict each other", where=what)
    if end > len(data):
        raise BadInput(f"the claims end at byte {end}, the report at {len(data)}", where=what)
    if data.count(0, end) != len(data) - end:
        raise BadInput("bytes other than zeros after the claims", where=what)
    hardware = data[HEADER : HEADER + REPORT_BYTES]
    if tee == 4:
        if hardware[0] != TDREPORT_TYPE or any(hardware[TDREPORT_BYTES:]):
            raise BadInput("the hardware report is no TDREPORT", where=what)
        hardware = hardware[:TDREPORT_BYTES]
    return HclReport(version, TEES[tee], hardware, HASHES[hash_type], data[CLAIMS_AT:end])


class RsaKey(NamedTuple):
    """An RSA public key of the claims."""

    modulus: bytes
    exponent: int

    def public(self) -> tpm.Public:
        """As the TPM code takes keys. Attributes are unknown here: the paravisor vouches for the key's use."""
        return tpm.Public(b"", "sha256", 0, b"", modulus=self.modulus, exponent=self.exponent)


class RuntimeClaims(NamedTuple):
    """What the paravisor says. Flags that older paravisors do not know are None."""

    ak: RsaKey
    ek: RsaKey | None
    console_enabled: bool
    interactive_console: bool | None
    ipmi_enabled: bool | None
    secure_boot: bool
    tpm_enabled: bool
    tpm_persisted: bool | None
    filtered_vpci_devices_allowed: bool | None
    root_certificate: str
    vm_id: str
    user_data: bytes

    @property
    def console(self) -> str:
        """``off``, ``output`` (only when the paravisor says that no input is taken) or ``interactive``."""
        if not self.console_enabled:
            return "off"
        return "output" if self.interactive_console is False else "interactive"


def parse_claims(data: bytes) -> RuntimeClaims:
    """Read the claims' JSON. Members that are not known are left alone: Microsoft adds some. Raises BadInput."""
    what = "runtime claims"
    if len(data) > MAX_CLAIMS:
        raise BadInput(f"larger than {MAX_CLAIMS >> 10} KiB", where=what)
    fields = Fields(jcs.loads(data, where=what), what)
    found: dict[str, RsaKey] = {}
    for i, entry in enumerate(fields.array("keys", 8)):
        jwk = Fields(entry, f"{what}.keys[{i}]")
        kid = jwk.text("kid", limit=64)
        if kid in found:
            raise BadInput(f"key {kid!r} occurs twice", where=what)
        if kid in (AK, EK):
            found[kid] = _key(jwk)
    if AK not in found:
        raise BadInput(f"there is no key {AK}", where=what)
    vm = fields.member("vm-configuration")
    user_data = fields.text("user-data", limit=128) if fields.has("user-data") else ""
    try:
        user = bytes.fromhex(user_data)
    except ValueError as error:
        raise BadInput("not hex", where=fields.path("user-data")) from error
    if len(user) not in (0, 64) or len(user_data) != 2 * len(user):
        raise BadInput(f"{len(user)} bytes, expected 64", where=fields.path("user-data"))
    return RuntimeClaims(
        ak=found[AK],
        ek=found.get(EK),
        console_enabled=vm.boolean("console-enabled"),
        interactive_console=_flag(vm, "interactive-console-enabled"),
        ipmi_enabled=_flag(vm, "ipmi-enabled"),
        secure_boot=vm.boolean("secure-boot"),
        tpm_enabled=vm.boolean("tpm-enabled"),
        tpm_persisted=_flag(vm, "tpm-persisted"),
        filtered_vpci_devices_allowed=_flag(vm, "filtered-vpci-devices-allowed"),
        root_certificate=vm.text("root-cert-thumbprint", limit=128) if vm.has("root-cert-thumbprint") else "",
        vm_id=vm.text("vmUniqueId", limit=64).lower() if vm.has("vmUniqueId") else "",
        user_data=user,
    )


def _flag(fields: Fields, name: str) -> bool | None:
    return fields.boolean(name) if fields.has(name) else None


def _key(jwk: Fields) -> RsaKey:
    jwk.choice("kty", "RSA")
    modulus, exponent = _base64url(jwk, "n", 512), _base64url(jwk, "e", 4)
    if len(modulus) < 256 or modulus[0] == 0:
        raise BadInput(f"a modulus of {len(modulus)} bytes", where=jwk.path("n"))
    number = int.from_bytes(exponent, "big")
    if number < 3 or number % 2 == 0:
        raise BadInput(f"exponent {number}", where=jwk.path("e"))
    return RsaKey(modulus, number)


def _base64url(fields: Fields, name: str, limit: int) -> bytes:
    text = fields.text(name, limit=limit * 4 // 3 + 4)
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput("not base64url", where=fields.path(name)) from error
    if not data or len(data) > limit:
        raise BadInput(f"{len(data)} bytes, at most {limit} are allowed", where=fields.path(name))
    return data


def parse_signature(data: bytes) -> tpm.Signature:
    """A TPMT_SIGNATURE, or the bare RSASSA signature with SHA-256 that Azure's tools hand over. Raises BadInput."""
    if len(data) in (256, 384, 512):
        return tpm.Signature("rsassa", "sha256", data)
    return tpm.parse_signature(data)
