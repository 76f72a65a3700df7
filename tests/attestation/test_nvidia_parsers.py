# SPDX-License-Identifier: Apache-2.0
"""Every reader of NVIDIA's bytes: any input gives a value or BadInput, quickly and in little memory."""

from __future__ import annotations

import functools
import time
import tracemalloc
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cube_attestation.errors import AttestationError, BadInput
from cube_attestation.nvidia import abi, ocsp, rim, verify
from cube_attestation.x509.certificate import Certificate, parse
from fake_nvidia import NOW, FakeDevice, driver_rim, fwid_extension, rules
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FAST = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def report() -> bytes:
    return FakeDevice().report()


@functools.cache
def manifest() -> bytes:
    return driver_rim().sign()


@functools.cache
def response() -> bytes:
    return FakeDevice().ocsp()[0]


def read_report(data: bytes) -> None:
    """Everything that a report's facts are made of."""
    found = abi.parse_report(data)
    facts = found.driver_version, found.vbios_version, found.board, found.mode
    assert all(isinstance(fact, str) for fact in facts)
    abi.switch_links(found)
    abi.gpu_links(found)
    found.rim_ids("GH100")


READERS: dict[str, Callable[[bytes], object]] = {
    "report": read_report,
    "report text": abi.decode_report,
    "evidence": abi.decode_evidence,
    "chain": verify.load_chain,
    "fwid": verify.firmware_identities,
    "manifest": rim.parse,
    "signed manifest": lambda data: rim.verify(data, rules().rim_roots, NOW),
    "ocsp": ocsp.load,
}


def mutated(base: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    data = bytearray(base)
    for place, value in changes:
        data[place % len(data)] = value
    return bytes(data[: len(data) - cut % len(data)] if cut else data)


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4)


def only_our_errors(reader: Callable[[bytes], object], data: bytes) -> None:
    try:
        reader(data)
    except AttestationError:
        return


@pytest.mark.parametrize("name", READERS)
@FAST
@given(data=st.binary(max_size=400))
def test_any_bytes(name: str, data: bytes) -> None:
    only_our_errors(READERS[name], data)


@FAST
@given(changes=CHANGES, cut=st.integers(0, 4000))
def test_changed_reports(changes: list[tuple[int, int]], cut: int) -> None:
    only_our_errors(read_report, mutated(report(), changes, cut))


@settings(max_examples=120, deadline=None)
@given(changes=CHANGES, cut=st.integers(0, 200))
def test_changed_manifests_are_never_taken(changes: list[tuple[int, int]], cut: int) -> None:
    data = mutated(manifest(), changes, cut)
    try:
        found = rim.verify(data, rules().rim_roots, NOW)
    except AttestationError:
        return
    # what is left: bytes that C14N normalises or that lie outside the root element
    assert found.rim == rim.parse(manifest())


@FAST
@given(changes=CHANGES, cut=st.integers(0, 800))
def test_changed_responses(changes: list[tuple[int, int]], cut: int) -> None:
    data = mutated(response(), changes, cut)

    brom, ica = certificate("brom"), certificate("ica")
    only_our_errors(lambda data: ocsp.check(brom, ica, ocsp.index((data,)), NOW, rules().ocsp_max_age), data)


@functools.cache
def certificate(which: str) -> Certificate:
    return parse(FakeDevice().certs()[which].make().public_bytes(Encoding.DER))


@FAST
@given(changes=CHANGES, cut=st.integers(0, 200))
def test_changed_firmware_identities(changes: list[tuple[int, int]], cut: int) -> None:
    data = mutated(fwid_extension(bytes(48), "2.23.133.5.4.1"), changes, cut)
    only_our_errors(verify.firmware_identities, data)


MIB = 1 << 20
HOSTILE: dict[str, bytes] = {
    "zeros": bytes(MIB),
    "lists": b"[" * MIB,
    "objects": b"[" + b"{}," * (MIB // 3 - 1) + b"{}]",
    "evidence": b'[{"evidence":"' + b"A" * (MIB - 40) + b'"}]',
    "hex": b"11e0" * (MIB // 4),
    "report": b"\x11\xe0\x01\xff" + b"\xff" * (MIB - 4),
    "elements": b'<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd">'
    + b"<a/>" * (MIB // 4),
    "nested elements": b"<a>" * (MIB // 3),
    "manifest of the largest size": b'<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd">'
    + b"<a/>" * ((rim.MAX_BYTES - 200) // 4)
    + b"</SoftwareIdentity>",
    "attributes": b"<a " + b" ".join(b'a%d=""' % i for i in range(20000)) + b"/>",
    "pem": b"-----BEGIN CERTIFICATE-----\n" * (MIB // 28),
    "der": b"\x30\x83\x0f\xff\xfb" + b"\x30\x80" * ((MIB - 10) // 2),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_megabyte_costs_little(name: str, hostile: str) -> None:
    reader, data = READERS[name], HOSTILE[hostile]
    only_our_errors(reader, b"")  # imports
    start = time.perf_counter()
    only_our_errors(reader, data)
    assert time.perf_counter() - start < 0.1 or _again(reader, data) < 0.1
    tracemalloc.start()
    try:
        only_our_errors(reader, data)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def _again(reader: Callable[[bytes], object], data: bytes) -> float:
    """A second measurement, for hosts that are busy with something else."""
    start = time.process_time()
    only_our_errors(reader, data)
    return time.process_time() - start


def test_signatures_of_wrong_shape_do_not_hold() -> None:
    from cube_attestation.nvidia import chains

    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    for signature in (b"", bytes(95), bytes(96), b"\xff" * 96, bytes(97)):
        assert not chains.signed_by(key, signature, b"data")


def test_deep_firmware_identity_is_bad_input() -> None:
    value = b"\x04\x01a"
    for _ in range(8):
        value = b"\x30" + bytes([len(value)]) + value
    with pytest.raises(BadInput):
        verify.firmware_identities(value)
