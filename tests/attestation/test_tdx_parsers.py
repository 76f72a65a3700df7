# SPDX-License-Identifier: Apache-2.0
"""TDX parsers: exact lengths, trailing bytes, nothing but BadInput on any bytes, and their time and memory."""

from __future__ import annotations

import contextlib
import functools
import json
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from cube_attestation.errors import BadInput
from cube_attestation.tdx import abi, ccel, endorsement
from cube_attestation.tdx.appraise import appraise
from cube_attestation.tdx.collateral import (
    Collateral,
    crl_bytes,
    from_json,
    issuer_chain_header,
    parse_qe_identity,
    parse_tcb_info,
    published,
)
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.tdx.verify import verify
from fake_tdx import NOW, FakeGoogle, FakeTdx, tlv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def samples() -> dict[str, bytes]:
    """A right input for each parser."""
    world = FakeTdx()
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 0x0C, 48, 0)
    log = struct.pack("<II", 1, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec
    log += (struct.pack("<IIIH", 1, 4, 1, 0x0C) + bytes(48) + struct.pack("<I", 4) + bytes(4)) * 3
    return {
        "quote": world.quote(),
        "quote5": FakeTdx(version=5, body_type=3).quote(),
        "body": world.td_body(),
        "extension": world.sgx_extension(),
        "info": world.tcb_info(),
        "identity": world.qe_identity(),
        "json": world.collateral_json().encode(),
        "log": log,
        "endorsement": FakeGoogle().endorsement(),
    }


PARSERS: dict[str, Callable[[bytes], object]] = {
    "quote": abi.parse_quote,
    "quote5": abi.parse_quote,
    "body": abi.parse_td_body,
    "extension": abi.parse_pck_extension,
    "info": parse_tcb_info,
    "identity": parse_qe_identity,
    "json": from_json,
    "log": ccel.parse,
    "endorsement": endorsement.parse,
}


@pytest.mark.parametrize("name", PARSERS)
def test_right_input(name: str) -> None:
    PARSERS[name](samples()[name])


@pytest.mark.parametrize("name", PARSERS)
@quick
@given(data=st.data())
def test_any_bytes(name: str, data: st.DataObject) -> None:
    """Random bytes, and right ones with a stretch replaced, cut or repeated: BadInput or a value."""
    right = samples()[name]
    at = data.draw(st.integers(0, len(right)))
    size = data.draw(st.integers(0, 40))
    new = data.draw(st.binary(max_size=40))
    value = data.draw(st.sampled_from([right[:at] + new + right[at + size :], right[:at], new, right + new]))
    with contextlib.suppress(BadInput):
        PARSERS[name](value)


@quick
@given(at=st.integers(0, 5000), new=st.binary(min_size=1, max_size=8))
def test_any_quote_gets_a_verdict(at: int, new: bytes) -> None:
    """A changed quote is bad input, or not authentic, or was changed where nothing is signed."""
    right = samples()["quote"]
    at %= len(right)
    value = right[:at] + new + right[at + len(new) :]
    world = FakeTdx()
    try:
        found = verify(value, functools.cache(world.collateral)(), now=NOW, anchors=world.anchors)
    except BadInput:
        return
    verdict = appraise(found, TdxPolicy())
    assert verdict.authentic == (not found.forged)
    if found.authentic:
        assert found.quote.body == abi.parse_quote(right).body
    json.dumps(verdict.to_json())


@quick
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=8), s, max_size=3)),
       st.sampled_from(["issueDate", "fmspc", "tcbLevels", "tdxModule", "tdxModuleIdentities", "id", "version",
                        "tcbEvaluationDataNumber", "mrsigner", "isvprodid", "attributes"]))  # fmt: skip
def test_any_member_of_documents(value: Any, name: str) -> None:
    for parse, sample in ((parse_tcb_info, "info"), (parse_qe_identity, "identity")):
        document = json.loads(samples()[sample])
        document[name] = value
        with contextlib.suppress(BadInput):
            parse(json.dumps(document).encode())


@pytest.mark.parametrize("name", ["quote", "quote5"])
def test_quotes_have_exact_lengths(name: str) -> None:
    """Each truncation is refused; what follows is kept apart, up to a limit."""
    right = samples()[name]
    for end in range(len(right)):
        with pytest.raises(BadInput):
            abi.parse_quote(right[:end])
    for extra in (b"\0", b"x" * 70, bytes(abi.MAX_TRAILING)):
        quote = abi.parse_quote(right + extra)
        assert quote.trailing == extra
        assert quote.cert_data == abi.parse_quote(right).cert_data
    with pytest.raises(BadInput, match="after the signature"):
        abi.parse_quote(right + bytes(abi.MAX_TRAILING + 1))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, b"\2\0", "version 2"), (0, b"\6\0", "version 6"), (2, b"\3\0", "key type 3"), (4, b"\x82", "TEE type"),
        (0, b"\3\0", "TEE type 0x81 in a quote v3"),
        (632, b"\xff\xff\xff\x7f", "early"), (632 + 4 + 128, b"\5\0", "type 5"),
        (632 + 4 + 130, b"\1\0\0\0", "certification data of 1 bytes"),
        (632 + 4 + 134 + 448, b"\xff\xff", "early"), (632 + 4 + 134 + 450 + 32, b"\x09\0", "unknown type 9"),
        (632 + 4 + 134 + 450 + 34, b"\1\0\0\0", "certification data of 1 bytes"),
    ],
)  # fmt: skip
def test_quotes_refused(at: int, value: bytes, words: str) -> None:
    right = samples()["quote"]
    with pytest.raises(BadInput, match=words):
        abi.parse_quote(right[:at] + value + right[at + len(value) :])


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [(48, b"\1\0", "body type 1"), (48, b"\4\0", "body type 4"), (50, b"\1\0\0\0", "1 bytes"),
     (48, b"\2\0", "648 bytes")],
)  # fmt: skip
def test_quotes_of_version_5_refused(at: int, value: bytes, words: str) -> None:
    right = samples()["quote5"]
    with pytest.raises(BadInput, match=words):
        abi.parse_quote(right[:at] + value + right[at + len(value) :])


@pytest.mark.parametrize("size", [0, 583, 585, 647, 649])
def test_bodies_refused(size: int) -> None:
    with pytest.raises(BadInput):
        abi.parse_td_body(bytes(size))
    with pytest.raises(BadInput):
        abi.parse_sgx_report(bytes(size))


def td_report() -> bytes:
    import hashlib

    tcb, td = bytes(239), bytes(range(256)) * 2
    head = b"\x81\0\0\0" + bytes(28) + hashlib.sha384(tcb).digest() + hashlib.sha384(td).digest() + bytes(range(64))
    return head.ljust(256, b"\0") + tcb + bytes(17) + td


def test_td_reports() -> None:
    right = td_report()
    report = abi.parse_td_report(right)
    assert report.report_data == bytes(range(64))
    assert report.mr_td == right[528:576]
    for at in (0, 40, 100, 300, 600):
        with pytest.raises(BadInput):
            abi.parse_td_report(right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :])
    for wrong in (right[:-1], right + b"\0", b""):
        with pytest.raises(BadInput):
            abi.parse_td_report(wrong)


def test_pck_extensions() -> None:
    found = abi.parse_pck_extension(FakeTdx(cpu_svn=bytes([255] * 16), pce_svn=300).sgx_extension())
    assert (found.cpu_svn, found.pce_svn, found.smt_enabled) == (bytes([255] * 16), 300, True)
    assert abi.parse_pck_extension(FakeTdx(flags=None).sgx_extension()).smt_enabled is None
    right = samples()["extension"]
    head = 4 if right[1] == 0x82 else 3
    for wrong in (
        right + b"\0",
        tlv(0x31, right[head:]),
        tlv(0x30, right[head:], right[head : head + 34]),  # PPID twice
        tlv(0x30, right[head:], tlv(0x30, tlv(0x06, b"\x2a\x03"), b"\5\0")),
        tlv(0x30, right[head:-30]),
        b"\x30\x84\0\0\0\0",
        b"\x30\x81\5" + bytes(5),
        b"",
    ):
        with pytest.raises(BadInput):
            abi.parse_pck_extension(wrong)


def test_published_bodies_keep_their_bytes() -> None:
    """The signed part is cut out and never written anew; spaces around it don't matter, others are refused."""
    inner = b'{"id": "TDX" ,"x":{"signature":"no"}}'
    sig = "ab" * 64
    body = b'{"tcbInfo":' + inner + b',"signature":"' + sig.encode() + b'"}'
    assert published(body, "tcbInfo", where="x").content == inner
    assert published(b" { " + body[1:] + b"\n", "tcbInfo", where="x").signature == bytes.fromhex(sig)
    for wrong in (
        body[:-1], body + b"x", body.replace(b"ab" * 64, b"ab" * 63), body.replace(b"tcbInfo", b"other"),
        b'{"tcbInfo":[],"signature":"' + sig.encode() + b'"}',
        b'{"signature":"' + sig.encode() + b'","tcbInfo":' + inner + b"}",
    ):  # fmt: skip
        with pytest.raises(BadInput):
            published(wrong, "tcbInfo", where="x")


def test_collateral_files() -> None:
    """Published bodies, whole or split in a QuoteCollateralV3, and CRLs in three encodings are the same."""
    world = FakeTdx()
    value = json.loads(world.collateral_json())
    split = from_json(json.dumps(value).encode())
    whole = dict(value)
    for name, member in (("tcb_info", "tcbInfo"), ("qe_identity", "enclaveIdentity")):
        whole[name] = f'{{"{member}":{value[name]},"signature":"{value[name + "_signature"]}"}}'
        del whole[f"{name}_signature"]
    assert from_json(json.dumps(whole).encode()) == split
    parts = [from_json(whole[name].encode()) for name in ("tcb_info", "qe_identity")]
    assert parts[0].merged(parts[1]).merged(split) == split
    assert Collateral().merged(split) == split
    der = bytes.fromhex(value["pck_crl"])
    import base64

    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"
    assert (
        crl_bytes(der, where="x")
        == crl_bytes(value["pck_crl"].encode(), where="x")
        == crl_bytes(pem, where="x")
        == der
    )
    with pytest.raises(BadInput):
        crl_bytes(b"neither", where="x")
    assert issuer_chain_header("-----BEGIN%20CERTIFICATE-----%0A") == b"-----BEGIN CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"tcb_info":1}', '{"a":1,"a":2}', '{"tcb_info":"{}","tcb_info_signature":"zz"}',
     "[" * 100_000, '{"tcbInfo":{},"signature":"00"}', "\ud800", '{"id":' + "1" * 5000 + "}"],
)  # fmt: skip
def test_collateral_refused(text: str) -> None:
    with pytest.raises(BadInput):
        from_json(text.encode("utf-8", "surrogatepass"))


def test_event_logs_end_in_padding() -> None:
    right = samples()["log"]
    log = ccel.parse(right)
    for padding in (b"\xff" * 4000, bytes(4000)):
        assert ccel.parse(right + padding).events == log.events
    for wrong in (right + b"\xff" * 40 + b"x", right + bytes(100) + b"x", right + b"x", right[:-1]):
        with pytest.raises(BadInput):
            ccel.parse(wrong)


@pytest.mark.parametrize("index", [0, 5, 23])
def test_event_logs_touch_only_registers(index: int) -> None:
    right = samples()["log"]
    event = struct.pack("<IIIH", index, 4, 1, 0x0C) + bytes(48) + struct.pack("<I", 4) + bytes(4)
    with pytest.raises(BadInput, match="index"):
        ccel.parse(right + event)


def hostile() -> dict[str, tuple[Callable[[bytes], object], bytes]]:
    """1 MB for each parser, shaped to cost as much as it can."""
    million = 1 << 20
    right = samples()
    event = struct.pack("<IIIH", 1, 4, 1, 0x0C) + bytes(48) + struct.pack("<I", 0)
    level = right["info"][right["info"].index(b'{"tcb":') : -2]
    levels = right["info"][:-2] + (b"," + level) * 249 + b"]}"
    measurement = b"\x12\x32\x1a\x30" + bytes(48)
    tdx = measurement * 4000
    return {
        "quote": (abi.parse_quote, right["quote"] + bytes(million)),
        "quote at the limit": (abi.parse_quote, right["quote"].ljust(abi.MAX_TRAILING, b"\0")),
        "extension": (abi.parse_pck_extension, tlv(0x30, b"\x30\0" * 30_000)),
        "json of braces": (from_json, b'{"a":' * (million // 5)),
        "json of numbers": (from_json, b"[" + b"1," * (million // 2)),
        "tcb info of levels": (parse_tcb_info, levels.ljust(million // 2, b" ")),
        "tcb info of one number": (parse_tcb_info, b"1" * million),
        "body without an end": (
            lambda d: published(d, "tcbInfo", where="x"),
            b'{"tcbInfo":{' + b',"signature"' * 40_000,
        ),
        "body of spaces": (lambda d: published(d, "tcbInfo", where="x"), b" " * 500_000),
        "crl": (lambda d: crl_bytes(d, where="x"), b"zz" * (million // 2)),
        "log of events": (ccel.parse, (right["log"] + event * 20_000)[:million]),
        "log at the limit": (lambda d: ccel.replay(ccel.parse(d)), right["log"] + event * 4092),
        "log of zeros": (ccel.parse, right["log"] + bytes(million - len(right["log"]))),
        "log of padding": (ccel.parse, right["log"] + b"\xff" * (million - len(right["log"]))),
        "endorsement": (endorsement.parse, b"\x08\x01" * (million // 2)),
        "endorsement of measurements": (endorsement.parse, tdx[:200_000]),
    }


@pytest.mark.parametrize("name", list(hostile()))
def test_time_and_memory(name: str) -> None:
    """At most 100 ms and 50 MB for any input of 1 MB."""
    parse, data = hostile()[name]
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        with contextlib.suppress(BadInput):
            parse(data)
        best = min(best, time.perf_counter() - start)
    assert best < 0.1, f"{best * 1000:.0f} ms"
    tracemalloc.start()
    with contextlib.suppress(BadInput):
        parse(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20, f"{peak >> 20} MiB"
