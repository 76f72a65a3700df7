# SPDX-License-Identifier: Apache-2.0
"""Real SNP evidence gets its expected verdict at its stated clock. Every file of kind ``snp`` is named here."""

from __future__ import annotations

import csv
import hashlib
from base64 import b64decode
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cube_attestation.anchors import amd
from cube_attestation.errors import BadInput
from cube_attestation.snp import abi, appraise, verify
from cube_attestation.x509 import certificate, path

COCO, GOOGLE, VIRTEE, MICROSOFT = (
    f"snp/{name}/"
    for name in (
        "confidential-containers_trustee",
        "google_go-sev-guest",
        "virtee_sev",
        "microsoft_confidential-sidecar-containers",
    )
)
# None of these came with a revocation list, so the rule is named as missing.
ALLOW_MISSING = [verify.ALLOW_MISSING_CRL]
IN_2025 = datetime(2025, 6, 1, tzinfo=UTC)
LOOSE = appraise.Rules(any_firmware=True, vmpls=(0, 1), provisional_firmware=True)


@dataclass(frozen=True)
class Case:
    """A report, the certificates to give with it (the shipped ones come on top), and what is expected."""

    report: str
    certificates: tuple[str, ...]
    forged: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    product: str = "Milan"
    version: int = 2
    now: datetime = IN_2025


TAMPERED = (
    "snp.chain.signature_invalid",
    "snp.signature.invalid",
    "snp.tcb.certificate_mismatch",
    "snp.chip_id.certificate_mismatch",
)
CASES = (
    Case(VIRTEE + "report_milan.bin", (VIRTEE + "vcek_milan.der", VIRTEE + "cert_chain_milan")),
    Case(
        VIRTEE + "report_milan.bin", (VIRTEE + "vcek_milan.der",), now=datetime(2023, 4, 3, 19, 23, 43, tzinfo=UTC)
    ),
    Case(
        VIRTEE + "report_milan.bin",
        (VIRTEE + "vcek_milan.der",),
        ("snp.chain.not_yet_valid",),
        now=datetime(2023, 4, 3, 19, 23, 42, tzinfo=UTC),
    ),
    Case(
        VIRTEE + "report_milan.bin", (VIRTEE + "vcek_milan.der",), now=datetime(2030, 4, 3, 19, 23, 43, tzinfo=UTC)
    ),
    Case(
        VIRTEE + "report_milan.bin",
        (VIRTEE + "vcek_milan.der",),
        ("snp.chain.expired",),
        now=datetime(2030, 4, 3, 19, 23, 44, tzinfo=UTC),
    ),
    Case(COCO + "test-report.bin", (COCO + "test-vcek.der", COCO + "trust/milan_ask_ark_asvk.pem")),
    Case(COCO + "test-report.bin", (COCO + "test-vcek-invalid-legacy.der",), TAMPERED),
    Case(COCO + "test-report.bin", (COCO + "test-vcek-invalid-new.der",), TAMPERED),
    Case(COCO + "test-vlek-report.bin", (COCO + "test-vlek.der",), version=3),
    Case(COCO + "test-vlek-report.bin", (COCO + "test-vlek.der", GOOGLE + "milanvlek.testcer"), version=3),
    Case(
        COCO + "test-vlek-report.bin",
        (COCO + "test-vlek.der",),
        ("snp.chain.expired",),
        version=3,
        now=datetime(2025, 12, 11, tzinfo=UTC),
    ),
    Case(
        GOOGLE + "attestation.bin", (GOOGLE + "vcek.testcer", GOOGLE + "milan.testcer"), (), ("snp.policy.debug",)
    ),
    Case(MICROSOFT + "snp_report.bin", (MICROSOFT + "uvm_host_amd_certificate.pem",)),
    Case(MICROSOFT + "snp_report_v3_milan_aci.bin", (), ("collateral.vcek.missing",), version=3, product=""),
    Case(
        VIRTEE + "report_milan.bin",
        (VIRTEE + "vcek_turin.der", VIRTEE + "cert_chain_turin"),
        ("snp.signature.invalid", "snp.tcb.certificate_mismatch", "snp.chip_id.certificate_mismatch"),
        product="Turin",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{Path(case.report).name}-{case.now:%Y%m%dT%H%M%S}")
def test_expected_verdict(vectors: Path, case: Case) -> None:
    report = abi.parse_report((vectors / case.report).read_bytes())
    assert report.version == case.version
    endorsements = verify.read_endorsements([(vectors / name).read_bytes() for name in case.certificates])
    verified = verify.verify(report, endorsements, now=case.now, allow_missing=ALLOW_MISSING)
    assert tuple(reason.code for reason in verified.forged) == case.forged
    assert verified.product == case.product
    verdict = appraise.appraise(verified, LOOSE)
    if verified.key is not None:
        assert tuple(reason.code for reason in verdict.refused) == case.refused
    assert verdict.authentic is not bool(case.forged)


def test_without_a_list_nothing_is_authentic_by_default(vectors: Path) -> None:
    report = abi.parse_report((vectors / CASES[0].report).read_bytes())
    endorsements = verify.read_endorsements([(vectors / name).read_bytes() for name in CASES[0].certificates])
    verified = verify.verify(report, endorsements, now=IN_2025)
    assert [reason.code for reason in verified.forged] == ["collateral.crl.missing"]


def test_the_vlek_report_of_aws_is_of_vmpl_1(vectors: Path) -> None:
    report = abi.parse_report((vectors / (COCO + "test-vlek-report.bin")).read_bytes())
    verified = verify.verify(
        report,
        verify.read_endorsements([(vectors / (COCO + "test-vlek.der")).read_bytes()]),
        now=IN_2025,
        allow_missing=ALLOW_MISSING,
    )
    assert verified.key is not None
    assert verified.key.csp == "CN=cc-us-east-2.amazonaws.com"
    verdict = appraise.appraise(verified, appraise.Rules(any_firmware=True))
    assert {reason.code for reason in verdict.refused} == {"snp.vmpl.not_allowed", "snp.firmware.provisional"}


def test_host_data_of_a_container_instance_is_its_policy(vectors: Path) -> None:
    policy = b64decode((vectors / (MICROSOFT + "uvm_security_policy.base64")).read_bytes())
    digest = hashlib.sha256(policy).hexdigest()
    report = abi.parse_report((vectors / (MICROSOFT + "snp_report.bin")).read_bytes())
    endorsements = verify.read_endorsements([(vectors / (MICROSOFT + "uvm_host_amd_certificate.pem")).read_bytes()])
    verified = verify.verify(report, endorsements, now=IN_2025, allow_missing=ALLOW_MISSING)
    rules = appraise.Rules(id_keys=[report.id_key_digest.hex()], host_data=[digest])
    assert appraise.appraise(verified, rules).acceptable
    other = appraise.Rules(id_keys=[report.id_key_digest.hex()], host_data=["00" * 32])
    assert not appraise.appraise(verified, other).acceptable
    parts = [(vectors / (MICROSOFT + "uvm_host_amd_certificate.json")).read_bytes()]
    assert verify.verify(
        report, verify.read_endorsements(parts), now=IN_2025, allow_missing=ALLOW_MISSING
    ).authentic


def test_a_turin_vcek_chains_and_its_extensions_read(vectors: Path) -> None:
    (vcek,) = certificate.load((vectors / (VIRTEE + "vcek_turin.der")).read_bytes(), where="vcek")
    found = path.find(vcek, amd.published(), amd.ROOTS, IN_2025)
    assert (found.problem, len(found.certificates)) == ("", 3)
    key = abi.parse_endorsement_key(vcek)
    assert (key.product, key.tcb, key.hardware_id.hex()) == (
        "Turin",
        abi.Tcb(fmc=0, bootloader=0, tee=0, snp=0, microcode=9),
        "1e550a8ee5cf9f4d",
    )


TRUST = (
    COCO + "trust/genoa_ask_ark_asvk.pem",
    COCO + "trust/milan_ask_ark_asvk.pem",
    COCO + "trust/turin_ask_ark_asvk.pem",
    GOOGLE + "trust/ask_ark_genoa.pem",
    GOOGLE + "trust/ask_ark_genoa_vlek.pem",
    GOOGLE + "trust/ask_ark_milan.pem",
    GOOGLE + "trust/ask_ark_milan_vlek.pem",
    GOOGLE + "trust/ask_ark_turin_vcek.pem",
    GOOGLE + "trust/ask_ark_turin_vlek.pem",
    GOOGLE + "milan.testcer",
    GOOGLE + "milanvlek.testcer",
    VIRTEE + "cert_chain_milan",
    VIRTEE + "cert_chain_turin",
)


@pytest.mark.parametrize("name", TRUST)
def test_published_chains_end_in_a_pinned_root(vectors: Path, name: str) -> None:
    found = certificate.load((vectors / name).read_bytes(), where=name)
    roots = [c for c in found if c.subject == c.issuer]
    assert [amd.ROOTS.get(root.spki_digest) is not None for root in roots] == [True]
    for intermediate in found:
        if intermediate not in roots:
            assert path.find(intermediate, found, amd.ROOTS, IN_2025).problem == ""


def test_every_file_of_the_kind_is_named_above(vectors: Path) -> None:
    with (vectors / "INDEX.tsv").open(newline="") as file:
        listed = {row["file"] for row in csv.DictReader(file, delimiter="\t") if row["kind"] == "snp"}
    named = {name for case in CASES for name in (case.report, *case.certificates)} | set(TRUST)
    named |= {MICROSOFT + "uvm_host_amd_certificate.json", MICROSOFT + "uvm_security_policy.base64"}
    assert listed - named == set()


def test_no_file_makes_a_parser_raise_anything_else(vectors: Path) -> None:
    for file in sorted((vectors / "snp").rglob("*")):
        if not file.is_file():
            continue
        data = file.read_bytes()
        for parse in (abi.parse_report, abi.parse_table, lambda d: verify.read_endorsements([d])):
            try:
                parse(data)
            except BadInput:
                continue
