# SPDX-License-Identifier: Apache-2.0
"""A megabyte that is made to be expensive costs no reader more than 100 ms of CPU or 50 MB.

Wall time says little on a busy machine: work is counted where it can be, CPU time has a generous bound.
"""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable

import pytest
from cube_attestation import bundle, dsse, jcs, manifest, policy
from cube_attestation.errors import BadInput
from cube_attestation.nvidia import abi as nvidia
from cube_attestation.nvidia import rim
from cube_attestation.recognise import content
from cube_attestation.tdx import ccel, collateral
from cube_attestation.tokens import abi as tokens
from cube_attestation.tpm import eventlog
from cube_attestation.x509 import certificate, crl
from whole_bundles import ccel_log

MEGABYTE = 1 << 20
EXTRA = 50 << 20
SECONDS = 0.5  # five times the limit: this machine may be busy


def megabyte(unit: bytes, head: bytes = b"", tail: bytes = b"") -> bytes:
    return head + unit * ((MEGABYTE - len(head) - len(tail)) // len(unit)) + tail


def values(count: int, unit: bytes = b"1") -> bytes:
    """A list of so many values: one bracket, and a comma between two of them."""
    return b"[" + b",".join([unit] * count) + b"]"


# Work that can be counted: nothing is parsed that has more values than a document may have


@pytest.mark.parametrize(
    "read",
    [
        lambda data: jcs.loads(data),
        lambda data: jcs.loads(data, canonical=True),
        lambda data: jcs.loads(data.decode()),
        lambda data: nvidia.decode_evidence(data),
        lambda data: tokens.load_keys(b'{"keys":' + data + b"}"),
        lambda data: collateral.from_json(b'{"tcbInfo":' + data + b"}"),
        lambda data: content.recognise(data, where="x"),
        lambda data: bundle.load(data),
    ],
)
def test_too_many_values_are_never_parsed(read: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    real = json.loads

    def counting(text: str | bytes, **given: object) -> object:
        parsed.append(len(text))
        return real(text, **given)  # type: ignore[arg-type] # the same as before

    monkeypatch.setattr(json, "loads", counting)
    with pytest.raises(BadInput, match="values"):
        read(values(jcs.MAX_VALUES + 1))
    assert not parsed


def test_values_just_inside_and_just_beyond() -> None:
    assert jcs.loads(values(jcs.MAX_VALUES)) == [1] * jcs.MAX_VALUES
    with pytest.raises(BadInput, match=f"more than {jcs.MAX_VALUES} values"):
        jcs.loads(values(jcs.MAX_VALUES + 1))
    text = b'"' + b"[,{" * MEGABYTE + b'"'  # what looks like values counts as such, also in a string
    with pytest.raises(BadInput, match="values"):
        jcs.loads(text)


def test_records_of_systemd_just_inside_and_just_beyond() -> None:
    record = b'\x1e{"pcr":11,"digests":[]}\n'
    assert len(eventlog.parse_systemd(record * eventlog.MAX_RECORDS).events) == eventlog.MAX_RECORDS
    with pytest.raises(BadInput, match="events"):
        eventlog.parse_systemd(record * (eventlog.MAX_RECORDS + 1))


# Everything else


SWID = b'<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd">'
TCG = ccel_log({})
EVENT = struct.pack("<IIIH", 1, 0x80000007, 1, 0x0C) + bytes(48) + struct.pack("<I", 0)
HOSTILE: dict[str, bytes] = {
    "small integers": megabyte(b"1,", b"[", b"1]"),
    "as many objects as there may be": b"[" + b'{"":0},' * (jcs.MAX_VALUES // 2 - 1) + b"0]",
    "long names": b"{" + b",".join(b'"%018d":1' % i for i in range(jcs.MAX_VALUES - 1)) + b"}",
    "brackets": b"[" * MEGABYTE,
    "objects in objects": megabyte(b'{"":'),
    "escapes": megabyte(b"\\u0041", b'"', b'"'),
    "one number": b"1" * MEGABYTE,
    "one fraction": megabyte(b"1", b"[0.", b"]"),
    "PEM beginnings": megabyte(b"-----BEGIN CERTIFICATE-----"),
    "a PEM of line breaks": megabyte(b"\n", b"-----BEGIN CERTIFICATE-----"),
    "tiny PEM blocks": megabyte(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"),
    "text with PEM behind": megabyte(b"x\n", b"", b"-----BEGIN CERTIFICATE-----"),
    "DER sequences": b"\x30\x83\x0f\xff\xfa" + b"\x30\0" * (MEGABYTE // 2 - 3),
    "comments": megabyte(b"#\n"),
    "words": megabyte(b"a "),
    "hex": megabyte(b"30"),
    "base64": megabyte(b"QUFB"),
    "YAML lines": megabyte(b"a: 1\n"),
    "YAML dashes": megabyte(b"- ", b"a:\n"),
    "TOML tables": megabyte(b"[[a]]\n"),
    "TOML values": megabyte(b"1,", b"a=[", b"]"),
    "TOML dots": megabyte(b".a", b"a", b"=1"),
    "XML elements": megabyte(b"<a/>", SWID, b"</SoftwareIdentity>"),
    "XML depth": megabyte(b"<a>"),
    "XML entities": megabyte(b"x", b'<!DOCTYPE a [<!ENTITY b "', b'">]><a>&b;&b;</a>'),
    "events": megabyte(EVENT, TCG),
    "records": megabyte(b'\x1e{"pcr":11,"digests":[]}\n'),
    "separators": megabyte(b"\x1e"),
    "protobuf": megabyte(b"\x0a\0"),
    "protobuf numbers": megabyte(b"\x08\x80"),
    "zeros": bytes(MEGABYTE),
}
READERS: dict[str, Callable[[bytes], object]] = {
    "JSON": jcs.loads,
    "bundle": bundle.load,
    "DSSE": lambda data: dsse.peek(jcs.loads(data), dsse.LAUNCH),
    "policy": policy.load,
    "manifest": lambda data: manifest.parse(jcs.loads(data)),
    "RIM": rim.parse,
    "TCG log": eventlog.parse_tcg,
    "CC log": ccel.parse,
    "systemd log": eventlog.parse_systemd,
    "certificates": lambda data: certificate.load(data, where="x"),
    "lists": lambda data: crl.load_all(data, where="x"),
    "TCB info": lambda data: collateral.from_json(data),
    "devices": nvidia.decode_evidence,
    "token": tokens.parse,
    "keys": tokens.load_keys,
    "anything": lambda data: content.recognise(data, where="x"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_hostile_megabyte_is_cheap(name: str) -> None:
    costs = {what: cpu(READERS[name], data) for what, data in HOSTILE.items()}
    assert {what: cost for what, cost in costs.items() if cost > SECONDS} == {}


def cpu(read: Callable[[bytes], object], data: bytes) -> float:
    """Seconds of this thread."""
    began = time.thread_time()
    attempt(read, data)
    return time.thread_time() - began


def attempt(read: Callable[[bytes], object], data: bytes) -> object:
    try:
        return read(data)
    except BadInput:
        return None


@pytest.mark.parametrize("name", ["JSON", "policy", "RIM", "CC log", "certificates", "anything"])
def test_a_hostile_megabyte_is_small(name: str) -> None:
    attempt(READERS[name], b"")  # what is imported once does not count
    extra: dict[str, int] = {}
    for what, data in HOSTILE.items():
        tracemalloc.start()
        try:
            kept = attempt(READERS[name], data)
            extra[what] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        del kept
    assert {what: size >> 20 for what, size in extra.items() if size > EXTRA} == {}
