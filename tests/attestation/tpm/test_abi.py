# SPDX-License-Identifier: Apache-2.0
"""TPM structures: exact lengths, known algorithms, nothing after the end."""

from __future__ import annotations

import struct

import pytest
from cube_attestation.errors import BadInput
from cube_attestation.tpm import abi, verify
from cube_attestation.tpm.verify import QuoteEvidence
from fakepki import attest, ec_key, ecc_public, tpm_sign
from hypothesis import given, settings
from hypothesis import strategies as st

PUBLIC = ecc_public(ec_key("ak"))
QUOTE = attest(b"extra", bytes(32), (0, 7, 23), PUBLIC)
SIGNATURE = tpm_sign(ec_key("ak"), QUOTE)


def test_a_quote_says_what_was_put_in() -> None:
    quote = abi.parse_quote(QUOTE)
    assert quote.extra_data == b"extra"
    assert quote.selection == (("sha256", (0, 7, 23)),)
    assert quote.pcr_digest == bytes(32)
    assert (quote.clock, quote.reset_count, quote.restart_count, quote.safe) == (123456, 1, 0, True)


def test_a_key_says_what_was_put_in() -> None:
    public = abi.parse_public(PUBLIC)
    assert public.key().public_numbers() == ec_key("ak").public_key().public_numbers()
    assert public.name()[:2] == b"\0\x0b"
    assert len(public.name()) == 34


def test_a_signature_verifies() -> None:
    signature = abi.parse_signature(SIGNATURE)
    assert verify.signature_holds(QUOTE, signature, ec_key("ak").public_key())
    assert not verify.signature_holds(QUOTE + b"\0", signature, ec_key("ak").public_key())
    assert not verify.signature_holds(QUOTE, signature, ec_key("stranger").public_key())


def test_sha1_signatures_never_hold() -> None:
    signature = abi.parse_signature(struct.pack(">HH", abi.ALG_ECDSA, abi.ALG_SHA1) + SIGNATURE[4:])
    assert not verify.signature_holds(QUOTE, signature, ec_key("ak").public_key())


@pytest.mark.parametrize("parse", [abi.parse_quote, abi.parse_public, abi.parse_signature])
def test_cut_or_longer_structures_are_refused(parse: object) -> None:
    assert callable(parse)
    data = {abi.parse_quote: QUOTE, abi.parse_public: PUBLIC, abi.parse_signature: SIGNATURE}[parse]
    for end in range(len(data)):
        with pytest.raises(BadInput):
            parse(data[:end])
    with pytest.raises(BadInput, match="after the end"):
        parse(data + b"\0")


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, b"\0"), (5, b"\x17"), (4, b"\0")],
    ids=["not made by a TPM", "certify instead of quote", "unknown type"],
)
def test_other_attestations_are_refused(offset: int, value: bytes) -> None:
    with pytest.raises(BadInput):
        abi.parse_quote(QUOTE[:offset] + value + QUOTE[offset + 1 :])


def test_a_point_off_the_curve_is_no_key() -> None:
    public = abi.parse_public(PUBLIC[:-1] + bytes([PUBLIC[-1] ^ 1]))
    with pytest.raises(BadInput, match="no public key"):
        public.key()


def test_a_bank_selected_twice_is_refused() -> None:
    one = struct.pack(">HB", abi.ALG_SHA256, 3) + b"\1\0\0"
    head, tail = QUOTE.split(struct.pack(">I", 1) + struct.pack(">HB", abi.ALG_SHA256, 3), 1)
    with pytest.raises(BadInput, match="twice"):
        abi.parse_quote(head + struct.pack(">I", 2) + one * 2 + tail[3:])


@settings(max_examples=400)
@given(st.binary(max_size=300), st.integers(0, 3))
def test_any_bytes_are_a_structure_or_bad_input(data: bytes, which: int) -> None:
    parse = (abi.parse_quote, abi.parse_public, abi.parse_signature, QuoteEvidence.decode)[which]
    start = (QUOTE[:10], PUBLIC[:10], SIGNATURE[:4], b'{"attest":"')[which]
    for raw in (data, start + data):
        try:
            parse(raw)
        except BadInput:
            continue


@given(st.data())
def test_any_changed_byte_is_a_key_or_bad_input(data: st.DataObject) -> None:
    raw = bytearray(PUBLIC)
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        public = abi.parse_public(bytes(raw))
        public.name()
        public.key()
    except BadInput:
        pass
