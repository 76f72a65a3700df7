# SPDX-License-Identifier: Apache-2.0
"""Fake attestation services that sign compact tokens in-process, with the key sets that go with them.

Tokens are put together by hand, apart from the code under test. Keys are made once per process.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
NONCE = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"
KIDS = {
    "nras": "nv-eat-kid-prod-20261124-0123456789",
    "maa": "jNolL7YTrRkDIukgm3on/fz5uMi9kjxhfUBTh6Or8No=",
    "confidential-space": "0123456789abcdef0123456789abcdef01234567",
    "ita": "3fd751f2e0d0f52846c0ecd4972c6e99dfc642051cd339dd9b04381af8c0ddb804514a7a1fee4673ac844fd5db7f15fb",
}
ALGORITHMS = {"nras": "ES384", "maa": "RS256", "confidential-space": "RS256", "ita": "PS384"}
ISS = {
    "nras": "https://nras.attestation.nvidia.com",
    "maa": "https://acme.weu.attest.azure.net",
    "confidential-space": "https://confidentialcomputing.googleapis.com",
    "ita": "https://portal.trustauthority.intel.com",
}
CLAIMS: dict[str, dict[str, Any]] = {
    "nras": {"sub": "NVIDIA-PLATFORM-ATTESTATION", "eat_nonce": NONCE, "x-nvidia-overall-att-result": True},
    "maa": {
        "x-ms-attestation-type": "azurevm",
        "x-ms-isolation-tee": {
            "x-ms-attestation-type": "sevsnpvm",
            "x-ms-compliance-status": "azure-compliant-cvm",
            "x-ms-sevsnpvm-is-debuggable": False,
        },
        "x-ms-runtime": {"client-payload": {"nonce": NONCE}},
    },
    "confidential-space": {
        "aud": "https://verifier.example",
        "eat_nonce": ["something else", NONCE],
        "dbgstat": "disabled-since-boot",
        "swname": "CONFIDENTIAL_SPACE",
        "hwmodel": "GCP_INTEL_TDX",
        "submods": {"container": {"image_digest": "sha256:" + "ab" * 32}},
    },
    "ita": {
        "tdx": {"tdx_td_attributes_debug": False, "attester_tcb_status": "UpToDate"},
        "verifier_nonce": {"val": NONCE, "iat": "now"},
    },
}
DEVICE: dict[str, Any] = {
    "eat_nonce": NONCE,
    "measres": "success",
    "secboot": True,
    "dbgstat": "disabled",
    "hwmodel": "GH100 A01 GSP BROM",
    "x-nvidia-gpu-driver-rim-version-match": True,
    "x-nvidia-gpu-driver-version": "550.90.07",
}

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@functools.cache
def key(role: str) -> PrivateKey:
    """A service's key, by its role; roles that start with nras or ec are on P-384."""
    if role.startswith(("nras", "ec")):
        return ec.generate_private_key(ec.SECP384R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def spki_digest(role: str) -> str:
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return "sha256:" + hashlib.sha256(key(role).public_key().public_bytes(*form)).hexdigest()


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(role: str, algorithm: str, content: bytes) -> bytes:
    private = key(role)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(private.sign(content, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(48, "big") + s.to_bytes(48, "big")
    if algorithm.startswith("PS"):
        return private.sign(content, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384())
    return private.sign(content, padding.PKCS1v15(), hashes.SHA256())


@dataclass
class FakeToken:
    """One token. ``header`` and ``claims`` change the defaults; a value of None removes the member."""

    issuer: str
    header: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    device: bool = False
    role: str = ""

    def text(self) -> str:
        header = {"alg": ALGORITHMS[self.issuer], "kid": KIDS[self.issuer], "typ": "JWT"} | self.header
        seconds = int(NOW.timestamp())
        base = {"iss": ISS[self.issuer], "iat": seconds - 60, "nbf": seconds - 60, "exp": seconds + 3600}
        claims = base | (DEVICE if self.device else CLAIMS[self.issuer]) | self.claims
        parts = [
            b64url(json.dumps({k: v for k, v in part.items() if v is not None}).encode())
            for part in (header, claims)
        ]
        content = ".".join(parts).encode()
        return f"{content.decode()}.{b64url(sign(self.role or self.issuer, str(header['alg']), content))}"

    def data(self) -> bytes:
        return self.text().encode()


def token_set(overall: FakeToken, **devices: str) -> bytes:
    """NRAS's answer: the overall token names the devices' by digest, unless it has submods of its own."""
    submods = {
        name.replace("_", "-"): ["DIGEST", ["SHA-256", hashlib.sha256(text.encode()).hexdigest()]]
        for name, text in devices.items()
    }
    overall.claims = {"submods": submods} | overall.claims
    texts = {name.replace("_", "-"): text for name, text in devices.items()}
    return json.dumps([["JWT", overall.text()], texts]).encode()


def jwk(role: str, kid: str, **more: object) -> dict[str, object]:
    public = key(role).public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        x, y = public.public_numbers().x, public.public_numbers().y
        numbers = {
            "kty": "EC",
            "crv": "P-384",
            "x": b64url(x.to_bytes(48, "big")),
            "y": b64url(y.to_bytes(48, "big")),
        }
    else:
        n, e = public.public_numbers().n, public.public_numbers().e
        numbers = {"kty": "RSA", "n": b64url(n.to_bytes(256, "big")), "e": b64url(e.to_bytes(3, "big"))}
    return {"kid": kid, "use": "sig"} | numbers | more


def key_set(*keys: dict[str, object]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def certificate(
    role: str, issuer: str = "", *, ca: bool = False, born: datetime = NOW - timedelta(days=1), days: int = 2
) -> x509.Certificate:
    """``role``'s certificate by ``issuer``, self-signed without one; valid for ``days`` from ``born``."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fake {role}")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fake {issuer or role}")]))
        .public_key(key(role).public_key())
        .serial_number(1 + len(role))
        .not_valid_before(born)
        .not_valid_after(born + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, None), True)
    )
    return builder.sign(key(issuer or role), hashes.SHA384())


def x5c(*certificates: x509.Certificate) -> list[str]:
    return [base64.b64encode(c.public_bytes(serialization.Encoding.DER)).decode() for c in certificates]
