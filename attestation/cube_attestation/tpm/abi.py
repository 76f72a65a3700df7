# SPDX-License-Identifier: Apache-2.0
"""TPM 2.0 structures as bytes (TPM 2.0 Library, Part 2). Big-endian, exact lengths, nothing after the end."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from cube_attestation.errors import BadInput
from cube_attestation.x509 import der, keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

# Table 9: algorithm identifiers
ALG_RSA, ALG_SHA1, ALG_SHA256, ALG_SHA384, ALG_SHA512 = 0x0001, 0x0004, 0x000B, 0x000C, 0x000D
ALG_NULL, ALG_RSASSA, ALG_RSAES, ALG_RSAPSS, ALG_OAEP = 0x0010, 0x0014, 0x0015, 0x0016, 0x0017
ALG_ECDSA, ALG_ECDH, ALG_ECDAA, ALG_ECC = 0x0018, 0x0019, 0x001A, 0x0023
HASHES = {ALG_SHA1: "sha1", ALG_SHA256: "sha256", ALG_SHA384: "sha384", ALG_SHA512: "sha512"}
CURVES = {0x0003: "secp256r1", 0x0004: "secp384r1", 0x0005: "secp521r1"}

GENERATED_VALUE = 0xFF544347
ST_ATTEST_QUOTE = 0x8018
RH_ENDORSEMENT = 0x4000000B

# Table 31: TPMA_OBJECT
FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 4, 1 << 5
USER_WITH_AUTH, ADMIN_WITH_POLICY, NO_DA = 1 << 6, 1 << 7, 1 << 10
RESTRICTED, DECRYPT, SIGN_ENCRYPT = 1 << 16, 1 << 17, 1 << 18


class Reader:
    """Takes big-endian fields off the front of ``data``; raises BadInput when there is not enough left."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise BadInput(f"ends after {len(self._data)} bytes, in the middle of a field", where=self._what)
        self._at += size
        return self._data[self._at - size : self._at]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self, limit: int) -> bytes:
        """A TPM2B: 16-bit size, then that many bytes."""
        size = self.integer(2)
        if size > limit:
            raise BadInput(f"a field of {size} bytes where at most {limit} are allowed", where=self._what)
        return self.take(size)

    def end(self) -> None:
        if self._at != len(self._data):
            raise BadInput(f"{len(self._data) - self._at} bytes after the end", where=self._what)


def sized(data: bytes) -> bytes:
    """``data`` as a TPM2B."""
    return len(data).to_bytes(2, "big") + data


class Quote(NamedTuple):
    """TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE (10.12.8). ``selection``: bank → PCR indices, in digest order."""

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selection: tuple[tuple[str, tuple[int, ...]], ...]
    pcr_digest: bytes


def parse_quote(data: bytes) -> Quote:
    """Read a TPMS_ATTEST that must be a quote made by a TPM. Raises BadInput."""
    reader = Reader(data, "TPMS_ATTEST")
    if reader.integer(4) != GENERATED_VALUE:
        raise BadInput("the magic is not TPM_GENERATED_VALUE", where="TPMS_ATTEST")
    if (kind := reader.integer(2)) != ST_ATTEST_QUOTE:
        raise BadInput(f"type 0x{kind:04x} is not a quote", where="TPMS_ATTEST")
    signer = reader.sized(66)
    extra = reader.sized(66)
    clock, resets, restarts = reader.integer(8), reader.integer(4), reader.integer(4)
    safe = reader.integer(1)
    if safe > 1:
        raise BadInput("clockInfo.safe is neither 0 nor 1", where="TPMS_ATTEST")
    firmware = reader.integer(8)
    count = reader.integer(4)
    if count > 8:
        raise BadInput(f"{count} PCR selections", where="TPMS_ATTEST")
    selection: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(count):
        bank = HASHES.get(alg := reader.integer(2))
        if bank is None or bank in dict(selection):
            raise BadInput(f"bank 0x{alg:04x} is unknown or selected twice", where="TPMS_ATTEST")
        size = reader.integer(1)
        if size > 4:
            raise BadInput(f"a PCR selection of {size} bytes", where="TPMS_ATTEST")
        bits = int.from_bytes(reader.take(size), "little")
        selection.append((bank, tuple(i for i in range(8 * size) if bits >> i & 1)))
    digest = reader.sized(64)
    reader.end()
    return Quote(signer, extra, clock, resets, restarts, bool(safe), firmware, tuple(selection), digest)


class Signature(NamedTuple):
    """TPMT_SIGNATURE (11.3.4): ``scheme`` is rsassa, rsapss or ecdsa; ``value`` raw RSA bytes or DER ECDSA."""

    scheme: str
    hash: str
    value: bytes


def parse_signature(data: bytes) -> Signature:
    """Read a TPMT_SIGNATURE. Raises BadInput."""
    reader = Reader(data, "TPMT_SIGNATURE")
    alg = reader.integer(2)
    if alg not in (ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA):
        raise BadInput(f"signature algorithm 0x{alg:04x} is not supported", where="TPMT_SIGNATURE")
    name = HASHES.get(code := reader.integer(2))
    if name is None:
        raise BadInput(f"hash algorithm 0x{code:04x} is not supported", where="TPMT_SIGNATURE")
    if alg == ALG_ECDSA:
        r, s = reader.sized(66), reader.sized(66)
        scheme, value = "ecdsa", der.encode(der.SEQUENCE, *(der.unsigned(n) for n in (r, s)))
    else:
        scheme, value = "rsassa" if alg == ALG_RSASSA else "rsapss", reader.sized(512)
    reader.end()
    return Signature(scheme, name, value)


class Public(NamedTuple):
    """TPMT_PUBLIC (12.2.4) of an RSA or ECC key. ``raw`` is the whole structure, from which the name comes."""

    raw: bytes
    name_algorithm: str
    attributes: int
    auth_policy: bytes
    modulus: bytes = b""
    exponent: int = 0
    curve: str = ""
    x: bytes = b""
    y: bytes = b""

    def name(self) -> bytes:
        """TPM2B_NAME's content: nameAlg ‖ H(TPMT_PUBLIC) (Part 1, 16)."""
        return self.raw[2:4] + hashlib.new(self.name_algorithm, self.raw).digest()

    def qualified_name(self, hierarchy: int) -> bytes:
        """Its qualified name if it is a primary key of ``hierarchy`` (Part 1, 16): nameAlg ‖ H(handle ‖ name)."""
        above = hierarchy.to_bytes(4, "big") + self.name()
        return self.raw[2:4] + hashlib.new(self.name_algorithm, above).digest()

    def key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        """The public key. Raises BadInput if the numbers are no key."""
        try:
            return keys.public_key(self.spki())
        except BadInput as error:
            raise BadInput(error.what, where="TPMT_PUBLIC") from error

    def spki(self) -> bytes:
        """The key's DER SubjectPublicKeyInfo."""
        if not self.curve:
            return keys.rsa_spki(int.from_bytes(self.modulus, "big"), self.exponent)
        size = {"secp256r1": 32, "secp384r1": 48, "secp521r1": 66}[self.curve]
        x, y = (n.lstrip(b"\0").rjust(size, b"\0") for n in (self.x, self.y))  # TPMs may leave out leading zeros
        return keys.ec_spki(self.curve, b"\x04" + x + y)


def parse_public(data: bytes) -> Public:
    """Read a TPMT_PUBLIC of an RSA or ECC key. Raises BadInput."""
    reader = Reader(data, "TPMT_PUBLIC")
    kind = reader.integer(2)
    name_algorithm = HASHES.get(code := reader.integer(2))
    if name_algorithm is None:
        raise BadInput(f"name algorithm 0x{code:04x} is not supported", where="TPMT_PUBLIC")
    attributes = reader.integer(4)
    policy = reader.sized(64)
    if kind not in (ALG_RSA, ALG_ECC):
        raise BadInput(f"key type 0x{kind:04x} is neither RSA nor ECC", where="TPMT_PUBLIC")
    if reader.integer(2) != ALG_NULL:  # symmetric: key bits, mode
        reader.take(4)
    scheme = reader.integer(2)
    if scheme not in (ALG_NULL, ALG_RSAES):
        reader.take(2)
    if scheme == ALG_ECDAA:
        reader.take(2)
    if kind == ALG_RSA:
        bits, exponent = reader.integer(2), reader.integer(4) or 65537  # 0 stands for 65537 (12.2.3.5)
        modulus = reader.sized(512)
        reader.end()
        if len(modulus) * 8 != bits:
            raise BadInput(f"a modulus of {8 * len(modulus)} bits where {bits} are declared", where="TPMT_PUBLIC")
        return Public(data, name_algorithm, attributes, policy, modulus=modulus, exponent=exponent)
    curve = CURVES.get(code := reader.integer(2))
    if curve is None:
        raise BadInput(f"curve 0x{code:04x} is not supported", where="TPMT_PUBLIC")
    if reader.integer(2) != ALG_NULL:  # kdf: hash
        reader.take(2)
    x, y = reader.sized(66), reader.sized(66)
    reader.end()
    return Public(data, name_algorithm, attributes, policy, curve=curve, x=x, y=y)
