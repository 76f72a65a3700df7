# SPDX-License-Identifier: Apache-2.0
"""Public keys and signatures of certificates. Both are pure functions of bytes, so their results are kept."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

from cube_attestation.errors import BadInput

from . import der

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

# Answers, not certificates, are kept: some 100 bytes each. Keys are a few kilobytes each.
KEPT_SIGNATURES, KEPT_KEYS = 4096, 256
MAX_SPKI = 2048  # an RSA key of 8192 bits needs 1,062 bytes

_NULL = der.encode(der.NULL)
SHA2 = {"sha256": "2.16.840.1.101.3.4.2.1", "sha384": "2.16.840.1.101.3.4.2.2", "sha512": "2.16.840.1.101.3.4.2.3"}


def _identifier(dotted: str, *parameters: bytes) -> bytes:
    return der.encode(der.SEQUENCE, der.encode(der.OID, der.oid(dotted)), *parameters)


def _algorithms() -> dict[bytes, tuple[str, str]]:
    """Every AlgorithmIdentifier that is accepted, as its whole encoding: no parameters are interpreted.

    RSA-PSS only with one hash for both uses and a salt of the hash's size. SHA-1 and MD5 are not among them.
    """
    table: dict[bytes, tuple[str, str]] = {}
    for i, name in enumerate(SHA2):
        table[_identifier(f"1.2.840.10045.4.3.{i + 2}")] = ("ecdsa", name)
        table[_identifier(f"1.2.840.113549.1.1.{i + 11}", _NULL)] = ("rsassa", name)
        salt = der.encode(der.INTEGER, bytes([hashlib.new(name).digest_size]))
        trailer = der.encode(0xA3, der.encode(der.INTEGER, b"\1"))  # the default, which AMD writes out
        for hash_null, mask_null, last in product((_NULL, b""), (_NULL, b""), (b"", trailer)):
            mask = _identifier("1.2.840.113549.1.1.8", _identifier(SHA2[name], mask_null))
            parameters = der.encode(
                der.SEQUENCE,
                der.encode(0xA0, _identifier(SHA2[name], hash_null)),
                der.encode(0xA1, mask),
                der.encode(0xA2, salt),
                last,
            )
            table[_identifier("1.2.840.113549.1.1.10", parameters)] = ("rsapss", name)
    return table


ALGORITHMS = _algorithms()
_RSA = _identifier("1.2.840.113549.1.1.1", _NULL)
CURVES = {
    name: _identifier("1.2.840.10045.2.1", der.encode(der.OID, der.oid(dotted)))
    for name, dotted in (
        ("secp256r1", "1.2.840.10045.3.1.7"), ("secp384r1", "1.3.132.0.34"), ("secp521r1", "1.3.132.0.35")
    )
}  # fmt: skip


def spki_digest(spki: bytes) -> str:
    """``sha256:<hex>`` of a DER SubjectPublicKeyInfo: how anchors are named."""
    return "sha256:" + hashlib.sha256(spki).hexdigest()


def ec_spki(curve: str, point: bytes) -> bytes:
    """The SubjectPublicKeyInfo of an uncompressed ``point`` (04 ‖ x ‖ y), whether or not it is on ``curve``."""
    return der.encode(der.SEQUENCE, CURVES[curve], der.encode(der.BIT_STRING, b"\0", point))


def rsa_spki(modulus: int, exponent: int) -> bytes:
    """The SubjectPublicKeyInfo of an RSA key."""
    numbers = (der.unsigned(n.to_bytes((n.bit_length() + 7) // 8, "big")) for n in (modulus, exponent))
    return der.encode(der.SEQUENCE, _RSA, der.encode(der.BIT_STRING, b"\0", der.encode(der.SEQUENCE, *numbers)))


# What a SubjectPublicKeyInfo of an uncompressed point begins with, and how long it is
_HEADS = {
    name: ((whole := ec_spki(name, b"\4".ljust(size, b"\0")))[: 1 - size], len(whole))
    for name, size in (("secp256r1", 65), ("secp384r1", 97), ("secp521r1", 133))
}


@lru_cache(maxsize=KEPT_KEYS)
def public_key(spki: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    """An RSA key of 2048 to 8192 bits or one on P-256, P-384 or P-521. Raises BadInput for all others.

    RSA exponents have 32 bits at most: longer ones make each verification cost a thousand times as much.
    Read here (RFC 3279, 2.3; RFC 5480), because importing the library's reader takes longer than a whole verdict.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    where = "SubjectPublicKeyInfo"
    if len(spki) > MAX_SPKI:
        raise BadInput(f"a public key of {len(spki)} bytes", where=where)
    outer = der.Cursor(spki, where)
    whole = outer.inner()
    outer.done()
    algorithm, bits = whole.whole(der.SEQUENCE), whole.bits()
    whole.done()
    try:
        if algorithm == _RSA:
            both = der.Cursor(bits, where)
            numbers = both.inner()
            both.done()
            modulus, exponent = numbers.integer(MAX_SPKI), numbers.integer(MAX_SPKI)
            numbers.done()
            if 2048 <= modulus.bit_length() <= 8192 and modulus > 0 and 2 < exponent < 1 << 32:
                return rsa.RSAPublicNumbers(exponent, modulus).public_key()
        elif algorithm in CURVES.values():
            curves = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
            curve = next(curve for curve in curves if CURVES[curve.name] == algorithm)
            return ec.EllipticCurvePublicKey.from_encoded_point(curve, bits)
    except ValueError as error:
        raise BadInput(f"no public key: {str(error)[:100]}", where=where) from error
    raise BadInput("a key of a type or size that is not accepted", where=where)


def verify(spki: bytes, algorithm: bytes, signed: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``signed`` is by ``spki``. ``algorithm`` is a whole AlgorithmIdentifier.

    Algorithms and keys that are not accepted give False.
    """
    known = ALGORITHMS.get(algorithm)
    if known is None:
        return False
    digest = hashlib.new(known[1], signed).digest()
    return _verify(spki, *known, digest, signature)


def is_on(spki: bytes, curve: str) -> bool:
    """Whether this is the SubjectPublicKeyInfo of an uncompressed point, said to be on ``curve``."""
    head, size = _HEADS[curve]
    return len(spki) == size and spki.startswith(head)


def verify_raw(spki: bytes, curve: str, hash_name: str, signed: bytes, signature: bytes) -> bool:
    """ECDSA by a key on ``curve`` and no other; ``signature``: r ‖ s, both big-endian and of one length."""
    half = len(signature) // 2
    encoded = der.encode(der.SEQUENCE, der.unsigned(signature[:half]), der.unsigned(signature[half:]))
    return is_on(spki, curve) and _verify(
        spki, "ecdsa", hash_name, hashlib.new(hash_name, signed).digest(), encoded
    )


@lru_cache(maxsize=KEPT_SIGNATURES)
def _verify(spki: bytes, scheme: str, hash_name: str, digest: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    prehashed, ecdsa, pads = _parameters(hash_name)
    try:
        key = public_key(spki)
        if isinstance(key, ec.EllipticCurvePublicKey) and scheme == "ecdsa":
            key.verify(signature, digest, ecdsa)
        elif isinstance(key, rsa.RSAPublicKey) and scheme in pads:
            key.verify(signature, digest, pads[scheme], prehashed)
        else:
            return False
    except (InvalidSignature, BadInput, ValueError):
        return False
    return True


_Parameters = tuple["Prehashed", "ec.ECDSA", "Mapping[str, padding.AsymmetricPadding]"]
_made: dict[str, _Parameters] = {}


def _parameters(hash_name: str) -> _Parameters:
    """The library's objects for signatures over a digest of this hash, made when first needed."""
    if hash_name not in _made:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding
        from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

        known = (hashes.SHA256(), hashes.SHA384(), hashes.SHA512())
        hashed = next(one for one in known if one.name == hash_name)
        pss = padding.PSS(padding.MGF1(hashed), hashed.digest_size)
        prehashed = Prehashed(hashed)
        _made[hash_name] = prehashed, ec.ECDSA(prehashed), {"rsassa": padding.PKCS1v15(), "rsapss": pss}
    return _made[hash_name]
