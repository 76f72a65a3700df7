# SPDX-License-Identifier: Apache-2.0
"""Real evidence of Azure confidential VMs gets its expected verdict. Every file of kind ``azure`` is named here."""

from __future__ import annotations

import csv
import json
import re
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cube_attestation.anchors import microsoft
from cube_attestation.azure import abi, appraise, containers, verify
from cube_attestation.fields import Fields
from cube_attestation.snp import abi as snp_abi
from cube_attestation.snp import appraise as snp_appraise
from cube_attestation.snp import verify as snp_verify
from cube_attestation.x509 import certificate

SNP, TDX = (f"azure/confidential-containers_trustee/az-{tee}-vtpm/" for tee in ("snp", "tdx"))
FLASHBOTS = "azure/flashbots_attested-tls/"
DERIVED = FLASHBOTS + "derived_20260608/"
NOW = datetime(2026, 6, 10, tzinfo=UTC)
NO_CERTIFICATE = [verify.ALLOW_MISSING_AK_CERTIFICATE]  # CoCo's evidence carries none
TD_REPORT_DATA = slice(568, 632)  # of a version 4 quote; its own authenticity is the tdx tests' matter
GENOA_NONCE = bytes.fromhex(
    "0218488bae25d2509232bf676f1a66a30d7372add909109b36016ef136f2938ca05475f8b46094de6b64270ea35d950f"
)


def snp_report_data(hcl: abi.HclReport, vcek: bytes) -> tuple[snp_verify.Verified, bytes | None]:
    verified = snp_verify.verify(
        snp_abi.parse_report(hcl.hardware),
        snp_verify.read_endorsements([vcek]),
        now=NOW,
        allow_missing=[snp_verify.ALLOW_MISSING_CRL],
    )
    return verified, verified.report.report_data if verified.authentic else None


@pytest.mark.parametrize(
    ("name", "product", "nonce"),
    [("evidence-genoa.json", "Genoa", GENOA_NONCE), ("evidence-v0.json", "Milan", b"challenge")],
)
def test_snp_evidence_holds_to_the_quote(vectors: Path, name: str, product: str, nonce: bytes) -> None:
    evidence = containers.read((vectors / (SNP + name)).read_bytes())
    hcl = abi.parse_hcl(evidence.hcl)
    snp, report_data = snp_report_data(hcl, evidence.vcek)
    assert (snp.authentic, snp.product) == (True, product)
    assert snp_appraise.appraise(snp, appraise.paravisor_rules(10)).acceptable
    verified = verify.verify(
        hcl,
        evidence.quote,
        [],
        hardware_report_data=report_data,
        now=NOW,
        nonce=nonce,
        allow_missing=NO_CERTIFICATE,
    )
    assert verified.forged == ()
    items = appraise.appraise(verified, appraise.Rules())
    assert [reason.code for item in items for reason in item.reasons] == ["azure.console.enabled"]
    assert all(item.acceptable for item in appraise.appraise(verified, appraise.Rules(console="interactive")))
    stale = verify.verify(
        hcl,
        evidence.quote,
        [],
        hardware_report_data=report_data,
        now=NOW,
        nonce=b"another",
        allow_missing=NO_CERTIFICATE,
    )
    assert [reason.code for reason in stale.forged] == ["tpm.quote.nonce_mismatch"]
    strict = verify.verify(hcl, evidence.quote, [], hardware_report_data=report_data, now=NOW)
    assert [reason.code for reason in strict.forged] == ["collateral.ak_certificate.missing"]


def test_the_two_machines_do_not_vouch_for_each_other(vectors: Path) -> None:
    genoa, milan = (
        containers.read((vectors / (SNP + name)).read_bytes())
        for name in ("evidence-genoa.json", "evidence-v0.json")
    )
    hcl = abi.parse_hcl(genoa.hcl)
    _, report_data = snp_report_data(hcl, genoa.vcek)
    verified = verify.verify(
        hcl, milan.quote, [], hardware_report_data=report_data, now=NOW, allow_missing=NO_CERTIFICATE
    )
    assert [reason.code for reason in verified.forged] == ["tpm.quote.signature_invalid"]
    assert snp_report_data(hcl, milan.vcek)[1] is None


def test_single_snp_files(vectors: Path) -> None:
    hcl = abi.parse_hcl((vectors / (SNP + "hcl-report.bin")).read_bytes())
    snp, report_data = snp_report_data(hcl, (vectors / (SNP + "vcek.pem")).read_bytes())
    assert snp.authentic
    older = snp_appraise.appraise(snp, appraise.paravisor_rules(6))
    assert {reason.code for reason in older.refused} == {"snp.guest_svn.too_low", "snp.firmware.provisional"}
    quotes = [
        containers.read_bincode_quote((vectors / (SNP + "quote.bin")).read_bytes()),
        containers.read_quote(Fields(json.loads((vectors / (SNP + "tpm-quote-v1.json")).read_bytes()), "quote")),
    ]
    for quote in quotes:
        verified = verify.verify(
            hcl, quote, [], hardware_report_data=report_data, now=NOW, allow_missing=NO_CERTIFICATE
        )
        assert verified.forged == ()
    # A quote of another machine, whose HCL report did not come with it: it reads, and is not taken for this one's
    message, signature = ((vectors / (SNP + f"tpm-quote.{part}")).read_bytes() for part in ("msg", "sig"))
    stray = verify.VtpmQuote(message, abi.parse_signature(signature), quotes[0].pcrs)
    verified = verify.verify(
        hcl, stray, [], hardware_report_data=report_data, now=NOW, allow_missing=NO_CERTIFICATE
    )
    assert verified.evidence is not None
    assert verified.evidence.quote.extra_data == b"challenge"
    assert [reason.code for reason in verified.quote] == [
        "tpm.quote.signature_invalid",
        "tpm.quote.pcr_digest_mismatch",
    ]
    (genoa,) = certificate.load((vectors / (SNP + "vcek-genoa.pem")).read_bytes(), where="vcek")
    assert snp_abi.parse_endorsement_key(genoa).product == "Genoa"


def test_tdx_evidence_binds_the_quote(vectors: Path) -> None:
    evidence = containers.read((vectors / (TDX + "evidence-v0.json")).read_bytes())
    hcl = abi.parse_hcl(evidence.hcl)
    assert hcl.tee == "tdx"
    verified = verify.verify(
        hcl,
        evidence.quote,
        [],
        hardware_report_data=evidence.td_quote[TD_REPORT_DATA],
        now=NOW,
        nonce=b"challenge",
        allow_missing=NO_CERTIFICATE,
    )
    assert verified.forged == ()
    other = (vectors / (DERIVED + "td-quote.bin")).read_bytes()[TD_REPORT_DATA]
    foreign = verify.verify(hcl, evidence.quote, [], hardware_report_data=other, now=NOW)
    assert foreign.forged[0].code == "azure.hcl.td_report_mismatch"
    files = abi.parse_hcl((vectors / (TDX + "hcl-report.bin")).read_bytes())
    quoted = containers.read_bincode_quote((vectors / (TDX + "quote.bin")).read_bytes())
    again = containers.read_quote(Fields(json.loads((vectors / (TDX + "tpm-quote-v1.json")).read_bytes()), "quote"))
    td_quote = (vectors / (TDX + "td-quote.bin")).read_bytes()
    for quote in (quoted, again):
        result = verify.verify(
            files,
            quote,
            [],
            hardware_report_data=td_quote[TD_REPORT_DATA],
            now=NOW,
            allow_missing=NO_CERTIFICATE,
        )
        assert result.forged == ()


def derived(vectors: Path) -> tuple[abi.HclReport, verify.VtpmQuote, bytes, bytes]:
    read = {
        name: (vectors / (DERIVED + name)).read_bytes()
        for name in ("hcl-report.bin", "tpm-quote.msg", "tpm-quote.sig")
    }
    pcrs = json.loads((vectors / (DERIVED + "tpm-pcrs.json")).read_bytes())
    bank = {i: bytes.fromhex(value) for i, value in enumerate(pcrs)}
    quote = verify.VtpmQuote(read["tpm-quote.msg"], abi.parse_signature(read["tpm-quote.sig"]), {"sha256": bank})
    chain = (vectors / (DERIVED + "ak-chain.pem")).read_bytes()
    return abi.parse_hcl(read["hcl-report.bin"]), quote, chain, (vectors / (DERIVED + "td-quote.bin")).read_bytes()


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (datetime(2026, 6, 8, tzinfo=UTC), []),
        (datetime(2026, 6, 7, 23, 59, 59, tzinfo=UTC), ["azure.ak_chain.not_yet_valid"]),
        (datetime(2027, 6, 7, tzinfo=UTC), []),
        (datetime(2027, 6, 7, 0, 0, 1, tzinfo=UTC), ["azure.ak_chain.expired"]),
    ],
)
def test_the_whole_chain_to_microsoft(vectors: Path, now: datetime, expected: list[str]) -> None:
    hcl, quote, chain, td_quote = derived(vectors)
    verified = verify.verify(
        hcl,
        quote,
        [chain],
        hardware_report_data=td_quote[TD_REPORT_DATA],
        now=now,
        nonce=bytes(32),
        allow_missing=[verify.ALLOW_MISSING_CRL],
    )
    assert [reason.code for reason in verified.forged] == expected
    if not expected:
        assert [c.common_name for c in verified.chain] == [
            "2ede2d532aaf.ConfidentialVM.Azure.windows.net",
            "Azure Cloud Virtual TPM CA - 24",
            "Azure Cloud Virtual TPM CA 2025",
            "Azure Virtual TPM Root Certificate Authority 2023",
        ]


def test_lists_of_both_authorities_are_wanted(vectors: Path) -> None:
    hcl, quote, chain, td_quote = derived(vectors)
    verified = verify.verify(hcl, quote, [chain], hardware_report_data=td_quote[TD_REPORT_DATA], now=NOW)
    assert [reason.code for reason in verified.forged] == ["collateral.crl.missing"] * 2


def test_the_original_with_its_padded_certificate(vectors: Path) -> None:
    """The YAML that the derived files come from; a machine's TPM index pads the certificate with zeros."""
    text = (vectors / (FLASHBOTS + "azure-tdx-with-ak-intermediates-1780922561.yaml")).read_text()
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----", text)
    parts = ["\n".join(line.strip() for line in block.splitlines()).encode() for block in blocks]
    padded = b64decode("".join(blocks[0].split()[2:-2])).ljust(4096, b"\0")
    hcl, quote, _, td_quote = derived(vectors)
    verified = verify.verify(
        hcl,
        quote,
        [padded, *parts[1:]],
        hardware_report_data=td_quote[TD_REPORT_DATA],
        now=NOW,
        allow_missing=[verify.ALLOW_MISSING_CRL],
    )
    assert verified.forged == ()


def test_roots_are_the_pinned_ones(vectors: Path) -> None:
    (vtpm,) = certificate.load(
        (vectors / (FLASHBOTS + "azure-virtual-tpm-root-2023.pem")).read_bytes(), where="root"
    )
    (devices,) = certificate.load(
        (vectors / (FLASHBOTS + "microsoft-rsa-devices-root-ca-2021.pem")).read_bytes(), where="root"
    )
    assert (vtpm.spki_digest,) == microsoft.VTPM_ROOTS
    assert devices.spki_digest == microsoft.DEVICES_ROOT
    assert {vtpm.der, devices.der} == {c.der for c in microsoft.published()}


def test_a_report_alone_is_read(vectors: Path) -> None:
    hcl = abi.parse_hcl((vectors / (FLASHBOTS + "hclreport.bin")).read_bytes())
    assert hcl.tee == "tdx"
    assert hcl.bound_data() == hcl.td_report_data()
    claims = abi.parse_claims(hcl.claims)
    assert (claims.tpm_persisted, claims.vm_id) == (True, "8c85ce00-a0eb-497b-87ef-ca9609e6c757")


NAMED = {
    *(SNP + name for name in ("evidence-genoa.json", "evidence-v0.json", "hcl-report.bin", "quote.bin")),
    *(SNP + name for name in ("tpm-quote-v1.json", "tpm-quote.msg", "tpm-quote.sig", "vcek-genoa.pem", "vcek.pem")),
    *(
        TDX + name
        for name in ("evidence-v0.json", "hcl-report.bin", "quote.bin", "td-quote.bin", "tpm-quote-v1.json")
    ),
    *(DERIVED + name for name in ("ak-chain.pem", "hcl-report.bin", "td-quote.bin", "tpm-pcrs.json")),
    *(DERIVED + name for name in ("tpm-quote.msg", "tpm-quote.sig")),
    FLASHBOTS + "azure-tdx-with-ak-intermediates-1780922561.yaml",
    FLASHBOTS + "azure-virtual-tpm-root-2023.pem",
    FLASHBOTS + "microsoft-rsa-devices-root-ca-2021.pem",
    FLASHBOTS + "hclreport.bin",
}


def test_every_file_of_the_kind_is_named_above(vectors: Path) -> None:
    with (vectors / "INDEX.tsv").open(newline="") as file:
        listed = {row["file"] for row in csv.DictReader(file, delimiter="\t") if row["kind"] == "azure"}
    assert listed - NAMED == set()
