# SPDX-License-Identifier: Apache-2.0
"""The certificate reader: strict DER, agreement with an independent reader, paths and revocation."""

from __future__ import annotations

import contextlib
import tracemalloc
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import thread_time

import fake_x509 as fake
import pytest
from cryptography import x509 as other
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation.anchors import amd, microsoft
from cube_attestation.azure import abi as azure
from cube_attestation.azure import containers
from cube_attestation.errors import BadInput
from cube_attestation.snp import abi as snp
from cube_attestation.snp.verify import read_endorsements
from cube_attestation.x509 import certificate, crl, der, keys, path
from fake_x509 import END, NOW, START, Issued, issue
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND = timedelta(seconds=1)
ROOT = issue("Root", fake.rsa_key("root"), extensions=fake.ca_extensions(), serial=1)
MIDDLE = issue("Middle", fake.rsa_key("middle"), ROOT, extensions=fake.ca_extensions(length=0, crl=True), serial=2)
LEAF = issue(
    "Leaf", fake.ec_key("leaf"), MIDDLE, extensions=[fake.basic_constraints(False), fake.CRL_POINT], serial=3
)


def find(leaf: Issued, *issuers: Issued, roots: tuple[Issued, ...] = (ROOT,), now: datetime = NOW) -> path.Path:
    return path.find(leaf.parsed, [c.parsed for c in issuers], [root.digest for root in roots], now)


def test_a_clock_without_a_zone_is_an_error() -> None:
    with pytest.raises(BadInput, match="zone"):
        find(LEAF, MIDDLE, ROOT, now=NOW.replace(tzinfo=None))


def test_a_good_path() -> None:
    found = find(LEAF, MIDDLE, ROOT)
    assert found.problem == ""
    assert [c.common_name for c in found.certificates] == ["Leaf", "Middle", "Root"]
    assert find(LEAF, ROOT, MIDDLE, MIDDLE).problem == ""


def changed(**options: object) -> tuple[Issued, ...]:
    """The chain with another middle."""
    settings_: dict[str, object] = {"extensions": fake.ca_extensions(length=0), "serial": 2, **options}
    middle = issue("Middle", fake.rsa_key("middle"), ROOT, **settings_)  # type: ignore[arg-type]
    return LEAF, middle, ROOT


@pytest.mark.parametrize(
    ("chain", "problem"),
    [
        ((LEAF, ROOT), "untrusted_root"),
        ((LEAF, MIDDLE), "untrusted_root"),
        ((ROOT,), "untrusted_root"),
        (changed(start=NOW), ""),
        (changed(start=NOW + SECOND), "not_yet_valid"),
        (changed(end=NOW), ""),
        (changed(end=NOW - SECOND), "expired"),
        (changed(extensions=[]), "constraints"),
        (changed(extensions=fake.ca_extensions(ca=False)), "constraints"),
        (changed(extensions=fake.ca_extensions(usage=0x02)), "constraints"),
        (changed(extensions=[fake.basic_constraints(True)]), ""),
        (changed(extensions=[*fake.ca_extensions(), fake.extension("1.2.3.4", b"", critical=True)]), "constraints"),
        (changed(extensions=[*fake.ca_extensions(), fake.extension("1.2.3.4", b"")]), ""),
        (changed(extensions=[fake.extension("2.5.29.19", b"\x30\x00\x00"), fake.key_usage(4)]), "constraints"),
        (changed(algorithm=fake.SHA1_RSA, scheme=("rsassa", "sha1")), "weak"),
        (changed(scheme=("rsapss", "sha384")), ""),
        (changed(algorithm=fake.ALGORITHMS["rsapss", "sha384"], scheme=("rsapss", "sha256")), "signature_invalid"),
        (changed(algorithm=fake.ALGORITHMS["rsassa", "sha256"], scheme=("rsapss", "sha256")), "signature_invalid"),
        ((issue("Leaf", fake.ec_key("small", ec.SECP224R1), MIDDLE), MIDDLE, ROOT), "weak"),
        (
            (issue("Leaf", fake.ec_key("leaf"), Issued(b"", fake.rsa_key("x"), MIDDLE.subject)), MIDDLE, ROOT),
            "signature_invalid",
        ),
    ],
)
def test_problems_of_a_path(chain: tuple[Issued, ...], problem: str) -> None:
    assert find(*chain).problem == problem


def test_path_length_counts_intermediates() -> None:
    for length, problem in ((0, "constraints"), (1, "")):
        upper = issue("Upper", fake.rsa_key("upper"), ROOT, extensions=fake.ca_extensions(length=length))
        middle = issue("Middle", fake.rsa_key("middle"), upper, extensions=fake.ca_extensions(length=0))
        assert find(LEAF, middle, upper, ROOT).problem == problem


def test_all_issuers_of_one_name_are_tried_and_key_identifiers_narrow() -> None:
    wrong = [issue("Middle", fake.rsa_key(f"wrong {i}"), ROOT, extensions=fake.ca_extensions()) for i in range(3)]
    assert find(LEAF, *wrong, MIDDLE, ROOT).problem == ""
    aki = fake.extension("2.5.29.35", der.encode(der.SEQUENCE, der.encode(0x80, b"mine")))
    ski = fake.extension("2.5.29.14", der.encode(der.OCTET_STRING, b"other"))
    middle = issue("Middle", fake.rsa_key("middle"), ROOT, extensions=[*fake.ca_extensions(), ski])
    leaf = issue("Leaf", fake.ec_key("leaf"), MIDDLE, extensions=[aki])
    assert find(leaf, middle, ROOT).problem == "untrusted_root"
    assert find(leaf, MIDDLE, ROOT).problem == ""


def test_an_anchor_that_names_itself_must_have_signed_itself() -> None:
    raw = bytearray(ROOT.der)
    raw[-1] ^= 1
    forged = Issued(bytes(raw), ROOT.key, ROOT.subject)
    assert find(LEAF, MIDDLE, forged).problem == "signature_invalid"


def test_crafted_look_alikes_end_in_bounded_time() -> None:
    same = [
        issue(
            "Same",
            fake.rsa_key("same"),
            Issued(b"", fake.rsa_key("same"), fake.name("Same")),
            extensions=fake.ca_extensions(),
            serial=i,
        )
        for i in range(1, 20)
    ]
    assert find(same[0], *same).problem in ("untrusted_root", "signature_invalid", "constraints")


CRLS = [crl.parse(fake.revoke(ROOT)), crl.parse(fake.revoke(MIDDLE))]
PATH = find(LEAF, MIDDLE, ROOT).certificates


def test_revocation_of_every_certificate_that_names_a_point() -> None:
    assert path.check_revocation(PATH, CRLS, NOW) == path.Revocation("", ())
    missing = path.check_revocation(PATH, [], NOW).problems
    assert [problem for problem, _ in missing] == ["missing", "missing"]
    for number, issuer in ((2, ROOT), (3, MIDDLE)):
        lists = [*CRLS, crl.parse(fake.revoke(issuer, [number]))]
        assert path.check_revocation(PATH, lists, NOW).revoked


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (fake.revoke(ROOT, end=NOW), ""),
        (fake.revoke(ROOT, end=NOW - SECOND), "expired"),
        (fake.revoke(ROOT, start=NOW), ""),
        (fake.revoke(ROOT, start=NOW + SECOND), "not_yet_valid"),
        (fake.revoke(ROOT, key=fake.rsa_key("other")), "signature_invalid"),
        (fake.revoke(MIDDLE), "missing"),
    ],
)
def test_a_list_counts_only_when_it_is_the_issuers_and_in_force(data: bytes, problem: str) -> None:
    problems = path.check_revocation(PATH, [crl.parse(data), CRLS[1]], NOW).problems
    assert [found for found, _ in problems] == ([problem] if problem else [])


def test_an_issuer_that_may_not_sign_lists_does_not() -> None:
    root = issue("Root", fake.rsa_key("root"), extensions=fake.ca_extensions(usage=0x04))
    found = find(LEAF, MIDDLE, root).certificates
    assert [problem for problem, _ in path.check_revocation(found, CRLS, NOW).problems] == ["signature_invalid"]


def test_the_newest_list_decides_and_age_is_bounded() -> None:
    old = crl.parse(fake.revoke(ROOT, start=NOW - timedelta(days=9), end=NOW - timedelta(days=2)))
    assert path.check_revocation(PATH, [old, *CRLS], NOW).problems == ()
    limit = timedelta(days=5)
    assert path.check_revocation(PATH, CRLS, NOW, max_age=limit).problems == ()
    problems = path.check_revocation(PATH, CRLS, NOW, max_age=limit - SECOND).problems
    assert [problem for problem, _ in problems] == ["too_old", "too_old"]


ENTRY_EXTENSION = der.encode(der.SEQUENCE, fake.extension("2.5.29.29", b"", critical=True))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (fake.revoke(ROOT, end=None), "no next update"),
        (fake.revoke(ROOT, critical=True), "not complete"),
        (fake.revoke(ROOT, [7], entry_extensions={7: ENTRY_EXTENSION}), "critical extension"),
        (fake.revoke(ROOT, range(1, crl.MAX_ENTRIES + 2)), "entries"),
        (fake.revoke(ROOT) + b"\0", "too many"),
        (b"", "ends"),
        (bytes(crl.MAX_BYTES + 1), "larger"),
        (b"-----BEGIN X509 CRL-----\nA\n-----END X509 CRL-----\n", "base64"),
    ],
)
def test_bad_lists_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        crl.load(data, where="list")


def test_lists_agree_with_an_independent_reader() -> None:
    data = fake.revoke(ROOT, [5, 70000, 2**150])
    theirs, mine = other.load_der_x509_crl(data), crl.load(data, where="list")
    assert {entry.serial_number for entry in theirs} == set(mine.revoked)
    assert (theirs.last_update_utc, theirs.next_update_utc) == (mine.this_update, mine.next_update)
    pem = theirs.public_bytes(serialization.Encoding.PEM)
    assert crl.load(pem, where="list").digest == mine.digest


def independent(data: bytes) -> other.Certificate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AMD's serial number 0
        return other.load_der_x509_certificate(data)


def test_certificates_agree_with_an_independent_reader() -> None:
    for mine in (*amd.published(), *microsoft.published(), ROOT.parsed, MIDDLE.parsed, LEAF.parsed):
        theirs = independent(mine.der)
        assert theirs.serial_number == mine.serial
        assert theirs.tbs_certificate_bytes == mine.tbs
        assert theirs.signature == mine.signature
        assert (theirs.not_valid_before_utc, theirs.not_valid_after_utc) == (mine.not_before, mine.not_after)
        assert (theirs.subject.public_bytes(), theirs.issuer.public_bytes()) == (mine.subject, mine.issuer)
        der_spki = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        assert theirs.public_key().public_bytes(*der_spki) == mine.spki
        assert {e.oid.dotted_string: e.critical for e in theirs.extensions} == {
            der.dotted(oid): extension.critical for oid, extension in mine.extensions.items()
        }
        basic = theirs.extensions.get_extension_for_class(other.BasicConstraints).value
        assert mine.basic_constraints() == (basic.ca, basic.path_length)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5000), st.binary(min_size=1, max_size=2))
def test_what_we_read_an_independent_reader_reads_the_same(offset: int, patch: bytes) -> None:
    raw = bytearray(MIDDLE.der)
    at = offset % len(raw)
    raw[at : at + len(patch)] = patch
    try:
        mine = certificate.parse(bytes(raw))
    except BadInput:
        return
    try:
        theirs = independent(bytes(raw))
    except ValueError:
        return  # it also checks alphabets of names and the insides of keys, which matter only once they are used
    assert (theirs.serial_number, theirs.tbs_certificate_bytes) == (mine.serial, mine.tbs)
    assert (theirs.not_valid_before_utc, theirs.not_valid_after_utc) == (mine.not_before, mine.not_after)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_value_or_the_one_error(data: bytes) -> None:
    for parse in (
        certificate.parse,
        crl.parse,
        lambda d: certificate.load(d, where="x"),
        lambda d: crl.load(d, where="x"),
    ):
        try:
            parse(data)
        except BadInput:
            continue


def test_serial_0_needs_no_other_reader() -> None:
    """What newer libraries are to refuse: nothing of ours hands a whole certificate to a library."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero = issue("Leaf", fake.ec_key("leaf"), MIDDLE, serial=0)
        assert (zero.parsed.serial, find(zero, MIDDLE, ROOT).problem) == (0, "")
    modules = Path(certificate.__file__).parent
    sources = [file.read_text() for folder in (modules, modules.parent / "snp") for file in folder.glob("*.py")]
    assert not any("cryptography import x509" in text or "cryptography.x509" in text for text in sources)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: issue("L", fake.ec_key("leaf"), ROOT, serial=-1), "negative"),
        (lambda: issue("L", fake.ec_key("leaf"), ROOT, serial=2**170), "an integer of"),
        (lambda: issue("L", fake.ec_key("leaf"), ROOT, version=b"\x02\x01\x01"), "version 3"),
        (lambda: issue("L", fake.ec_key("leaf"), ROOT, outer_algorithm=fake.SHA1_RSA), "two different"),
        (lambda: issue("L", fake.ec_key("leaf"), ROOT, extensions=[fake.CRL_POINT, fake.CRL_POINT]), "twice"),
        (
            lambda: issue(
                "L", fake.ec_key("leaf"), ROOT, extensions=[fake.extension(f"1.2.{i}", b"") for i in range(50)]
            ),
            "more than",
        ),
        (lambda: Issued(ROOT.der + b"\0", ROOT.key, b""), "too many"),
        (lambda: Issued(ROOT.der[:-1], ROOT.key, b""), "beyond"),
        (lambda: Issued(bytes(certificate.MAX_BYTES + 1), ROOT.key, b""), "larger"),
    ],
)
def test_bad_certificates_are_refused(make: Callable[[], Issued], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        certificate.parse(make().der)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x1f\x01\0", "several bytes"),
        (b"\x30\x80\0\0", "bad length"),
        (b"\x30\x81\x05" + bytes(5), "shortest"),
        (b"\x30\x82\x00\x90" + bytes(0x90), "shortest"),
        (b"\x30\x85\0\0\0\0\1\0", "bad length"),
        (b"\x30\x05abc", "beyond"),
        (b"\x30", "middle"),
    ],
)
def test_lengths_have_one_form(data: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        der.Cursor(data, "x").inner()


@pytest.mark.parametrize(
    ("tag", "text", "moment"),
    [
        (der.UTC_TIME, b"491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (der.UTC_TIME, b"500101000000Z", datetime(1950, 1, 1, tzinfo=UTC)),
        (der.GENERALIZED_TIME, b"99991231235959Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (der.UTC_TIME, b"4912312359Z", None),
        (der.UTC_TIME, b"491231235959+0100", None),
        (der.UTC_TIME, b"490230000000Z", None),
        (der.GENERALIZED_TIME, b"20260101000000.5Z", None),
        (der.GENERALIZED_TIME, b"2026010100000\xb2Z", None),
        (der.UTC_TIME, b"260101000060Z", None),
    ],
)
def test_times_have_one_form(tag: int, text: bytes, moment: datetime | None) -> None:
    cursor = der.Cursor(der.encode(tag, text), "time")
    if moment is None:
        with pytest.raises(BadInput, match="malformed time"):
            cursor.time()
    else:
        assert cursor.time() == moment


@settings(max_examples=200)
@given(st.integers(-(2**150), 2**150))
def test_integers_go_both_ways(value: int) -> None:
    assert der.Cursor(fake.integer(value), "x").integer() == value


@pytest.mark.parametrize("contents", [b"", b"\x80", b"\x2a\x80\x01", b"\x2a\x86", b"\x80\x01"])
def test_object_identifiers_have_one_form(contents: bytes) -> None:
    with pytest.raises(BadInput, match="object identifier"):
        der.Cursor(der.encode(der.OID, contents), "x").oid()


@settings(max_examples=200)
@given(st.integers(0, 2), st.integers(0, 39), st.lists(st.integers(0, 2**40), max_size=8))
def test_object_identifiers_go_both_ways(first: int, second: int, rest: list[int]) -> None:
    dotted = ".".join(map(str, (first, second, *rest)))
    assert der.dotted(der.oid(dotted)) == dotted


def test_pem_der_and_padding() -> None:
    text = b"Bag Attributes\n    friendlyName: x\n"
    both = certificate.load(text + MIDDLE.pem + b"\n" + ROOT.pem + b"\0\0", where="x")
    assert [c.der for c in both] == [MIDDLE.der, ROOT.der]
    assert certificate.load(ROOT.der, where="x")[0].der == ROOT.der
    assert certificate.load(ROOT.der + bytes(100), where="x", padding=True)[0].der == ROOT.der
    for data in (
        ROOT.der + bytes(100),
        ROOT.der + b"\1",
        b"",
        b"text",
        ROOT.pem.replace(b"MII", b"M*I", 1),
        ROOT.pem[:-30],
    ):
        with pytest.raises(BadInput):
            certificate.load(data, where="x")
    with pytest.raises(BadInput):
        certificate.load(ROOT.der + b"\0\1", where="x", padding=True)
    with pytest.raises(BadInput, match="more than"):
        certificate.load(ROOT.pem * (certificate.MAX_COUNT + 1), where="x")


def test_key_rules() -> None:
    assert keys.public_key(fake.spki(ROOT.key))
    for spki in (b"", bytes(4000), fake.spki(fake.ec_key("small", ec.SECP224R1))):
        with pytest.raises(BadInput):
            keys.public_key(spki)
    assert not keys.verify(fake.spki(ROOT.key), fake.ALGORITHMS["ecdsa", "sha256"], b"x", b"y")
    assert not keys.verify(fake.spki(LEAF.key), fake.ALGORITHMS["rsassa", "sha256"], b"x", b"y")


def test_usages_and_names() -> None:
    leaf = issue("Leaf", fake.ec_key("leaf"), ROOT, extensions=[fake.extended_key_usage("2.23.133.8.3", "1.2.3")])
    assert leaf.parsed.extended_key_usage() == ("2.23.133.8.3", "1.2.3")
    assert ROOT.parsed.extended_key_usage() is None
    assert ROOT.parsed.key_usage() == 0x06
    assert ROOT.parsed.name == "CN=Root, O=Fake"
    assert (ROOT.parsed.not_before, ROOT.parsed.not_after) == (START, END)


MEBIBYTE = 1 << 20
HOSTILE = {
    "zeros": bytes(MEBIBYTE),
    "open lengths": b"\x30\x80" * (MEBIBYTE // 2),
    "sequences": b"\x30\x00" * (MEBIBYTE // 2),
    "PEM without an end": b"-----BEGIN CERTIFICATE-----" * (MEBIBYTE // 27),
    "PEM of nothing": (b"-----BEGIN CERTIFICATE-----" + b"\n" * 65000) * 16,
    "PEM of much": (b"-----BEGIN CERTIFICATE-----" + b"A" * 65000 + b"-----END CERTIFICATE-----") * 15,
    "list without an end": b"-----BEGIN X509 CRL-----" + b"A" * (MEBIBYTE - 24),
    "a long list": fake.revoke(ROOT, range(1, crl.MAX_ENTRIES)),
    "a table": bytes.fromhex("63da758de6644564adc5f4b93be8accd") + b"\x18\0\0\0\xff\xff\0\0" + bytes(65000),
    "a report": b"HCLA" + bytes(MEBIBYTE),
    "numbers": b'{"quote":{"pcrs":[],"message":[' + b"1," * 500000 + b'1]},"report":[]}',
    "depth": b"[" * MEBIBYTE,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_mebibyte_of_anything_costs_little(name: str) -> None:
    """At most 100 ms of this thread's time and 50 MB each (the least of three: others use this machine too)."""
    data = HOSTILE[name]
    parsers: list[Callable[[bytes], object]] = [
        lambda d: certificate.load(d, where="x", padding=True),
        lambda d: crl.load(d, where="x"),
        lambda d: snp.parse_report(d, max_trailing=snp.MAX_TRAILING),
        lambda d: read_endorsements([d]),
        snp.parse_table,
        azure.parse_hcl,
        azure.parse_claims,
        containers.read,
        containers.read_bincode_quote,
    ]
    for parse in parsers:
        spent: list[float] = []
        while len(spent) < 3 and not (spent and spent[-1] < 0.02):
            begin = thread_time()
            with contextlib.suppress(BadInput):
                parse(data + bytes(len(spent)))
            spent.append(thread_time() - begin)
        assert min(spent) < 0.1, (parse, spent)
        tracemalloc.start()
        with contextlib.suppress(BadInput):
            parse(data + bytes(4))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50 << 20
