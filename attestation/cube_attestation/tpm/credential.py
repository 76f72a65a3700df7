# SPDX-License-Identifier: Apache-2.0
"""TPM2_MakeCredential outside a TPM (TPM 2.0 Library, Part 1, section 24): proof that a key lives beside an EK."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from cube_attestation.errors import BadInput

from .abi import sized

try:  # newer versions of the library keep CFB, which TPMs demand, with what is not for new designs
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB


@dataclass(frozen=True)
class Challenge:
    """What ``POST /attestation/activate`` takes: contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET."""

    credential_blob: bytes
    secret: bytes


def make_credential(
    ek: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, ak_name: bytes, credential: bytes
) -> Challenge:
    """Wrap ``credential`` (1 to 32 bytes) so that only the TPM with ``ek`` and a key of ``ak_name`` unwraps it.

    The EK's template is the TCG EK Credential Profile's for its type: RSA-2048 and P-256 with SHA-256 and AES-128,
    P-384 with SHA-384 and AES-256. ``ak_name`` is TPM2B_NAME's content. Raises BadInput for other keys.
    """
    if not 1 <= len(credential) <= 32:
        raise BadInput(f"a credential of {len(credential)} bytes", where="MakeCredential", todo="use 1 to 32 bytes")
    if isinstance(ek, rsa.RSAPublicKey):
        if ek.key_size != 2048:
            raise BadInput(f"an RSA EK of {ek.key_size} bits", where="MakeCredential", todo="use the 2048-bit EK")
        name, key_bits = "sha256", 128
        seed = os.urandom(32)
        oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=b"IDENTITY\0")
        secret = ek.encrypt(seed, oaep)
    else:
        profile = {"secp256r1": ("sha256", 128), "secp384r1": ("sha384", 256)}.get(ek.curve.name)
        if profile is None:
            raise BadInput(f"an EK on {ek.curve.name}", where="MakeCredential", todo="use P-256 or P-384")
        name, key_bits = profile
        ephemeral = ec.generate_private_key(ek.curve)
        size = (ek.curve.key_size + 7) // 8
        point, theirs = ephemeral.public_key().public_numbers(), ek.public_numbers()
        x = point.x.to_bytes(size, "big")
        z = ephemeral.exchange(ec.ECDH(), ek)
        seed = kdf_e(name, z, "IDENTITY", x, theirs.x.to_bytes(size, "big"))
        secret = sized(x) + sized(point.y.to_bytes(size, "big"))
    symmetric = kdf_a(name, seed, "STORAGE", ak_name, b"", key_bits)
    encryptor = Cipher(algorithms.AES(symmetric), CFB(bytes(16))).encryptor()
    identity = encryptor.update(sized(credential)) + encryptor.finalize()
    key = kdf_a(name, seed, "INTEGRITY", b"", b"", hashlib.new(name).digest_size * 8)
    integrity = hmac.new(key, identity + ak_name, name).digest()
    return Challenge(sized(integrity) + identity, secret)


def kdf_a(name: str, key: bytes, label: str, u: bytes, v: bytes, bits: int) -> bytes:
    """KDFa (Part 1, 11.4.10.2): SP 800-108 counter mode with HMAC. ``bits`` is a multiple of 8."""
    out = b""
    counter = 0
    while len(out) * 8 < bits:
        counter += 1
        message = counter.to_bytes(4, "big") + label.encode() + b"\0" + u + v + bits.to_bytes(4, "big")
        out += hmac.new(key, message, name).digest()
    return out[: bits // 8]


def kdf_e(name: str, z: bytes, use: str, u: bytes, v: bytes) -> bytes:
    """KDFe (Part 1, 11.4.10.3) for one digest's worth of bits: SP 800-56A concatenation with counter 1."""
    return hashlib.new(name, (1).to_bytes(4, "big") + z + use.encode() + b"\0" + u + v).digest()
