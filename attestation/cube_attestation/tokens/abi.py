# SPDX-License-Identifier: Apache-2.0
"""Compact JWS tokens (RFC 7515) and the sets that NRAS gives, as data. Nothing here checks a signature."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cube_attestation import dsse, jcs
from cube_attestation.errors import BadInput
from cube_attestation.x509 import certificate, keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

MAX_TOKEN = 128 << 10
MAX_HEADER = 16 << 10
MAX_FILE = 512 << 10
MAX_DEPTH = 24
MAX_SUBMODULES = 64
MAX_KEYS = 64
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


@dataclass(frozen=True)
class Token:
    """One token: its compact text, and header and claims as they were read from it."""

    text: str
    header: Mapping[str, object]
    claims: Mapping[str, object]


@dataclass(frozen=True)
class TokenSet:
    """What NRAS answers: a token over the whole and one per device, named ``GPU-0``, ``SWITCH-0`` …"""

    overall: Token
    devices: Mapping[str, Token]


def parse(data: bytes | str, *, where: str = "token") -> Token:
    """Read a compact JWS; white space around it is allowed. Raises BadInput."""
    if len(data) > MAX_TOKEN:
        raise BadInput(f"larger than {MAX_TOKEN >> 10} KiB", where=where)
    if isinstance(data, bytes):
        try:
            data = data.decode("ascii")
        except UnicodeDecodeError as error:
            raise BadInput("not a compact JWS", where=where) from error
    text = data.strip()
    if not _COMPACT.fullmatch(text):
        raise BadInput("not a compact JWS of three base64url parts", where=where)
    header, payload, signature = (_base64url(part, where) for part in text.split("."))
    if len(header) > MAX_HEADER or len(signature) > 1024:
        raise BadInput("header or signature is too long", where=where)
    return Token(text, _object(header, f"{where} header"), _object(payload, f"{where} claims"))


def parse_set(data: bytes, *, where: str = "token set") -> TokenSet:
    """Read NRAS's ``[["JWT", overall], {"GPU-0": token, …}]``. Raises BadInput."""
    value = _json(data, where)
    if not isinstance(value, list) or len(value) != 2:
        raise BadInput("expected a list of the overall token and the devices' tokens", where=where)
    overall, devices = value
    if not isinstance(overall, list) or len(overall) != 2 or overall[0] != "JWT" or not isinstance(overall[1], str):
        raise BadInput('the first entry is not ["JWT", token]', where=where)
    if not isinstance(devices, dict) or len(devices) > MAX_SUBMODULES:
        raise BadInput(f"the second entry is not an object of at most {MAX_SUBMODULES} tokens", where=where)
    found: dict[str, Token] = {}
    for name, text in devices.items():
        if not _NAME.fullmatch(name) or not isinstance(text, str):
            raise BadInput(f"{name[:40]!r} is not a device's token", where=where)
        found[name] = parse(text, where=f"{where}.{name}")
    return TokenSet(parse(overall[1], where=f"{where}.overall"), found)


def is_set(data: bytes) -> bool:
    """Whether ``data`` is a set rather than one token."""
    return data.lstrip()[:1] == b"["


@dataclass(frozen=True)
class Key:
    """A public key that may have signed a token. ``kid`` empty: a bare key or certificate, which any kid may mean.

    ``chain``: DER certificates that came with it, leaf first; ``not_before`` and ``not_after`` the leaf's.
    """

    kid: str
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    spki: str
    chain: tuple[bytes, ...] = ()
    not_before: datetime | None = None
    not_after: datetime | None = None


def load_keys(data: bytes, *, where: str = "keys") -> tuple[Key, ...]:
    """A JWK set, one JWK, PEM certificates, PEM public keys or one DER certificate. Raises BadInput.

    Entries of a set that are of other kinds (symmetric, encryption, other curves, short RSA) are left out.
    """
    if len(data) > MAX_FILE:
        raise BadInput(f"larger than {MAX_FILE >> 10} KiB", where=where)
    if data.lstrip()[:1] == b"{":
        value = _json(data, where)
        entries = value.get("keys", [value]) if isinstance(value, dict) else None
        if not isinstance(entries, list) or len(entries) > MAX_KEYS:
            raise BadInput(f"expected a JWK set of at most {MAX_KEYS} keys", where=where)
        jwks = (_jwk(entry, f"{where}[{i}]") for i, entry in enumerate(entries))
        return tuple(key for key in jwks if key is not None)
    if data[:1] == b"\x30":
        found = [_certificate_key("", (data,), where)]
    elif b"-----BEGIN PUBLIC KEY-----" in data:
        found = [_public_key(data, where)]
    else:
        chain = tuple(one.der for one in certificate.load(data, where=where))
        found = [_certificate_key("", chain[i:], where) for i in range(len(chain))]
    usable = tuple(key for key in found if key is not None)
    if not usable:
        raise BadInput("holds no RSA key of 2048 to 8192 bits and none on P-384", where=where)
    return usable


def _public_key(data: bytes, where: str) -> Key | None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except Exception as error:  # the library raises many kinds for malformed keys
        raise BadInput(f"not a public key: {str(error)[:80]}", where=where) from error
    usable = _supported(key)
    return None if usable is None else Key("", usable, dsse.spki_digest(usable))


def _supported(key: object) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey | None:
    """The key if it is RSA of 2048 to 8192 bits or on P-384, else None."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 8192:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1":
        return key
    return None


def _certificate_key(kid: str, chain: tuple[bytes, ...], where: str) -> Key | None:
    """The key of ``chain[0]``, None if it is of a kind that no issuer uses."""
    (leaf,) = certificate.load(chain[0], where=where)
    try:
        key = _supported(keys.public_key(leaf.spki))
    except BadInput:
        return None
    return None if key is None else Key(kid, key, leaf.spki_digest, chain, leaf.not_before, leaf.not_after)


def _jwk(entry: object, where: str) -> Key | None:
    """One JWK; its numbers must be those of the certificate in x5c, if both are there."""
    if not isinstance(entry, dict):
        raise BadInput("expected an object", where=where)
    kid = entry.get("kid", "")
    if not isinstance(kid, str) or len(kid) > 256:
        raise BadInput("kid is not a string", where=where)
    if entry.get("use", "sig") != "sig" or entry.get("kty") not in ("RSA", "EC"):
        return None
    x5c = entry.get("x5c")
    certified: Key | None = None
    if x5c is not None:
        if not isinstance(x5c, list) or not 1 <= len(x5c) <= 8 or not all(isinstance(c, str) for c in x5c):
            raise BadInput("x5c is not a list of at most 8 certificates", where=where)
        try:
            chain = tuple(base64.b64decode(c, validate=True) for c in x5c)
        except (binascii.Error, ValueError) as error:
            raise BadInput("x5c is not base64", where=where) from error
        certified = _certificate_key(kid, chain, where)
        if certified is None:
            return None
    if ("n" if entry["kty"] == "RSA" else "x") not in entry:
        if certified is None:
            raise BadInput("neither a key nor a certificate", where=where)
        return certified
    key = _numbers(entry, where)
    if key is None:
        return None
    spki = dsse.spki_digest(key)
    if certified is not None and certified.spki != spki:
        raise BadInput("the key is not the one of its certificate", where=where)
    return certified or Key(kid, key, spki)


def _numbers(entry: Mapping[str, object], where: str) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey | None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if entry["kty"] == "EC" and entry.get("crv") != "P-384":
        return None
    names = ("n", "e") if entry["kty"] == "RSA" else ("x", "y")
    numbers: list[int] = []
    for name in names:
        text = entry.get(name)
        if not isinstance(text, str) or len(text) > 1400:
            raise BadInput(f"{name} is missing or too long", where=where)
        numbers.append(int.from_bytes(_base64url(text, where), "big"))
    try:
        if entry["kty"] == "RSA":
            if numbers[1] >> 32:
                raise BadInput("the exponent has more than 32 bits", where=where)
            return _supported(rsa.RSAPublicNumbers(numbers[1], numbers[0]).public_key())
        return ec.EllipticCurvePublicNumbers(numbers[0], numbers[1], ec.SECP384R1()).public_key()
    except ValueError as error:
        raise BadInput(f"no valid key: {str(error)[:80]}", where=where) from error


def _base64url(text: str, where: str) -> bytes:
    """Base64url without padding and without stray bits."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput("not base64url", where=where) from error
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise BadInput("base64url with stray bits or padding", where=where)
    return data


def _object(data: bytes, where: str) -> Mapping[str, object]:
    value = _json(data, where)
    if not isinstance(value, dict):
        raise BadInput("not a JSON object", where=where)
    return value


def _json(data: bytes, where: str) -> object:
    """JSON with no member twice, nothing but finite numbers, and bounded nesting."""
    text = jcs.bounded(data, where=where, limit=MAX_FILE)
    try:
        value: object = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {str(error)[:80]}", where=where) from error
    return value


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member occurs twice")
    return found


def _constant(name: str) -> object:
    raise ValueError(f"{name} is no number")
