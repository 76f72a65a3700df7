# SPDX-License-Identifier: Apache-2.0
"""What fuzzing found, as small inputs or as the rule that makes them: no other error, 100 ms and 50 MB at 1 MB."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import limits
import pytest
import targets
from cube_attestation.errors import BadInput
from cube_attestation.tokens import abi as tokens
from cube_attestation.x509 import der

MEGABYTE = 1 << 20

FOUND: list[tuple[str, Callable[[], bytes]]] = [
    # a repeated group kept 64 bytes for every pair of hex digits
    ("recognise", lambda: b"0" * MEGABYTE),
    ("recognise", lambda: b'["' + b"0" * (MEGABYTE - 4) + b'"]'),
    # an address of any length, letter by letter through IDNA and urlsplit
    ("address", lambda: b"\xff" * MEGABYTE),
    # a million lines that are no records, each parsed and named
    ("audit-export", lambda: b"\n" * MEGABYTE),
    ("audit-export", lambda: b"{}\n" * (MEGABYTE // 3)),
    # one small value after the other: fifty times their bytes, and a Python call each
    ("json", lambda: b"[" + b"[]," * 349_524 + b"0]"),
    ("json", lambda: b"[" + b"0," * 524_286 + b"0]"),
    ("json-canonical", lambda: b"[" + b'{"a":0},' * 131_070 + b"0]"),
]
# RSA keys with numbers that no key has: the library takes no negative ones, and a long exponent costs seconds
_IDENTIFIER = bytes.fromhex("300d06092a864886f70d0101010500")
FOUND += [
    ("spki", lambda: _rsa(b"\x00" + b"\xff" * 256, b"\xff")),
    ("spki", lambda: _rsa(b"\xff" * 256, b"\x01\x00\x01")),
    ("spki", lambda: _rsa(b"\x00" + b"\xff" * 256, b"\x7f" + b"\xff" * 255)),
]


def test_keys_of_tokens_have_short_exponents_too() -> None:
    key = {"kty": "RSA", "kid": "a", "n": "_" * 342 + "w", "e": "_" * 300}
    with pytest.raises(BadInput, match="exponent"):
        tokens.load_keys(json.dumps({"keys": [key]}).encode())


def _rsa(modulus: bytes, exponent: bytes) -> bytes:
    numbers = der.encode(der.SEQUENCE, der.encode(der.INTEGER, modulus), der.encode(der.INTEGER, exponent))
    return der.encode(der.SEQUENCE, _IDENTIFIER, der.encode(der.BIT_STRING, b"\0", numbers))


@pytest.mark.parametrize(("name", "make"), FOUND, ids=[f"{i}-{name}" for i, (name, _) in enumerate(FOUND)])
def test_what_was_found_stays_fixed(name: str, make: Callable[[], bytes]) -> None:
    target = targets.table(Path())[name]
    assert limits.measure(target, make()).problem == ""
