# SPDX-License-Identifier: Apache-2.0
"""Azure: every link from hardware report to quote fires its reason, every rule passes just before its boundary."""

from __future__ import annotations

import ast
import json
import re
import struct
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import fake_azure
import fake_x509 as fake
import pytest
from cube_attestation.anchors import microsoft
from cube_attestation.azure import abi, appraise, containers, verify
from cube_attestation.errors import BadInput
from cube_attestation.snp import abi as snp_abi
from cube_attestation.snp import appraise as snp_appraise
from cube_attestation.snp import verify as snp_verify
from cube_attestation.x509 import crl
from fake_azure import FakeAzure
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND = timedelta(seconds=1)
GOOD = FakeAzure()


def hardware(azure: FakeAzure) -> bytes | None:
    """The authentic report data, as the SNP verifier or (here: trusted) the TDX verifier gives it."""
    if azure.tee == "tdx":
        return azure.report_data()
    machine = azure.machine()
    endorsements = snp_verify.read_endorsements(machine.certificates(), [machine.crl])
    report = snp_abi.parse_report(abi.parse_hcl(azure.hcl()).hardware)
    verified = snp_verify.verify(report, endorsements, now=fake.NOW, roots=machine.roots)
    return verified.report.report_data if verified.authentic else None


def check(azure: FakeAzure, **options: object) -> verify.Verified:
    crls = [crl.load(data, where="crl") for data in azure.crls()]
    given_options: dict[str, object] = {
        "hardware_report_data": hardware(azure),
        "now": fake.NOW,
        "nonce": fake_azure.NONCE,
        "roots": fake_azure.roots(),
        "crls": crls,
        "quote": azure.quote(),
        "certificates": azure.certificates(),
        **options,
    }
    quote, certificates = given_options.pop("quote"), given_options.pop("certificates")
    return verify.verify(abi.parse_hcl(azure.hcl()), quote, certificates, **given_options)  # type: ignore[arg-type]


def codes(verified: verify.Verified) -> list[str]:
    return [reason.code for reason in verified.forged]


@pytest.mark.parametrize("tee", ["snp", "tdx"])
@pytest.mark.parametrize("hash_type", [1, 2, 3])
@pytest.mark.parametrize("version", [1, 2])
def test_every_variant_passes(tee: str, hash_type: int, version: int) -> None:
    azure = GOOD.but(tee=tee, hash_type=hash_type, version=version)
    verified = check(azure)
    assert codes(verified) == []
    items = appraise.appraise(verified, appraise.Rules())
    assert all(item.acceptable for item in items), items
    assert [item.item for item in items] == ["hcl-report", "tpm-quote", "ak-certificate"]
    assert items[0].facts["vm_id"] == "3c18c97a-0d2a-4565-969d-166cdcef26a3"


@pytest.mark.parametrize(
    ("azure", "expected"),
    [
        # another machine's claims, and claims of the attacker's own: nothing vouches for their key
        (
            GOOD.but(bound_to=b"other claims"),
            {"azure.hcl.unbound_claims", "azure.hcl.unbound_key", "azure.ak_certificate.key_mismatch"},
        ),
        (
            GOOD.but(snp=GOOD.snp.but(leaf_signer="attacker")),
            {"azure.hcl.unbound_claims", "azure.hcl.unbound_key", "azure.ak_certificate.key_mismatch"},
        ),
        (
            GOOD.but(tee="tdx", td_report_data=bytes(64)),
            {"azure.hcl.td_report_mismatch", "azure.hcl.unbound_key", "azure.ak_certificate.key_mismatch"},
        ),
        (
            GOOD.but(raw_claims=b"{}"),
            {"azure.claims.malformed", "azure.hcl.unbound_key", "azure.ak_certificate.key_mismatch"},
        ),
        # a quote by Microsoft's certified key that the claims do not name
        (GOOD.but(claims_key="AK of the attacker"), {"azure.hcl.unbound_key", "azure.ak_certificate.key_mismatch"}),
        (GOOD.but(quote_key="nobody's"), {"tpm.quote.signature_invalid"}),
        (GOOD.but(certificate_key="another AK"), {"azure.ak_certificate.key_mismatch"}),
        (
            GOOD.but(certificate_key="another AK", quote_key="another AK"),
            {"azure.ak_certificate.key_mismatch", "azure.hcl.unbound_key"},
        ),
        (GOOD.but(nonce=bytes(32)), {"tpm.quote.nonce_mismatch"}),
        (GOOD.but(eku=("2.23.133.8.1",)), {"azure.ak_certificate.usage"}),
        (GOOD.but(eku=()), {"azure.ak_certificate.usage"}),
        (GOOD.but(leaf_end=fake.NOW - SECOND), {"azure.ak_chain.expired"}),
        (GOOD.but(leaf_end=fake.NOW), set()),
        (GOOD.but(leaf_start=fake.NOW + SECOND), {"azure.ak_chain.not_yet_valid"}),
        (GOOD.but(leaf_start=fake.NOW), set()),
        (GOOD.but(ca24_revoked=True), {"azure.ak_chain.revoked"}),
        (GOOD.but(crl_end=fake.NOW - SECOND), {"collateral.expired"}),
        (GOOD.but(crl_end=fake.NOW), set()),
        (GOOD.but(crl_start=fake.NOW + SECOND), {"collateral.not_yet_valid"}),
    ],
)
def test_authenticity(azure: FakeAzure, expected: set[str]) -> None:
    assert set(codes(check(azure))) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"hardware_report_data": None}, "azure.hcl.unbound_claims"),
        ({"hardware_report_data": bytes(64)}, "azure.hcl.unbound_claims"),
        ({"roots": []}, "azure.ak_chain.untrusted_root"),
        ({"roots": microsoft.VTPM_ROOTS}, "azure.ak_chain.untrusted_root"),
        ({"crls": []}, "collateral.crl.missing"),
        ({"certificates": []}, "collateral.ak_certificate.missing"),
        ({"certificates": [b""]}, "collateral.ak_certificate.missing"),
        ({"certificates": [b"\x30\x03abc"]}, "azure.ak_certificate.malformed"),
        ({"certificates": [GOOD.ak_certificate().der + b"\0\1"]}, "azure.ak_certificate.malformed"),
        ({"certificates": [GOOD.ak_certificate().der]}, "azure.ak_chain.untrusted_root"),
        ({"max_crl_age": timedelta(days=4)}, "collateral.too_old"),
        ({"quote": verify.VtpmQuote(b"", GOOD.quote().signature, {})}, "tpm.quote.malformed"),
    ],
)
def test_what_is_missing_or_foreign_is_refused(options: dict[str, object], expected: str) -> None:
    assert expected in codes(check(GOOD, **options))


def test_a_certificate_by_another_authority_does_not_count() -> None:
    root = fake.issue("Fake vTPM Root", fake.rsa_key("impostor"), extensions=fake.ca_extensions())
    leaf = fake.issue("AK", fake.rsa_key("AK"), root, extensions=[fake.extended_key_usage(*fake_azure.EKU)])
    assert codes(check(GOOD, certificates=[leaf.der, root.der])) == ["azure.ak_chain.untrusted_root"]


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (
            fake.issue("AK", fake.rsa_key("AK"), replace(fake_azure.chain()[2], key=fake.rsa_key("x"))),
            "signature_invalid",
        ),
        (
            fake.issue(
                "AK",
                fake.rsa_key("AK"),
                fake_azure.chain()[2],
                extensions=[fake.extension("1.2.3.4", b"", critical=True)],
            ),
            "constraints",
        ),
        (
            fake.issue(
                "AK",
                fake.rsa_key("AK"),
                fake_azure.chain()[2],
                scheme=("rsassa", "sha1"),
                algorithm=fake.SHA1_RSA,
            ),
            "weak",
        ),
    ],
)
def test_a_bad_chain_says_what_is_bad(leaf: fake.Issued, expected: str) -> None:
    found = codes(check(GOOD, certificates=[leaf.der, GOOD.certificates()[1]]))
    chain = {"azure.ak_chain.signature_invalid", "azure.ak_chain.constraints", "azure.ak_chain.weak"}
    assert chain & {*found} == {f"azure.ak_chain.{expected}"}


def test_missing_parts_may_be_named() -> None:
    assert codes(check(GOOD, crls=[], allow_missing=[verify.ALLOW_MISSING_CRL])) == []
    assert codes(check(GOOD, certificates=[], allow_missing=[verify.ALLOW_MISSING_AK_CERTIFICATE])) == []
    assert codes(check(GOOD, crls=[], allow_missing=["snp.crl"])) == ["collateral.crl.missing"] * 2


def test_other_pcr_values_are_refused() -> None:
    quote = GOOD.quote()
    pcrs = {**quote.pcrs["sha256"], 11: bytes(32)}
    changed = verify.VtpmQuote(quote.attest, quote.signature, {"sha256": pcrs})
    assert codes(check(GOOD, quote=changed)) == ["tpm.quote.pcr_digest_mismatch"]
    del pcrs[11]
    assert codes(check(GOOD, quote=changed)) == ["tpm.quote.pcr_digest_mismatch"]


def test_without_an_expected_nonce_none_is_compared() -> None:
    assert codes(check(GOOD.but(nonce=b"whatever it is"), nonce=None)) == []


@pytest.mark.parametrize(
    ("vm", "rules", "code"),
    [
        ({"console-enabled": True}, {}, "azure.console.enabled"),
        ({"console-enabled": True}, {"console": "output"}, "azure.console.enabled"),
        (
            {"console-enabled": True, "interactive-console-enabled": True},
            {"console": "output"},
            "azure.console.enabled",
        ),
        ({"console-enabled": True, "interactive-console-enabled": False}, {}, "azure.console.enabled"),
        ({"ipmi-enabled": True}, {}, "azure.ipmi.enabled"),
        ({"secure-boot": False}, {}, "azure.secure_boot.disabled"),
        ({"tpm-enabled": False}, {}, "azure.tpm.disabled"),
        ({}, {"persisted_tpm": False}, "azure.tpm.persisted"),
        ({"filtered-vpci-devices-allowed": True}, {}, "azure.vpci.allowed"),
        ({}, {"vm_ids": ["another"]}, "azure.vm_id.not_allowed"),
        ({}, {"root_certificates": ["6nZZ"]}, "azure.root_certificate.not_allowed"),
        ({}, {"user_data": b"\1" * 64}, "azure.user_data.mismatch"),
    ],
)
def test_policy_refuses(vm: dict[str, object], rules: dict[str, object], code: str) -> None:
    hcl, quote, _ = appraise.appraise(check(GOOD.but(vm=vm)), appraise.Rules(**rules))  # type: ignore[arg-type]
    assert hcl.authentic
    assert [reason.code for reason in hcl.refused] == [code]
    assert quote.acceptable


@pytest.mark.parametrize(
    ("azure", "rules"),
    [
        (GOOD.but(vm={"console-enabled": True}), {"console": "interactive"}),
        (GOOD.but(vm={"console-enabled": True, "interactive-console-enabled": False}), {"console": "output"}),
        (GOOD.but(vm={"interactive-console-enabled": True}), {}),
        (GOOD.but(vm={"ipmi-enabled": True}), {"ipmi": True}),
        (GOOD.but(vm={"secure-boot": False}), {"secure_boot": False}),
        (GOOD.but(vm={"tpm-enabled": False}), {"tpm": False}),
        (GOOD.but(vm={"tpm-persisted": False}), {"persisted_tpm": False}),
        (GOOD.but(vm={"filtered-vpci-devices-allowed": True}), {"filtered_vpci_devices": True}),
        (GOOD.but(dropped_vm=("filtered-vpci-devices-allowed", "tpm-persisted", "root-cert-thumbprint")), {}),
        (GOOD, {"vm_ids": ["3c18c97a-0d2a-4565-969d-166cdcef26a3"], "root_certificates": [""]}),
        (GOOD, {"user_data": bytes(64)}),
    ],
)
def test_policy_accepts_up_to_the_boundary(azure: FakeAzure, rules: dict[str, object]) -> None:
    items = appraise.appraise(check(azure), appraise.Rules(**rules))  # type: ignore[arg-type]
    assert all(item.acceptable for item in items), items


def test_firmware_of_somebody_else_is_no_paravisor() -> None:
    """A fake HCL that vouches for its own AK: correctly signed by the processor, but under another ID key."""
    machine = GOOD.machine()
    endorsements = snp_verify.read_endorsements(machine.certificates(), [machine.crl])
    report = snp_abi.parse_report(machine.report())
    verified = snp_verify.verify(report, endorsements, now=fake.NOW, roots=machine.roots)
    verdict = snp_appraise.appraise(verified, appraise.paravisor_rules(0))
    assert [reason.code for reason in verdict.reasons] == ["snp.id_key.not_allowed"]
    own = appraise.paravisor_rules(7, id_keys=["33" * 48])
    assert snp_appraise.appraise(verified, own).acceptable
    older = appraise.paravisor_rules(8, id_keys=["33" * 48])
    assert [r.code for r in snp_appraise.appraise(verified, older).reasons] == ["snp.guest_svn.too_low"]


def _put(raw: bytes, at: int, value: int) -> bytes:
    return raw[:at] + struct.pack("<I", value) + raw[at + 4 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:1000], "at least"),
        (lambda raw: b"HCLB" + raw[4:], "HCLA"),
        (lambda raw: _put(raw, 4, 3), "version 3"),
        (lambda raw: _put(raw, 8, 2000), "contradict"),
        (lambda raw: _put(raw, 12, 1), "request type 1"),
        (lambda raw: _put(raw, 16, 1), "status"),
        (lambda raw: _put(raw, 28, 1), "status"),
        (lambda raw: _put(raw, 0x4C0, 2000), "contradict"),
        (lambda raw: _put(raw, 0x4C4, 2), "runtime data version 2"),
        (lambda raw: _put(raw, 0x4C8, 3), "report type 3"),
        (lambda raw: _put(raw, 0x4C8, 4), "no TDREPORT"),
        (lambda raw: _put(raw, 0x4CC, 4), "hash type 4"),
        (lambda raw: _put(raw, 0x4D0, 10), "contradict"),
        (lambda raw: raw[:-1] + b"\1", "after the claims"),
        (lambda raw: raw[:1300], "the claims end"),
        (lambda raw: raw + bytes(70000), "larger"),
    ],
)
def test_bytes_that_are_no_hcl_report_are_refused(change: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        abi.parse_hcl(change(GOOD.hcl()))


def _claims(**changes: object) -> bytes:
    return json.dumps({**json.loads(GOOD.claims_bytes()), **changes}).encode()


JWK = fake_azure.jwk("HCLAkPub", fake.rsa_key("AK"))


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "expected an object"),
        (_claims(keys=[]), "no key HCLAkPub"),
        (_claims(keys=[JWK, JWK]), "twice"),
        (_claims(keys=[{**JWK, "kty": "EC"}]), "kty"),
        (_claims(keys=[{**JWK, "n": "AQAB"}]), "modulus"),
        (_claims(keys=[{**JWK, "n": "*"}]), "base64url"),
        (_claims(keys=[{**JWK, "n": "A" * 800}]), "longer"),
        (_claims(keys=[{**JWK, "n": "A" * 344}]), "modulus"),
        (_claims(keys=[{**JWK, "e": "AQ"}]), "exponent 1"),
        (_claims(**{"user-data": "00"}), "1 bytes"),
        (_claims(**{"user-data": "zz" * 64}), "not hex"),
        (_claims(**{"vm-configuration": {"secure-boot": True, "tpm-enabled": True}}), "console-enabled"),
        (_claims(**{"vm-configuration": []}), "expected an object"),
        (GOOD.claims_bytes() + b"\0", "not JSON"),
    ],
)
def test_bad_claims_are_refused(claims: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        abi.parse_claims(claims)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_give_a_value_or_the_one_error(data: bytes) -> None:
    for parse in (
        abi.parse_hcl,
        abi.parse_claims,
        abi.parse_signature,
        containers.read,
        containers.read_bincode_quote,
    ):
        try:
            parse(data)
        except BadInput:
            continue


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2599), st.integers(1, 255))
def test_no_mutant_of_an_hcl_report_is_authentic(offset: int, change: int) -> None:
    raw = bytearray(HCL)
    raw[offset] ^= change
    try:
        report = abi.parse_hcl(bytes(raw))
        hardware_report = snp_abi.parse_report(report.hardware)
    except BadInput:
        return
    machine = GOOD.machine()
    endorsements = snp_verify.read_endorsements(machine.certificates(), [machine.crl])
    snp = snp_verify.verify(hardware_report, endorsements, now=fake.NOW, roots=machine.roots)
    data = snp.report.report_data if snp.authentic else None
    verified = verify.verify(
        report,
        GOOD.quote(),
        GOOD.certificates(),
        hardware_report_data=data,
        now=fake.NOW,
        roots=fake_azure.roots(),
        allow_missing=[verify.ALLOW_MISSING_CRL],
    )
    assert verified.forged


HCL = GOOD.hcl()


def test_containers_of_other_projects() -> None:
    quote = GOOD.quote()
    evidence = {
        "quote": {
            "message": list(quote.attest),
            "signature": quote.signature.value.hex(),
            "pcrs": [value.hex() for value in quote.pcrs["sha256"].values()],
        },
        "report": urlsafe_b64encode(HCL).decode(),
        "vcek": GOOD.machine().leaf.pem.decode(),
    }
    found = containers.read(json.dumps(evidence).encode())
    assert (found.hcl, found.quote) == (HCL, quote)
    counted = (len(b).to_bytes(8, "little") + b for b in (quote.signature.value, quote.attest))
    stored = b"".join(counted) + (24).to_bytes(8, "little") + b"".join(quote.pcrs["sha256"].values())
    assert containers.read_bincode_quote(stored) == quote
    for wrong in (stored[:-1], stored + b"\0", stored[:7], b"\xff" * 8):
        with pytest.raises(BadInput):
            containers.read_bincode_quote(wrong)
    broken: dict[str, object]
    for broken in ({"quote": []}, {"report": [256], "quote": {}}, {**evidence, "quote": {"pcrs": [[1]]}}):
        with pytest.raises(BadInput):
            containers.read(json.dumps(broken).encode())


def test_every_code_of_snp_and_azure_is_documented_and_asserted() -> None:
    """The table is complete in both directions, and each code is what some test here expects."""
    code = re.compile(r"(snp|azure|collateral)\.[a-z_]+(\.[a-z_]+)?")

    def literals(files: Iterable[Path]) -> set[str]:
        nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
        found = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        return {text for text in found if code.fullmatch(text)} - {
            verify.ALLOW_MISSING_CRL,
            snp_verify.ALLOW_MISSING_CRL,
        }

    package = Path(abi.__file__).parents[1]
    emitted = literals(file for room in ("snp", "azure", "x509") for file in (package / room).glob("*.py"))
    here = Path(__file__).parent
    asserted = literals([here / name for name in ("test_snp.py", "test_azure.py", "test_azure_items.py")])
    table = (here.parents[1] / "docs" / "reason-codes.md").read_text()
    documented = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", table, flags=re.MULTILINE))
    assert emitted - documented == set(), "codes without a row"
    ours = {row for row in documented if row.startswith(("snp.", "azure."))}
    assert ours - emitted == set(), "rows without a code"
    assert emitted - asserted - {*appraise.ASSUMPTIONS} == set(), "codes that no test expects"
