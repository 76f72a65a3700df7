# SPDX-License-Identifier: Apache-2.0
"""The forger's workshop: keys of his own, and chains that look like a vendor's but for the keys.

Nothing made here is kept: keys live as long as the process.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cube_attestation.errors import BadInput
from cube_attestation.x509 import certificate, der, keys
from cube_attestation.x509.certificate import Certificate

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_CURVES: dict[str, ec.EllipticCurve] = {c.name: c for c in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())}


@functools.cache
def ec_key(role: str, curve: str = "secp256r1") -> ec.EllipticCurvePrivateKey:  # noqa: ARG001 - the cache's key
    """The forger's elliptic-curve key of a role, made once."""
    return ec.generate_private_key(_CURVES[curve])


@functools.cache
def rsa_key(role: str) -> rsa.RSAPrivateKey:  # noqa: ARG001 - the cache's key
    """The forger's RSA-2048 key of a role, made once."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def like(spki: bytes, role: str) -> PrivateKey:
    """A key of the same type as the one with this SubjectPublicKeyInfo (RSA keys: 2048 bits)."""
    public = keys.public_key(spki)
    return ec_key(role, public.curve.name) if isinstance(public, ec.EllipticCurvePublicKey) else rsa_key(role)


def spki(key: PrivateKey) -> bytes:
    """DER SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_digest(key: PrivateKey) -> str:
    return keys.spki_digest(spki(key))


def raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes, hash_name: str) -> bytes:
    """r ‖ s, big-endian, each as long as the curve's field."""
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_HASHES[hash_name])))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def sign(key: PrivateKey, algorithm: bytes, data: bytes) -> bytes:
    """A signature under a whole AlgorithmIdentifier. Raises BadInput for one that no verifier of ours takes."""
    if algorithm not in keys.ALGORITHMS:
        raise BadInput("a signature algorithm that is not known", where="certificate")
    scheme, name = keys.ALGORITHMS[algorithm]
    digest = _HASHES[name]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(digest))
    if scheme == "rsapss":
        return key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    return key.sign(data, padding.PKCS1v15(), digest)


@dataclass(frozen=True)
class Impostor:
    """A chain under the forger's root, leaf first, and its keys; ``root`` is that root's SPKI digest."""

    certificates: tuple[bytes, ...]
    keys: tuple[PrivateKey, ...]

    @property
    def pem(self) -> bytes:
        return b"".join(map(pem, self.certificates))

    @property
    def root(self) -> str:
        return spki_digest(self.keys[-1])


def pem(data: bytes, kind: str = "CERTIFICATE") -> bytes:
    """One PEM block."""
    body = base64.encodebytes(data).replace(b"\n", b"")
    lines = b"\n".join(body[i : i + 64] for i in range(0, len(body), 64))
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (kind.encode(), lines, kind.encode())


def ordered(certificates: Sequence[Certificate], leaf: Certificate) -> tuple[Certificate, ...]:
    """The chain from ``leaf`` as far as the names lead."""
    chain = [leaf]
    while chain[-1].issuer != chain[-1].subject and len(chain) <= len(certificates):
        above = next((c for c in certificates if c.subject == chain[-1].issuer and c not in chain), None)
        if above is None:
            break
        chain.append(above)
    return tuple(chain)


def impostor(chain: Sequence[Certificate], role: str) -> Impostor:
    """The same names, dates, serials and extensions with the forger's keys and signatures; ``chain`` leaf first.

    Where the root itself is not in the chain, the last certificate is signed by a key that nobody knows.
    """
    made = tuple(like(c.spki, f"{role} {i}") for i, c in enumerate(chain))
    found: list[bytes] = []
    for i, old in enumerate(chain):
        if i + 1 < len(chain):
            signer = made[i + 1]
        elif old.issuer == old.subject:
            signer = made[i]
        else:
            scheme = keys.ALGORITHMS.get(old.algorithm, ("", ""))[0]
            signer = ec_key(f"{role} above", "secp384r1") if scheme == "ecdsa" else rsa_key(f"{role} above")
        found.append(reissued(old, made[i], signer))
    return Impostor(tuple(found), made)


def reissued(old: Certificate, key: PrivateKey, signer: PrivateKey) -> bytes:
    """The same certificate for ``key``, signed by ``signer`` with the same algorithm."""
    body = der.Cursor(old.tbs, "certificate").inner()
    inside = old.tbs[body.at : body.end].replace(old.spki, spki(key), 1)
    return _assembled(der.encode(der.SEQUENCE, inside), old.algorithm, signer)


def _assembled(tbs: bytes, algorithm: bytes, signer: PrivateKey) -> bytes:
    signature = der.encode(der.BIT_STRING, b"\0", sign(signer, algorithm, tbs))
    return der.encode(der.SEQUENCE, tbs, algorithm, signature)


def resigned_crl(data: bytes, signer: PrivateKey, *, revoke: Sequence[int] = ()) -> bytes:
    """A DER list with the forger's signature, and with ``revoke`` in place of its entries if that is given."""
    whole = der.Cursor(data, "CRL").inner()
    tbs = whole.whole(der.SEQUENCE)
    algorithm = whole.whole(der.SEQUENCE)
    if revoke:
        body = der.Cursor(tbs, "CRL").inner()
        parts = [body.whole(der.INTEGER), body.whole(der.SEQUENCE), body.whole(der.SEQUENCE)]
        parts.append(this_update := body.whole(body.peek()))
        parts.append(body.whole(body.peek()))
        if body.peek() == der.SEQUENCE:
            body.whole(der.SEQUENCE)
        entries = [
            der.encode(der.SEQUENCE, der.encode(der.INTEGER, _magnitude(serial)), this_update) for serial in revoke
        ]
        parts.append(der.encode(der.SEQUENCE, *entries))
        if body.more():
            parts.append(body.whole(0xA0))
        tbs = der.encode(der.SEQUENCE, *parts)
    return _assembled(tbs, algorithm, signer)


def _magnitude(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def load(data: bytes, *, where: str, padding: bool = False) -> tuple[Certificate, ...]:
    """Certificates, PEM or DER."""
    return certificate.load(data, where=where, padding=padding)
