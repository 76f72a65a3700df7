# SPDX-License-Identifier: Apache-2.0
"""SNP: every rule of authenticity and of policy fires, and passes just before its boundary."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import fake_snp
import fake_x509 as fake
import pytest
from cube_attestation import jcs
from cube_attestation.anchors import amd
from cube_attestation.errors import BadInput
from cube_attestation.snp import abi, appraise, verify
from cube_attestation.verdict import ItemVerdict
from fake_snp import FakeSnp
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND = timedelta(seconds=1)
GOOD = FakeSnp()
RULES = appraise.Rules(measurements=["11" * 48])


def check(snp: FakeSnp, *, report: bytes | None = None, **options: object) -> verify.Verified:
    given_report = abi.parse_report(report or snp.report())
    endorsements = verify.read_endorsements(snp.certificates(), [snp.crl])
    return verify.verify(given_report, endorsements, **{"now": fake.NOW, "roots": snp.roots, **options})  # type: ignore[arg-type]


def codes(verified: verify.Verified) -> list[str]:
    return [reason.code for reason in verified.forged]


def judge(snp: FakeSnp, **rules: object) -> ItemVerdict:
    verified = check(snp)
    assert verified.authentic, verified.forged
    return appraise.appraise(verified, appraise.Rules(**{"measurements": ["11" * 48], **rules}))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["vcek", "vlek"])
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_every_product_key_and_version_passes(product: str, kind: str, version: int) -> None:
    verified = check(FakeSnp(product=product, kind=kind, version=version))
    assert codes(verified) == []
    verdict = appraise.appraise(verified, RULES)
    assert verdict.acceptable, verdict.reasons
    assert verified.product == product
    assert verified.key is not None
    assert verified.key.tcb == (fake_snp.TCB if product == "Turin" else abi.Tcb(4, 1, 24, 219))
    assert verdict.facts["tcb"]["launch"]["microcode"] == 219  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("snp", "expected"),
    [
        (GOOD.with_fields(signature_algorithm=2), ["snp.signature.algorithm"]),
        (GOOD.with_fields(flags=7 << 2), ["snp.signing_key.unknown"]),
        (GOOD.with_fields(flags=2 << 2), ["snp.signing_key.unknown"]),
        (GOOD.with_fields(flags=1 << 2), ["collateral.vlek.missing"]),
        (FakeSnp(kind="vlek").with_fields(flags=0), ["collateral.vcek.missing"]),
        (GOOD.but(leaf_signer="somebody"), ["snp.chain.signature_invalid"]),
        (GOOD.but(root_role="another root"), ["snp.chain.untrusted_root"]),
        (GOOD.but(leaf_end=fake.NOW - SECOND), ["snp.chain.expired"]),
        (GOOD.but(leaf_end=fake.NOW), []),
        (GOOD.but(leaf_start=fake.NOW + SECOND), ["snp.chain.not_yet_valid"]),
        (GOOD.but(leaf_start=fake.NOW), []),
        (GOOD.but(revoked=(0x10001,)), ["snp.chain.revoked"]),
        (GOOD.but(revoked=(0x10000, 0x10002)), []),
        (GOOD.but(revoked=(0x10001,), crl_end=fake.NOW - SECOND), ["snp.chain.revoked"]),
        (GOOD.but(crl_end=fake.NOW - SECOND), ["collateral.expired"]),
        (GOOD.but(crl_end=fake.NOW), []),
        (GOOD.but(crl_start=fake.NOW + SECOND), ["collateral.not_yet_valid"]),
        (GOOD.but(crl_start=fake.NOW), []),
        (GOOD.but(extra_extensions=(fake.extension("1.2.3.4", b"", critical=True),)), ["snp.chain.constraints"]),
        (GOOD.but(extra_extensions=(fake.extension("1.2.3.4", b""),)), []),
        (GOOD.but(dropped=("2",)), ["snp.certificate.malformed"]),
        (GOOD.but(dropped=("3.8",)), ["snp.certificate.malformed"]),
        (GOOD.but(dropped=("4",)), ["snp.certificate.malformed"]),
        (FakeSnp(kind="vlek", dropped=("5",)), ["snp.certificate.malformed"]),
        (
            FakeSnp(kind="vlek", extra_extensions=(fake.extension(fake_snp.ARC + "4", bytes(64)),)),
            ["snp.certificate.malformed"],
        ),
        (GOOD.but(product_name="Rome"), ["snp.certificate.malformed"]),
        (FakeSnp(product="Turin", dropped=("3.9",)), ["snp.certificate.malformed"]),
        (GOOD.but(hardware_id=bytes(63)), ["snp.certificate.malformed"]),
        (GOOD.but(wrapped_id=True), []),
        (GOOD.but(hardware_id=bytes(64)), ["snp.chip_id.certificate_mismatch"]),
        (GOOD.but(hardware_id=bytes(64)).with_fields(flags=2), []),
        (GOOD.with_fields(chip_id=bytes(64)), ["snp.chip_id.certificate_mismatch"]),
        (FakeSnp(product="Turin").with_fields(chip_id=fake_snp.CHIP), ["snp.chip_id.certificate_mismatch"]),
        (GOOD.with_fields(reported_tcb=bytes((4, 1, 0, 0, 0, 0, 24, 218))), ["snp.tcb.certificate_mismatch"]),
        (GOOD.with_fields(reported_tcb=bytes((4, 1, 0, 0, 0, 0, 24, 220))), ["snp.tcb.certificate_mismatch"]),
        (GOOD.but(key_tcb=abi.Tcb(4, 1, 23, 219)), ["snp.tcb.certificate_mismatch"]),
        (GOOD.with_fields(cpuid=bytes((0x19, 0x11, 0))), ["snp.product.mismatch"]),
        (GOOD.with_fields(cpuid=bytes((0x17, 0x31, 0))), ["snp.product.mismatch"]),
        (GOOD.but(product_name="Genoa"), ["snp.product.mismatch", "snp.product.mismatch"]),
    ],
)
def test_authenticity(snp: FakeSnp, expected: list[str]) -> None:
    assert codes(check(snp)) == expected


@pytest.mark.parametrize(
    "offset", [0, 0x50, 0x90, 0x1A0 + 8, 0x29F, 0x2A0, 0x2E8, 0x2A0 + 50, 0x2A0 + 130, 0x3FF, 0x49F]
)
def test_any_changed_byte_of_report_or_signature_is_refused(offset: int) -> None:
    raw = bytearray(GOOD.report())
    raw[offset] ^= 1
    if offset == 0:
        with pytest.raises(BadInput):  # version 2 would be one bit away, 3 ^ 1; its CPUID is unsigned zero there
            abi.parse_report(bytes(raw[:-1]))
    assert "snp.signature.invalid" in codes(check(GOOD, report=bytes(raw)))


def test_sha1_in_a_chain_is_refused() -> None:
    leaf = fake.issue(
        "SEV-VCEK",
        GOOD.key,
        GOOD.ask,
        extensions=GOOD.leaf_extensions,
        scheme=("rsassa", "sha1"),
        algorithm=fake.SHA1_RSA,
    )
    endorsements = verify.read_endorsements([leaf.der, GOOD.ask.der, GOOD.ark.der], [GOOD.crl])
    verified = verify.verify(abi.parse_report(GOOD.report()), endorsements, now=fake.NOW, roots=GOOD.roots)
    assert codes(verified) == ["snp.chain.weak"]


def test_a_root_stands_for_its_own_product_line_only() -> None:
    roots = dict.fromkeys(GOOD.roots, "Genoa")
    assert codes(check(GOOD, roots=roots)) == ["snp.product.mismatch"]


def test_a_vlek_needs_the_vlek_intermediate() -> None:
    snp = FakeSnp(kind="vlek")
    vcek_ask = FakeSnp().ask
    leaf = fake.issue("SEV-VLEK", snp.key, vcek_ask, extensions=snp.leaf_extensions, serial=0, scheme=fake_snp.PSS)
    endorsements = verify.read_endorsements([leaf.der, vcek_ask.der, snp.ark.der], [snp.crl])
    verified = verify.verify(abi.parse_report(snp.report()), endorsements, now=fake.NOW, roots=snp.roots)
    assert codes(verified) == ["snp.chain.constraints"]


def test_the_chain_has_exactly_three_certificates() -> None:
    between = fake.issue(
        "SEV-Milan",
        fake.rsa_key("between"),
        GOOD.ask,
        extensions=fake.ca_extensions(),
        scheme=fake_snp.PSS,
        subject=fake_snp.amd_name("SEV-Milan"),
    )
    open_ask = fake.issue(
        "SEV-Milan",
        fake.rsa_key("SEV-Milan"),
        GOOD.ark,
        extensions=fake.ca_extensions(crl=True),
        scheme=fake_snp.PSS,
        subject=fake_snp.amd_name("SEV-Milan"),
    )
    leaf = fake.issue("SEV-VCEK", GOOD.key, between, extensions=GOOD.leaf_extensions, serial=0, scheme=fake_snp.PSS)
    endorsements = verify.read_endorsements([leaf.der, between.der, open_ask.der, GOOD.ark.der], [GOOD.crl])
    verified = verify.verify(abi.parse_report(GOOD.report()), endorsements, now=fake.NOW, roots=GOOD.roots)
    assert codes(verified) == ["snp.chain.constraints"]


def test_a_root_that_did_not_sign_itself_is_none() -> None:
    """The key is the pinned one, but the name of the issuer, and with it any date, could be anyone's."""
    ark = GOOD.ark.der.replace(b"ARK-Milan", b"ARK-Other", 1)
    endorsements = verify.read_endorsements([GOOD.leaf.der, GOOD.ask.der, ark], [GOOD.crl])
    verified = verify.verify(abi.parse_report(GOOD.report()), endorsements, now=fake.NOW, roots=GOOD.roots)
    assert codes(verified) == ["snp.chain.constraints"]


def test_nothing_that_comes_with_the_evidence_is_a_root() -> None:
    verified = check(GOOD, roots={})
    assert codes(verified) == ["snp.chain.untrusted_root"]
    assert check(GOOD, roots=amd.ROOTS).authentic is False


def test_a_missing_list_is_refused_unless_the_policy_names_it() -> None:
    report, endorsements = abi.parse_report(GOOD.report()), verify.read_endorsements(GOOD.certificates())
    strict = verify.verify(report, endorsements, now=fake.NOW, roots=GOOD.roots)
    assert codes(strict) == ["collateral.crl.missing"]
    other = verify.verify(report, endorsements, now=fake.NOW, roots=GOOD.roots, allow_missing=["azure.crl"])
    assert codes(other) == ["collateral.crl.missing"]
    named = verify.verify(
        report, endorsements, now=fake.NOW, roots=GOOD.roots, allow_missing=[verify.ALLOW_MISSING_CRL]
    )
    assert named.authentic


def test_allowing_a_missing_list_does_not_forgive_a_bad_one() -> None:
    for snp, code in (
        (GOOD.but(revoked=(0x10001,)), "snp.chain.revoked"),
        (GOOD.but(crl_end=fake.NOW - SECOND), "collateral.expired"),
    ):
        assert codes(check(snp, allow_missing=[verify.ALLOW_MISSING_CRL])) == [code]
    forged = fake.revoke(GOOD.ark, scheme=fake_snp.PSS, key=fake.rsa_key("not the ark"))
    endorsements = verify.read_endorsements(GOOD.certificates(), [forged])
    verified = verify.verify(
        abi.parse_report(GOOD.report()),
        endorsements,
        now=fake.NOW,
        roots=GOOD.roots,
        allow_missing=[verify.ALLOW_MISSING_CRL],
    )
    assert codes(verified) == ["collateral.crl.signature_invalid"]


def test_age_of_a_list_is_measured_against_now() -> None:
    assert codes(check(GOOD, max_crl_age=timedelta(days=5))) == []
    assert codes(check(GOOD, max_crl_age=timedelta(days=5) - SECOND)) == ["collateral.too_old"]


def test_the_right_one_of_several_keys_is_found() -> None:
    other = GOOD.but(hardware_id=bytes(64))
    endorsements = verify.read_endorsements([other.leaf.der, *reversed(GOOD.certificates())], [GOOD.crl])
    assert verify.verify(abi.parse_report(GOOD.report()), endorsements, now=fake.NOW, roots=GOOD.roots).authentic


GUIDS = {kind: guid for guid, kind in abi.TABLE_KINDS.items()}


def test_certificates_of_a_table_are_used() -> None:
    auxblob = fake_snp.table(
        {
            GUIDS["vcek"]: GOOD.leaf.der,
            GUIDS["ask"]: GOOD.ask.pem,
            GUIDS["ark"]: GOOD.ark.der,
            "00112233-4455-6677-8899-aabbccddeeff": b"something of the host",
            GUIDS["crl"]: GOOD.crl,
        }
    )
    endorsements = verify.read_endorsements([auxblob])
    assert verify.verify(abi.parse_report(GOOD.report()), endorsements, now=fake.NOW, roots=GOOD.roots).authentic
    assert len(endorsements.certificates) == 3


def test_host_certificates_of_azure_are_used() -> None:
    host = {
        "vcekCert": GOOD.leaf.pem.decode(),
        "certificateChain": (GOOD.ask.pem + GOOD.ark.pem).decode(),
        "tcbm": "04",
    }
    endorsements = verify.read_endorsements([json.dumps(host).encode()], [GOOD.crl])
    assert verify.verify(abi.parse_report(GOOD.report()), endorsements, now=fake.NOW, roots=GOOD.roots).authentic
    for broken in (b"{", b"{}", b'{"vcekCert": 1}', b"{" + bytes(abi.MAX_TABLE)):
        with pytest.raises(BadInput):
            verify.read_endorsements([broken])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (fake_snp.table({GUIDS["vcek"]: b""}, end=False)[:16] + bytes(8), "without a zero GUID"),
        (fake_snp.table({GUIDS["vcek"]: b""}, end=False)[:20], "in the middle of an entry"),
        (fake_snp.table({GUIDS["vcek"]: b"x"})[:-2], "beyond the table"),
        (fake_snp.table({GUIDS["vcek"]: b"x"})[:24] * 2 + bytes(24), "twice"),
        (fake_snp.table({GUIDS["vcek"]: b""})[:24] + bytes(6), "beyond the table"),
        (fake_snp.table({f"{i:08x}-4455-6677-8899-aabbccddeeff": b"" for i in range(1, 20)}), "more than"),
        (bytes(abi.MAX_TABLE + 1), "larger"),
    ],
)
def test_bad_tables_are_refused(table: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        abi.parse_table(table)


@pytest.mark.parametrize(
    ("snp", "rules", "code"),
    [
        (GOOD, {"measurements": ["12" * 48]}, "snp.measurement.not_allowed"),
        (GOOD, {"measurements": []}, "snp.identity.not_demanded"),
        (GOOD, {"id_keys": ["34" * 48]}, "snp.id_key.not_allowed"),
        (GOOD.with_fields(flags=1), {"author_keys": ["35" * 48]}, "snp.author_key.not_allowed"),
        (GOOD, {"author_keys": ["00" * 48]}, "snp.author_key.absent"),
        (GOOD, {"family_ids": ["00" * 16]}, "snp.family_id.not_allowed"),
        (GOOD, {"image_ids": ["00" * 16]}, "snp.image_id.not_allowed"),
        (GOOD, {"host_data": ["00" * 32]}, "snp.host_data.not_allowed"),
        (GOOD, {"report_data": bytes(64)}, "snp.report_data.mismatch"),
        (GOOD, {"minimum_guest_svn": 8}, "snp.guest_svn.too_low"),
        (GOOD.with_fields(vmpl=1), {}, "snp.vmpl.not_allowed"),
        (GOOD.with_fields(policy=fake_snp.POLICY | 1 << 19), {}, "snp.policy.debug"),
        (GOOD.with_fields(policy=fake_snp.POLICY | 1 << 18), {}, "snp.policy.migration_agent"),
        (GOOD.with_fields(policy=fake_snp.POLICY | 1 << 21), {}, "snp.policy.cxl"),
        (GOOD.with_fields(policy=fake_snp.POLICY | 1 << 26), {}, "snp.policy.unknown"),
        (GOOD.with_fields(policy=fake_snp.POLICY | 1 << 63), {}, "snp.policy.unknown"),
        (GOOD.with_fields(platform=0), {"smt": False}, "snp.policy.smt"),
        (GOOD.with_fields(policy=0x2001F), {"smt": False}, "snp.platform.smt"),
        (GOOD, {"minimum_abi": (0, 0x20)}, "snp.policy.abi_too_low"),
        (GOOD, {"demanded_policy": ["ciphertext_hiding_required"]}, "snp.policy.bit_missing"),
        (GOOD, {"demanded_platform": ["tsme_enabled"]}, "snp.platform.bit_missing"),
        (GOOD, {"products": ["Genoa", "Turin"]}, "snp.product.not_allowed"),
        (GOOD, {"minimum_tcb": {"Genoa": abi.Tcb(0, 0, 0, 0)}}, "snp.product.not_allowed"),
        (GOOD, {"signing_keys": ["vlek"]}, "snp.signing_key.not_allowed"),
        (FakeSnp(kind="vlek"), {"csps": ["CN=other"]}, "snp.csp.not_allowed"),
        (GOOD, {"chip_ids": ["00" * 64]}, "snp.chip_id.not_allowed"),
        (FakeSnp(kind="vlek"), {"chip_ids": ["00" * 64]}, "snp.chip_id.masked"),
        (GOOD.with_fields(flags=2), {"chip_ids": [fake_snp.CHIP.hex()]}, "snp.chip_id.masked"),
        (GOOD, {"minimum_version": 4}, "snp.version.too_old"),
        (GOOD, {"minimum_tcb": {"Milan": abi.Tcb(4, 1, 25, 219)}}, "snp.tcb.too_low"),
        (GOOD, {"minimum_firmware": (1, 55, 30)}, "snp.firmware.too_low"),
        (GOOD.with_fields(committed_version=bytes((28, 55, 1))), {}, "snp.firmware.provisional"),
        (GOOD.with_fields(current_tcb=bytes((4, 1, 0, 0, 0, 0, 24, 220))), {}, "snp.firmware.provisional"),
        (FakeSnp(version=5).with_fields(launch_mitigations=4), {"launch_mitigations": 5}, "snp.mitigation.missing"),
        (
            FakeSnp(version=5).with_fields(current_mitigations=4),
            {"current_mitigations": 8},
            "snp.mitigation.missing",
        ),
        (FakeSnp(version=4).with_fields(launch_mitigations=5), {"launch_mitigations": 5}, "snp.mitigation.missing"),
    ],
)
def test_policy_refuses(snp: FakeSnp, rules: dict[str, object], code: str) -> None:
    verdict = judge(snp, **rules)
    assert verdict.authentic
    assert not verdict.acceptable
    assert {reason.code for reason in verdict.refused} == {code}


@pytest.mark.parametrize(
    ("snp", "rules"),
    [
        (GOOD, {"measurements": [], "any_firmware": True}),
        (GOOD, {"measurements": [], "id_keys": ["33" * 48]}),
        (GOOD.with_fields(flags=1), {"measurements": [], "author_keys": ["00" * 48]}),
        (GOOD, {"family_ids": [(bytes(15) + b"\1").hex()], "image_ids": [(bytes(15) + b"\2").hex()]}),
        (GOOD, {"host_data": ["22" * 32], "report_data": bytes(range(64))}),
        (GOOD, {"minimum_guest_svn": 7}),
        (GOOD.with_fields(vmpl=3), {"vmpls": [0, 3]}),
        (GOOD.with_fields(policy=fake_snp.POLICY | 1 << 18), {"migration_agent": True}),
        (GOOD.with_fields(policy=fake_snp.POLICY | 1 << 21), {"cxl": True}),
        (GOOD.with_fields(policy=fake_snp.POLICY | 0xF << 22), {}),
        (GOOD.with_fields(policy=0x2001F, platform=0x24), {"smt": False}),
        (GOOD, {"minimum_abi": (0, 0x1F)}),
        (GOOD.with_fields(policy=fake_snp.POLICY | 1 << 24), {"demanded_policy": ["ciphertext_hiding_required"]}),
        (GOOD, {"demanded_platform": ["ecc_enabled", "alias_check_complete"]}),
        (GOOD, {"products": ["Milan"], "minimum_tcb": {"Milan": abi.Tcb(4, 1, 24, 219)}}),
        (FakeSnp(kind="vlek"), {"csps": ["CN=cc-us-east-2.example.com"]}),
        (GOOD, {"chip_ids": [fake_snp.CHIP.hex()], "signing_keys": ["vcek"]}),
        (GOOD, {"minimum_version": 3, "minimum_firmware": (1, 55, 29)}),
        (GOOD.with_fields(committed_version=bytes((28, 55, 1))), {"provisional_firmware": True}),
        (
            FakeSnp(version=5).with_fields(launch_mitigations=5, current_mitigations=15),
            {"launch_mitigations": 5, "current_mitigations": 8},
        ),
    ],
)
def test_policy_accepts_up_to_the_boundary(snp: FakeSnp, rules: dict[str, object]) -> None:
    verdict = judge(snp, **rules)
    assert verdict.acceptable, verdict.refused


def test_a_forged_report_is_never_acceptable() -> None:
    verified = check(GOOD.but(leaf_signer="somebody"))
    verdict = appraise.appraise(verified, appraise.Rules(any_firmware=True))
    assert (verdict.authentic, verdict.acceptable) == (False, False)
    unsigned = check(GOOD.with_fields(flags=7 << 2))
    assert not appraise.appraise(unsigned, appraise.Rules(any_firmware=True)).acceptable


def test_facts_are_canonical_json_and_the_same_each_time() -> None:
    verified = check(FakeSnp(version=5))
    first, second = (appraise.appraise(verified, RULES) for _ in range(2))
    assert jcs.dumps(first.to_json()) == jcs.dumps(second.to_json())
    assert first.facts["firmware"] == {"current": "1.55.29", "committed": "1.55.29"}
    assert first.facts["policy"] == ["smt_allowed"]
    assert first.facts["cpuid"] == "family 0x19 model 0x01 stepping 1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:-1], "1183 bytes"),
        (lambda raw: raw + b"\0", "1 bytes after"),
        (lambda raw: b"\1" + raw[1:], "version 1"),
        (lambda raw: b"\6" + raw[1:], "version 6"),
        (lambda raw: raw[:10] + b"\0" + raw[11:], "bit 17"),
        (lambda raw: b"", "0 bytes"),
    ],
)
def test_bytes_that_are_no_report_are_refused(change: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        abi.parse_report(change(GOOD.report()))


def test_trailing_bytes_only_within_the_limit_and_a_header_is_taken_off() -> None:
    raw = GOOD.report()
    assert abi.parse_report(raw + bytes(20), max_trailing=20).trailing == 20
    with pytest.raises(BadInput):
        abi.parse_report(raw + bytes(21), max_trailing=20)
    response = bytes(4) + (1184).to_bytes(4, "little") + bytes(24) + raw
    assert abi.parse_report(response).raw == raw


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=1400))
def test_any_bytes_give_a_report_or_the_one_error(data: bytes) -> None:
    for parse in (abi.parse_report, abi.parse_table, lambda d: verify.read_endorsements([d])):
        try:
            parse(data)
        except BadInput:
            continue


@settings(max_examples=120, deadline=None)
@given(st.integers(0, abi.REPORT_BYTES - 1), st.integers(1, 255))
def test_no_mutant_of_a_report_is_authentic(offset: int, change: int) -> None:
    raw = bytearray(GOOD.report())
    raw[offset] ^= change
    try:
        report = abi.parse_report(bytes(raw))
    except BadInput:
        return
    endorsements = verify.read_endorsements(GOOD.certificates(), [GOOD.crl])
    assert not verify.verify(report, endorsements, now=fake.NOW, roots=GOOD.roots).authentic


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2000), st.integers(1, 255))
def test_no_mutant_of_a_certificate_is_accepted(offset: int, change: int) -> None:
    raw = bytearray(GOOD.leaf.der)
    raw[offset % len(raw)] ^= change
    try:
        endorsements = verify.read_endorsements([bytes(raw), GOOD.ask.der, GOOD.ark.der], [GOOD.crl])
    except BadInput:
        return
    assert not verify.verify(
        abi.parse_report(GOOD.report()), endorsements, now=fake.NOW, roots=GOOD.roots
    ).authentic
