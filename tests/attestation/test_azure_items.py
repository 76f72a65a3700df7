# SPDX-License-Identifier: Apache-2.0
"""SNP and Azure as items of a bundle: bound to the claims, each malformed or missing part a reason of its item."""

from __future__ import annotations

import struct
from base64 import b64encode
from dataclasses import replace

import fake_azure
import fake_snp
import fake_tdx
import fake_x509 as fake
import fakepki
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cube_attestation import bundle as bundles
from cube_attestation import jcs, manifest
from cube_attestation.azure import appraise as azure_appraise
from cube_attestation.azure.items import LABELS, appraise_azure
from cube_attestation.azure.policy import AzurePolicy
from cube_attestation.azure.policy import read_policy as read_azure
from cube_attestation.cmw import Collection
from cube_attestation.describe import describe
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields, decode_base64, encode_base64
from cube_attestation.snp import appraise as snp_appraise
from cube_attestation.snp.items import LABELS as SNP_LABELS
from cube_attestation.snp.items import appraise_snp
from cube_attestation.snp.policy import SnpPolicy
from cube_attestation.snp.policy import read_policy as read_snp
from cube_attestation.subject import Outcome, Subject
from cube_attestation.tdx.collateral import Signed
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.tpm import abi as tpm
from cube_attestation.verdict import Verdict
from cube_attestation.verifier import verify

AZURE = fake_azure.FakeAzure()
WORLD = fakepki.World()
SNP = fake_snp.FakeSnp().with_fields(report_data=WORLD.claims().report_data())
AZURE_POLICY = AzurePolicy(
    paravisor=azure_appraise.paravisor_rules(7, id_keys=["33" * 48]), roots=tuple(fake_azure.roots())
)
SNP_POLICY = SnpPolicy(rules=snp_appraise.Rules(id_keys=["33" * 48]), roots=SNP.roots)


def rsa_public() -> bytes:
    """TPMT_PUBLIC of the AK: restricted RSASSA signing key."""
    modulus = fake.rsa_key("AK").public_key().public_numbers().n.to_bytes(256, "big")
    head = struct.pack(">HHI", tpm.ALG_RSA, tpm.ALG_SHA256, fakepki.AK_ATTRIBUTES) + tpm.sized(b"")
    return head + struct.pack(">HHHHI", tpm.ALG_NULL, tpm.ALG_RSASSA, tpm.ALG_SHA256, 2048, 0) + tpm.sized(modulus)


def requoted(item: bytes, role: str = "AK") -> bytes:
    """The ``tpm-quote`` item signed by an RSA key."""
    value = jcs.loads(item)
    assert isinstance(value, dict)
    attest = decode_base64(str(value["attest"]), where="attest")
    signature = fake.rsa_key(role).sign(attest, padding.PKCS1v15(), hashes.SHA256())
    encoded = struct.pack(">HH", tpm.ALG_RSASSA, tpm.ALG_SHA256) + tpm.sized(signature)
    changes = {"signature": encode_base64(encoded), "ak_public": encode_base64(rsa_public())}
    return jcs.dumps({**value, **changes})


def azure_items(azure: fake_azure.FakeAzure = AZURE, role: str = "AK") -> dict[str, bytes]:
    der, issuers = azure.certificates()
    machine = azure.machine()
    ak = b"-----BEGIN CERTIFICATE-----\n" + b64encode(der) + b"\n-----END CERTIFICATE-----\n"
    return {
        "azure-hcl": azure.hcl(),
        "azure-ak-chain": ak + issuers,
        "azure-crls": b"".join(pem_list(data) for data in azure.crls()),
        "snp-certificates": b"".join(c if c.startswith(b"-") else machine.leaf.pem for c in machine.certificates()),
        "snp-crl": machine.crl,
        "tpm-quote": requoted(WORLD.quote(), role),
    }


def pem_list(data: bytes) -> bytes:
    return b"-----BEGIN X509 CRL-----\n" + b64encode(data) + b"\n-----END X509 CRL-----\n"


def subject(items: dict[str, bytes], *, drop: tuple[str, ...] = (), claims: bool = True) -> Subject:
    kept = {k: v for k, v in WORLD.evidence().items.items() if not k.startswith(("ek-", "ak-"))}
    collection = Collection(kept)
    for label, value in items.items():
        media = {**SNP_LABELS, **LABELS, "tpm-quote": "application/vnd.cube.tpm-quote+json"}[label]
        collection = collection.with_item(label, media, value)
    collection = Collection({k: v for k, v in collection.items.items() if k not in drop})
    return Subject(
        evidence=bundles.load(bundles.dump(bundles.Bundle(collection))).evidence,
        policy=WORLD.the_policy(),
        now=fakepki.NOW,
        claims=WORLD.claims() if claims else None,
        launch_payload=jcs.dumps(WORLD.launch),
        manifest=manifest.parse(WORLD.manifest_payload()),
    )


def codes(outcome: Outcome) -> set[str]:
    return {reason.code for item in outcome.items for reason in item.reasons}


def judge(given: Subject, policy: AzurePolicy = AZURE_POLICY) -> Outcome:
    return appraise_azure(given, policy, snp=SNP_POLICY, tdx=TdxPolicy())


def test_a_whole_machine_passes() -> None:
    outcome = judge(subject(azure_items()))
    assert codes(outcome) == set()
    assert outcome.tier == "hardware-paravisor"
    assert "azure.paravisor_trusted" in outcome.assumptions
    names = [item.item for item in outcome.items]
    assert names == ["snp-report", "azure-hcl", "tpm-quote", "azure-ak-chain", "tcg-eventlog"]
    assert all(jcs.dumps(item.to_json()) for item in outcome.items)


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        (("azure-hcl",), {"azure.hcl.malformed"}),
        (("azure-ak-chain",), {"collateral.ak_certificate.missing"}),
        (("azure-crls",), {"collateral.crl.missing"}),
        (("snp-crl",), {"collateral.crl.missing"}),
        (("tpm-quote",), {"tpm.quote.missing"}),
        (("tcg-eventlog",), {"tpm.eventlog.missing"}),
        (("snp-certificates",), {"collateral.vcek.missing"}),
    ],
)
def test_what_is_left_out_is_a_reason(drop: tuple[str, ...], expected: set[str]) -> None:
    outcome = judge(subject(azure_items(), drop=drop))
    assert expected <= codes(outcome)
    assert drop == ("tcg-eventlog",) or outcome.tier == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"azure-hcl": b"HCLA"}, "azure.hcl.malformed"),
        ({"azure-ak-chain": b"x"}, "azure.ak_certificate.malformed"),
        ({"azure-crls": b"x"}, "collateral.crl.malformed"),
        ({"snp-certificates": b"x"}, "snp.report.malformed"),
        ({"tpm-quote": b"{}"}, "tpm.quote.malformed"),
        ({"tpm-quote": requoted(WORLD.quote(), "nobody's")}, "tpm.quote.signature_invalid"),
        ({"tpm-quote": WORLD.quote()}, "azure.hcl.unbound_key"),
        ({"tpm-quote": requoted(WORLD.quote(bytes(32)))}, "tpm.quote.nonce_mismatch"),
    ],
)
def test_what_is_changed_is_a_reason(changes: dict[str, bytes], expected: str) -> None:
    outcome = judge(subject({**azure_items(), **changes}))
    assert expected in codes(outcome)
    assert outcome.tier == ""


def test_a_quote_needs_claims() -> None:
    outcome = judge(subject(azure_items(), claims=False))
    assert "tpm.quote.nonce_mismatch" in codes(outcome)
    assert outcome.tier == ""


def test_rules_of_every_part_are_applied() -> None:
    console = judge(subject(azure_items(AZURE.but(vm={"console-enabled": True}))))
    assert codes(console) == {"azure.console.enabled"}
    assert console.tier == "hardware-paravisor"
    section = replace(azure_section(), roots=AZURE_POLICY.roots)
    assert codes(judge(subject(azure_items()), section)) == {"snp.id_key.not_allowed"}
    nothing = AzurePolicy(roots=AZURE_POLICY.roots)
    assert codes(judge(subject(azure_items()), nothing)) == {"snp.identity.not_demanded"}


def td_items(azure: fake_azure.FakeAzure, report_data: bytes) -> dict[str, bytes]:
    """The machine as a TD, its quote over ``report_data`` and Intel's collateral."""
    td = fake_tdx.FakeTdx(td={"report_data": report_data})
    given = td.collateral()
    assert given.tcb_info is not None
    assert given.qe_identity is not None
    return {
        **{label: value for label, value in azure_items(azure).items() if not label.startswith("snp-")},
        "tdx-quote": td.quote(),
        "tdx-tcb-info": signed_body("tcbInfo", given.tcb_info),
        "tdx-tcb-info-chain": given.tcb_info_chain,
        "tdx-qe-identity": signed_body("enclaveIdentity", given.qe_identity),
        "tdx-qe-identity-chain": given.qe_identity_chain,
        "tdx-root-crl": given.root_crl or b"",
        "tdx-pck-crl": given.pck_crl or b"",
    }


def signed_body(member: str, signed: Signed) -> bytes:
    return b'{"%b":%b,"signature":"%b"}' % (member.encode(), signed.content, signed.signature.hex().encode())


def test_a_td_rests_on_its_quote() -> None:
    azure = AZURE.but(tee="tdx")
    tdx = TdxPolicy(roots=fake_tdx.FakeTdx().anchors)
    good = appraise_azure(subject(td_items(azure, azure.report_data())), AZURE_POLICY, snp=SNP_POLICY, tdx=tdx)
    assert (codes(good), good.tier) == (set(), "hardware-paravisor")
    assert [item.item for item in good.items][:2] == ["tdx-quote", "azure-hcl"]
    other = appraise_azure(subject(td_items(azure, bytes(64))), AZURE_POLICY, snp=SNP_POLICY, tdx=tdx)
    assert "azure.hcl.td_report_mismatch" in codes(other)
    foreign = appraise_azure(
        subject(td_items(azure, azure.report_data())), AZURE_POLICY, snp=SNP_POLICY, tdx=TdxPolicy()
    )
    assert {"tdx.chain.untrusted_root", "azure.hcl.unbound_claims"} <= codes(foreign)
    missing = subject(td_items(azure, azure.report_data()), drop=("tdx-quote",))
    absent = appraise_azure(missing, AZURE_POLICY, snp=SNP_POLICY, tdx=tdx)
    assert {"tdx.quote.missing", "azure.hcl.unbound_claims"} <= codes(absent)
    assert (other.tier, foreign.tier, absent.tier) == ("", "", "")


def snp_items(snp: fake_snp.FakeSnp = SNP) -> dict[str, bytes]:
    certificates = snp.leaf.pem + snp.ask.pem + snp.ark.pem
    return {"snp-report": snp.report(), "snp-certificates": certificates, "snp-crl": snp.crl}


def test_a_report_over_the_claims_passes() -> None:
    outcome = appraise_snp(subject(snp_items()), SNP_POLICY)
    assert (codes(outcome), outcome.tier) == (set(), "hardware")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"snp-report": SNP.with_fields(report_data=bytes(64)).report()}, "snp.report_data.unbound"),
        ({"snp-report": b"x"}, "snp.report.malformed"),
        ({"snp-report": SNP.report() + b"\0"}, "snp.report.malformed"),
        ({"snp-crl": b"x"}, "snp.report.malformed"),
    ],
)
def test_a_bad_report_is_a_reason(changes: dict[str, bytes], expected: str) -> None:
    outcome = appraise_snp(subject({**snp_items(), **changes}), SNP_POLICY)
    assert (codes(outcome), outcome.tier) == ({expected}, "")


def test_a_missing_report_is_a_reason() -> None:
    assert codes(appraise_snp(subject(snp_items(), drop=("snp-report",)), SNP_POLICY)) == {"snp.report.missing"}
    assert codes(appraise_snp(subject(snp_items(), claims=False), SNP_POLICY)) == {"snp.report_data.unbound"}


def snp_section(**members: object) -> SnpPolicy:
    return read_snp(Fields(members, "policy.snp"))


def azure_section(**members: object) -> AzurePolicy:
    return read_azure(Fields({"minimum_guest_svn": 7, **members}, "policy.azure"))


def test_an_empty_section_accepts_nothing() -> None:
    policy = snp_section()
    assert policy == SnpPolicy()
    assert codes(appraise_snp(subject(snp_items()), replace(policy, roots=SNP.roots))) == {
        "snp.identity.not_demanded"
    }


def test_every_member_of_the_snp_section() -> None:
    root = "sha256:" + "ab" * 32
    policy = snp_section(
        measurements=["11" * 48],
        id_keys=["33" * 48],
        family_ids=["00" * 16],
        host_data=["22" * 32],
        chip_ids=["00" * 64],
        any_firmware=False,
        smt=False,
        minimum_guest_svn=3,
        minimum_version=3,
        products=["Genoa", "Turin"],
        signing_keys=["vcek"],
        demanded_policy=["ciphertext_hiding_required"],
        demanded_platform=["alias_check_complete"],
        csps=["CN=x"],
        vmpls=[0, 1],
        minimum_firmware="1.55.29",
        minimum_tcb={"Turin": {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 5}},
        roots={root: "Milan"},
        allow_missing=["snp.crl"],
        max_crl_age_days=30,
    )
    assert policy.rules.minimum_firmware == (1, 55, 29)
    assert policy.rules.minimum_tcb["Turin"].fmc == 1
    assert (policy.roots, policy.rules.vmpls, policy.rules.smt) == ({root: "Milan"}, (0, 1), False)
    assert policy.max_crl_age is not None
    assert policy.max_crl_age.days == 30


@pytest.mark.parametrize(
    ("members", "where"),
    [
        ({"measurement": []}, "policy.snp"),
        ({"measurements": []}, "measurements"),
        ({"measurements": ["11"]}, "measurements"),
        ({"id_keys": ["33" * 48, "33" * 48]}, "id_keys"),
        ({"products": ["Rome"]}, "products"),
        ({"vmpls": [4]}, "vmpls"),
        ({"minimum_firmware": "1.55"}, "minimum_firmware"),
        ({"minimum_tcb": {"Rome": {}}}, "minimum_tcb"),
        ({"minimum_tcb": {"Milan": {"bootloader": 1}}}, "tee"),
        ({"minimum_tcb": {"Milan": {"bootloader": 1, "tee": 0, "snp": 0, "microcode": 0, "fmc": 1}}}, "Milan"),
        ({"roots": {"sha256:1": "Milan"}}, "digest"),
        ({"allow_missing": ["everything"]}, "allow_missing"),
        ({"demanded_policy": ["debug_allowed"]}, "demanded_policy"),
        ({"max_crl_age_days": 0}, "max_crl_age_days"),
    ],
)
def test_bad_snp_sections_name_the_member(members: dict[str, object], where: str) -> None:
    with pytest.raises(BadInput) as error:
        snp_section(**members)
    assert where in error.value.where


def test_every_member_of_the_azure_section() -> None:
    policy = azure_section(
        console="output",
        ipmi=True,
        secure_boot=False,
        tpm=True,
        persisted_tpm=False,
        filtered_vpci_devices=True,
        vm_ids=["3c18c97a-0d2a-4565-969d-166cdcef26a3"],
        root_certificates=[""],
        user_data="00" * 64,
        id_keys=["33" * 48],
        roots=["sha256:" + "ab" * 32],
        allow_missing=["azure.crl", "azure.ak-certificate"],
        provisional_firmware=True,
        max_crl_age_days=1,
    )
    assert (policy.rules.console, policy.rules.secure_boot, policy.rules.user_data) == ("output", False, bytes(64))
    assert (policy.paravisor.minimum_guest_svn, policy.paravisor.provisional_firmware) == (7, True)


@pytest.mark.parametrize(
    ("members", "where"),
    [
        ({"consoles": True}, "policy.azure"),
        ({"console": "yes"}, "console"),
        ({"id_keys": []}, "policy.azure"),
        ({"roots": []}, "policy.azure"),
        ({"vm_ids": ["UPPER"]}, "vm_ids"),
        ({"allow_missing": ["snp.crl"]}, "allow_missing"),
        ({"minimum_guest_svn": -1}, "minimum_guest_svn"),
    ],
)
def test_bad_azure_sections_name_the_member(members: dict[str, object], where: str) -> None:
    with pytest.raises(BadInput) as error:
        azure_section(**members)
    assert where in error.value.where


def test_the_least_guest_svn_has_to_be_named() -> None:
    with pytest.raises(BadInput, match="is missing"):
        read_azure(Fields({}, "policy.azure"))


def whole(items: dict[str, bytes], **policy: str) -> Verdict:
    """The verdict over a whole bundle under a policy file."""
    quoted = '["' + '", "'.join(fake_azure.roots()) + '"]'
    sections = {
        "lowest_tier": '"hardware-paravisor"',
        "tpm.ek_roots": "",
        "tpm.ak_issuers": "",
        "azure.minimum_guest_svn": "7",
        "azure.id_keys": f'["{"33" * 48}"]',
        "azure.roots": quoted,
        "snp.roots": "{" + ", ".join(f'"{digest}" = "{line}"' for digest, line in SNP.roots.items()) + "}",
        **policy,
    }
    world = replace(WORLD, policy=sections)
    bundle = bundles.Bundle(subject(items).evidence)
    return verify(bundle, world.the_policy(), now=fakepki.NOW, nonce=world.nonce, tls_spki=world.tls_spki)


def test_a_bundle_of_an_azure_machine_passes_under_its_policy_only() -> None:
    verdict = whole(azure_items())
    assert (verdict.codes, verdict.tier, verdict.exit_code) == ((), "hardware-paravisor", 0)
    assert "azure.paravisor_trusted" in verdict.assumptions
    without = whole(azure_items(), **{"azure.minimum_guest_svn": "", "azure.id_keys": "", "azure.roots": ""})
    assert {"snp.identity.not_demanded", "azure.ak_chain.untrusted_root"} <= {*without.codes}
    higher = whole(azure_items(), lowest_tier='"hardware"')
    assert higher.codes == ("policy.tier.too_low",)
    foreign = whole({**azure_items(), "tpm-quote": WORLD.quote()})
    assert "azure.hcl.unbound_key" in foreign.codes
    assert foreign.tier == ""


def test_a_software_tpm_does_not_pass_for_a_confidential_machine() -> None:
    world = replace(WORLD, policy={"lowest_tier": '"hardware-paravisor"'})
    bundle = bundles.Bundle(WORLD.evidence())
    verdict = verify(bundle, world.the_policy(), now=fakepki.NOW, nonce=world.nonce)
    assert verdict.codes == ("policy.tier.too_low",)


def test_a_bundle_of_an_snp_machine() -> None:
    rules = {"snp.id_keys": f'["{"33" * 48}"]', "lowest_tier": '"hardware"', "tpm.pcrs": "[4, 8, 9, 11]"}
    verdict = whole(snp_items(), **rules)
    assert "snp-report" in [item.item for item in verdict.items if item.acceptable]
    assert verdict.tier == "hardware"


def test_roots_of_the_tpm_may_be_left_out_only_where_hardware_vouches() -> None:
    assert whole(azure_items()).passed
    with pytest.raises(BadInput, match="is missing"):
        replace(WORLD, policy={"tpm.ek_roots": ""}).the_policy()


def test_inspect_says_what_reports_hold() -> None:
    lines = describe(AZURE.hcl())
    assert lines[0] == "Azure HCL report"
    assert {"  secure_boot: true", "  console: off", "AMD SEV-SNP report", "  guest_svn: 7"} <= {*lines}
    report = describe(SNP.report())
    assert report[0] == "AMD SEV-SNP report"
    assert any("microcode" in line and "219" in line for line in report)
    with pytest.raises(BadInput):
        describe(AZURE.hcl()[:1300])
