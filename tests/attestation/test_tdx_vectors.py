# SPDX-License-Identifier: Apache-2.0
"""Real TDX evidence: every row of kind tdx in the index gets its expected verdict at its stated clock."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cube_attestation.anchors.intel import SGX_ROOT
from cube_attestation.errors import BadInput
from cube_attestation.tdx import abi, ccel
from cube_attestation.tdx.appraise import appraise
from cube_attestation.tdx.collateral import Collateral, from_json, parse_qe_identity, parse_tcb_info
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.tdx.verify import Verification, verify
from cube_attestation.verdict import ItemVerdict
from cube_attestation.x509 import certificate, crl

P, F = "tdx/Phala-Network_dcap-qvl", "tdx/flashbots_attested-tls"
G, C = "tdx/google_go-tdx-guest", "tdx/confidential-containers_trustee"
A = "azure/confidential-containers_trustee/az-tdx-vtpm"

MISSING = frozenset(
    {"collateral.root_crl.missing", "collateral.pck_crl.missing", "collateral.tcb_info.missing"}
    | {"collateral.qe_identity.missing", "tdx.tcb.unknown"}
)
NOT_SUPPORTED, OLD = frozenset({"tdx.tcb.not_supported"}), frozenset({"tdx.tcb.out_of_date"})
OK: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """A quote, the collateral file beside it ("" for none), the clock, and all reason codes that are expected."""

    quote: str
    collateral: str
    clock: str
    codes: frozenset[str]
    status: str | None = None


CASES = [
    Case(f"{F}/gcp-tdx-1782809233226668671", f"{F}/gcp-tdx-collateral.json", "2026-06-30T09:12", OK, "UpToDate"),
    Case(f"{F}/gcp-tdx-1782809233226668671", f"{F}/gcp-tdx-collateral-1782809233226668671.yaml", "2026-06-30T10:00",
         OK, "UpToDate"),
    Case(f"{F}/gcp-tdx-1782809233226668671", f"{F}/dcap-quote-collateral-00.yaml", "2026-01-27T10:50",
         frozenset({"tdx.chain.not_yet_valid", "tdx.tcb.unknown"})),
    Case(f"{F}/gcp-tdx-1782809233226668671", f"{F}/gcp-tdx-collateral.json", "2026-07-30T09:00",
         frozenset({"collateral.expired"}), "UpToDate"),
    Case(f"{F}/gcp-tdx-1782809233226668671", f"{F}/mock/mock-dcap-collateral.yaml", "2026-06-30T10:00",
         frozenset({"collateral.chain.untrusted_root", "collateral.root_crl.wrong_issuer",
                    "collateral.pck_crl.wrong_issuer", "tdx.tcb.unknown"})),
    Case(f"{F}/dcap-tdx-1766059550570652607", f"{F}/dcap-quote-collateral-00.yaml", "2026-01-27T10:50", OK,
         "UpToDate"),
    Case(f"{F}/dcap-tdx-1766059550570652607", f"{F}/gcp-tdx-collateral.json", "2026-06-30T09:12", OK, "UpToDate"),
    Case(f"{F}/azure_failed_dcap_quote_10.bin", f"{F}/azure-collateral.yaml", "2026-02-18T13:00", NOT_SUPPORTED,
         "NotSupported"),
    Case(f"{F}/azure_failed_dcap_quote_10.bin", f"{F}/azure-collateral02.yaml", "2026-02-18T14:10", NOT_SUPPORTED,
         "NotSupported"),
    Case("azure/flashbots_attested-tls/derived_20260608/td-quote.bin", f"{F}/azure-collateral-20260608.json",
         "2026-06-08T13:00", OK, "UpToDate"),
    Case("azure/flashbots_attested-tls/derived_20260608/td-quote.bin",
         f"{F}/azure-collateral-with-ak-intermediates-1780922561.yaml", "2026-06-08T13:00", OK, "UpToDate"),
    Case(f"{A}/td-quote.bin", f"{F}/gcp-tdx-collateral.json", "2026-06-30T10:00",
         OLD | {"tdx.attributes.sept_ve_disable"}, "OutOfDate"),
    Case(f"{P}/tdx_quote", f"{P}/tdx_quote_collateral.json", "2025-06-19T11:32", OK, "UpToDate"),
    Case(f"{P}/quote-from-tappd.bin", f"{P}/tdx_quote_collateral.json", "2025-06-19T11:32", NOT_SUPPORTED,
         "NotSupported"),
    Case(f"{P}/tdx-quote-hex.bin", f"{P}/tdx_quote_collateral.json", "2025-06-19T11:32", NOT_SUPPORTED,
         "NotSupported"),
    Case(f"{P}/tdx_quote_outdated", f"{P}/tdx_quote_outdated_collateral.json", "2026-02-18T12:00", NOT_SUPPORTED,
         "NotSupported"),
    Case(f"{P}/sgx_quote", f"{P}/sgx_quote_collateral.json", "2025-06-19T11:56",
         frozenset({"tdx.quote.not_tdx"}), "ConfigurationAndSWHardeningNeeded"),
    Case(f"{C}/occlum_quote.dat", "", "2023-06-30T00:00", MISSING - {"tdx.tcb.unknown"} | {"tdx.quote.not_tdx"}),
    Case(f"{C}/tdx_quote_4.dat", "", "2024-06-30T00:00", MISSING | {"tdx.attributes.debug"}),
    Case(f"{C}/tdx_quote_5.dat", f"{F}/azure-collateral-20260608.json", "2026-06-08T13:00",
         NOT_SUPPORTED | {"tdx.mrservicetd.not_allowed"}, "NotSupported"),
    Case(f"{C}/tdx_quote_6.dat", "trustee", "2025-11-01T00:00",
         OLD | {"collateral.root_crl.missing", "collateral.pck_crl.missing"}, "OutOfDate"),
    Case(f"{G}/ccel/cos-113-tdx-quote.dat", f"{F}/gcp-tdx-collateral.json", "2026-06-30T10:00", OLD, "OutOfDate"),
    Case(f"{G}/quote_v5_sample.dat", f"{F}/azure-collateral-20260608.json", "2026-06-08T13:00", OK, "UpToDate"),
    Case(f"{G}/quote_v5_sample.dat", f"{F}/azure-collateral.yaml", "2026-02-18T13:00", OK, "UpToDate"),
    # its 2023 collateral came without the issuer chain that Intel had then
    Case(f"{G}/tdx_prod_quote_SPR_E4.dat", "google", "2023-06-20T00:00",
         frozenset({"collateral.tcb_info.missing", "collateral.qe_identity.missing", "tdx.tcb.unknown",
                    "tdx.attributes.sept_ve_disable", "tdx.attributes.not_allowed"})),
]  # fmt: skip

# Rows that are no quote: what holds for each is checked by the test named here
OTHERS = {
    "test_root": [f"{P}/TrustedRootCA.der", f"{G}/trusted_root.pem"],
    "test_documents": [
        f"{C}/enclaveIdentity.json", f"{C}/tcbInfo.json", f"{G}/sample_qeIdentity_response",
        f"{G}/sample_tcbInfo_response", f"{G}/sample_tcbinfo_response_v5",
    ],
    "test_crls": [f"{G}/pckcrl", f"{G}/rootcrl.der"],
    "test_event_log": [
        f"{C}/CCEL_data_ovmf",
        *(f"{C}/eventlog/CCEL_{name}" for name in (
            "AAEL_alibabacloud", "AAEL_alibabacloud_out.json", "data_gcp", "data_grub", "data_grub_gke",
            "data_grub_gke_out.json", "data_grub_out.json", "data_ovmf", "data_ovmf_out.json")),
    ],
    "test_log_of_a_quote": [f"{G}/ccel/ccel_data.dat", f"{G}/ccel/nonce.dat"],
    "test_refused_as_something_else": [f"{G}/report.dat", f"{G}/ccel/ccel_table.dat"],
    "test_claims": [f"{C}/parse_tdx_claims_expected.json"],
    "test_firmware": [f"{F}/gcp-tdx-firmware-1782809233226668671.yaml"],
    "test_mock_pki": [f"{F}/mock/mock-pck-chain.pem", f"{F}/mock/mock-root-ca.der"],
}  # fmt: skip


def read_yaml(path: Path) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    value: dict[str, Any] = yaml.safe_load(path.read_text())
    return value


def collateral(vectors: Path, name: str) -> Collateral:
    """Collateral of a file of the index, of another project's YAML, or put together from published bodies."""
    if name.endswith(".yaml"):
        return from_json(json.dumps(read_yaml(vectors / name)).encode())
    if name == "google":
        parts = [(vectors / G / f"sample_{x}_response").read_bytes() for x in ("tcbInfo", "qeIdentity")]
        found = from_json(parts[0]).merged(from_json(parts[1]))
        return replace(
            found,
            pck_crl=(vectors / G / "pckcrl").read_bytes(),
            root_crl=(vectors / G / "rootcrl.der").read_bytes(),
        )
    if name == "trustee":
        chain = from_json((vectors / F / "gcp-tdx-collateral.json").read_bytes()).tcb_info_chain
        parts = [(vectors / C / f"{x}.json").read_bytes() for x in ("tcbInfo", "enclaveIdentity")]
        found = from_json(parts[0]).merged(from_json(parts[1]))
        return replace(found, tcb_info_chain=chain, qe_identity_chain=chain)
    return from_json((vectors / name).read_bytes()) if name else Collateral()


def clock(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def judge(vectors: Path, case: Case) -> tuple[Verification, ItemVerdict]:
    quote = (vectors / case.quote).read_bytes()
    found = verify(quote, collateral(vectors, case.collateral), now=clock(case.clock))
    return found, appraise(found, TdxPolicy())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.quote.rpartition('/')[2]}@{case.clock}")
def test_quote(vectors: Path, case: Case) -> None:
    found, verdict = judge(vectors, case)
    assert {reason.code for reason in verdict.reasons} == case.codes
    assert (found.tcb.status if found.tcb else None) == case.status


def test_every_row_is_covered(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One matrix of all rows of kind tdx; a row that nobody expects fails."""
    with (vectors / "INDEX.tsv").open(newline="") as file:
        rows = [row["file"] for row in csv.DictReader(file, delimiter="\t") if row["kind"] == "tdx"]
    quotes = {case.quote: case for case in reversed(CASES)}
    collaterals = {case.collateral for case in CASES}
    others = {name: test for test, names in OTHERS.items() for name in names}
    lines = []
    for row in rows:
        if row in quotes:
            found, verdict = judge(vectors, quotes[row])
            words = f"v{found.quote.version} " + (", ".join(sorted({r.code for r in verdict.reasons})) or "passed")
        elif row in collaterals:
            words = "collateral of the quotes above"
        else:
            assert row in others, f"nothing is expected of {row}"
            assert others[row] in globals()
            words = others[row]
        lines.append(f"{row:80} {words}")
    with capsys.disabled():
        print("", *lines, sep="\n")


@pytest.mark.parametrize("case", [case for case in CASES if not case.codes], ids=lambda c: c.quote)
def test_one_bit_of_a_passing_quote(vectors: Path, case: Case) -> None:
    """Any change within the signed part, the signatures, the key or the QE report is found."""
    quote = (vectors / case.quote).read_bytes()
    given, now = collateral(vectors, case.collateral), clock(case.clock)
    end = len(abi.parse_quote(quote).signed) + 4 + 64 + 64 + 6 + 384 + 64
    for at in range(12, end, 37):
        mutant = quote[:at] + bytes([quote[at] ^ 1]) + quote[at + 1 :]
        try:
            found = verify(mutant, given, now=now)
        except BadInput:
            continue
        assert not found.authentic, at


def test_root(vectors: Path) -> None:
    for name in OTHERS["test_root"]:
        (root,) = certificate.load((vectors / name).read_bytes(), where=name)
        assert root.spki_digest == SGX_ROOT


def test_documents(vectors: Path) -> None:
    bodies = [from_json((vectors / name).read_bytes()) for name in OTHERS["test_documents"]]
    infos = [parse_tcb_info(body.tcb_info.content) for body in bodies if body.tcb_info]
    assert [(i.id, i.fmspc.hex(), i.evaluation_number) for i in infos] == [
        ("TDX", "00a06d080000", 17),
        ("TDX", "50806f000000", 15),
        ("TDX", "90c06f000000", 18),
    ]
    identities = [parse_qe_identity(body.qe_identity.content) for body in bodies if body.qe_identity]
    assert [(i.id, i.isv_prod_id, i.evaluation_number) for i in identities] == [("TD_QE", 2, 17), ("TD_QE", 2, 15)]


def test_crls(vectors: Path) -> None:
    lists = [crl.load((vectors / name).read_bytes(), where=name) for name in OTHERS["test_crls"]]
    assert [f"{one.this_update:%Y-%m-%d} {one.next_update:%Y-%m-%d}" for one in lists] == [
        "2023-06-08 2023-07-08",
        "2023-04-03 2024-04-02",
    ]
    assert certificate.describe(lists[0].issuer).endswith("CN=Intel SGX PCK Platform CA")


@pytest.mark.parametrize("name", [n for n in OTHERS["test_event_log"] if not n.endswith(".json")])
def test_event_log(vectors: Path, name: str) -> None:
    """Same events as another parser reads, and a replay that an independent fold agrees with."""
    log = ccel.parse((vectors / name).read_bytes())
    values = [bytes(48)] * 5
    for event in log.events:
        if event.type != "EV_NO_ACTION":
            values[event.pcr] = hashlib.sha384(values[event.pcr] + event.digests["sha384"]).digest()
    assert ccel.replay(log) == tuple(values[1:])
    expected = vectors / f"{name}_out.json"
    if expected.exists():
        theirs = json.loads(expected.read_text())["uefi_event_logs"]
        ours = [event for event in log.events if "sha384" in event.digests]
        assert [(e["index"], e["digests"][0]["digest"]) for e in theirs] == [
            (event.pcr, event.digests["sha384"].hex()) for event in ours
        ]


def test_log_of_a_quote(vectors: Path) -> None:
    """GCP COS: the log replays to the quote's registers, and the quote carries the nonce."""
    quote = (vectors / G / "ccel" / "cos-113-tdx-quote.dat").read_bytes()
    data = (vectors / G / "ccel" / "ccel_data.dat").read_bytes()
    found = verify(quote, collateral(vectors, f"{F}/gcp-tdx-collateral.json"), now=clock("2026-06-30T10:00"))
    policy = TdxPolicy(tcb_statuses=("OutOfDate",), advisories=found.tcb.advisories if found.tcb else ())
    nonce = (vectors / G / "ccel" / "nonce.dat").read_bytes()
    log = ccel.parse(data)
    assert appraise(found, policy, report_data=nonce, log=log).acceptable
    wrong = appraise(found, policy, report_data=b"\1" * 64, log=log)
    assert [reason.code for reason in wrong.reasons] == ["tdx.report_data.mismatch"]
    digest = log.events[-1].digests["sha384"]
    other = ccel.parse(data.replace(digest, bytes(48)))
    verdict = appraise(found, policy, report_data=nonce, log=other)
    assert not verdict.authentic
    assert [reason.code for reason in verdict.reasons] == ["tdx.eventlog.replay_mismatch"]


def test_refused_as_something_else(vectors: Path) -> None:
    """A TD report that lacks its first 48 bytes; the ACPI table that only points to a log."""
    with pytest.raises(BadInput, match="report type"):
        abi.parse_td_report((vectors / G / "report.dat").read_bytes())
    with pytest.raises(BadInput):
        ccel.parse((vectors / G / "ccel" / "ccel_table.dat").read_bytes())


def test_td_reports_of_azure(vectors: Path) -> None:
    """The TDREPORT inside of an HCL report and the quote made of it say the same."""
    for folder in ("azure/flashbots_attested-tls/derived_20260608", A):
        report = abi.parse_td_report((vectors / folder / "hcl-report.bin").read_bytes()[32 : 32 + 1024])
        body = abi.parse_quote((vectors / folder / "td-quote.bin").read_bytes()).body
        assert isinstance(body, abi.TdReport)
        assert replace(report, tee_tcb_svn2=None, mr_service_td=None) == body


def test_claims(vectors: Path) -> None:
    theirs = json.loads((vectors / OTHERS["test_claims"][0]).read_text())["quote"]["body"]
    found = verify((vectors / C / "tdx_quote_4.dat").read_bytes(), Collateral(), now=clock("2024-06-30T00:00"))
    facts = appraise(found, TdxPolicy()).facts
    for name in ("mr_config_id", "mr_owner", "mr_owner_config", "mr_seam", "mr_td", "report_data"):
        assert facts[name] == theirs[name]
    assert [facts[f"rtmr{i}"] for i in range(4)] == [theirs[f"rtmr_{i}"] for i in range(4)]


def test_firmware(vectors: Path) -> None:
    """The MRTD that another project computed from Google's firmware is the quote's."""
    recorded = bytes.fromhex(read_yaml(vectors / OTHERS["test_firmware"][0])["mrtd"])
    found = verify(
        (vectors / F / "gcp-tdx-1782809233226668671").read_bytes(),
        collateral(vectors, f"{F}/gcp-tdx-collateral.json"),
        now=clock("2026-06-30T10:00"),
    )
    assert appraise(found, TdxPolicy(mr_td=(recorded,))).acceptable
    refused = appraise(found, TdxPolicy(mr_td=(bytes(48),)))
    assert [reason.code for reason in refused.reasons] == ["tdx.mrtd.not_allowed"]


def test_mock_pki(vectors: Path) -> None:
    """Another project's mock chain is refused under Intel's root and holds under its own."""
    from cube_attestation.tdx import chains

    pem = (vectors / F / "mock" / "mock-pck-chain.pem").read_bytes()
    (root,) = certificate.load((vectors / F / "mock" / "mock-root-ca.der").read_bytes(), where="mock root")
    now = clock("2026-06-30T10:00")
    problem = chains.verify(pem, (SGX_ROOT,), now, where="chain")
    assert isinstance(problem, chains.Problem)
    assert problem.why == "untrusted_root"
    assert not isinstance(chains.verify(pem, (root.spki_digest,), now, where="chain"), chains.Problem)


@pytest.fixture
def a3(vectors: Path) -> Path:
    folder = vectors / "tdx" / "cohere-ai_cvm-measure"
    if not folder.is_dir():
        pytest.skip("no event log of an a3-highgpu-1g")
    return folder


def test_a3_highgpu_1g(a3: Path) -> None:
    """UKI and inner kernel in RTMR1, the stub's sections in RTMR2, RTMR0 event by event with recorded values."""
    golden = json.loads((a3 / "golden_a3-highgpu-1g.json").read_text())
    baseline = json.loads((a3 / "baselines_a3-highgpu-1g.json").read_text())
    log = ccel.parse((a3 / "ccel_a3-highgpu-1g.bin").read_bytes())
    assert [value.hex() for value in ccel.replay(log)[:3]] == [golden[f"rtmr{i}"] for i in range(3)]
    assert [d.hex() for d in ccel.programs(log)] == [golden["uki_image_digest"], golden["kernel_image_digest"]]
    assert list(ccel.sections(log)) == [".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"]
    assert baseline["firmware_sha384"] in ccel.endorsement_addresses(log)[0]
    rules = [
        ccel.EventRule(0, "EV_EFI_PLATFORM_FIRMWARE_BLOB2", "Fv(48DB5E17-707C-472D-91CD-1613E7EF51B0)",
                       (bytes.fromhex(golden["cfv"]),))
    ]  # fmt: skip
    for event in baseline["events"]:
        label = event["label"].replace("ACPI_DATA", "ACPI DATA")
        rules.append(ccel.EventRule(event["rtmr"], event["event_type"], label, (bytes.fromhex(event["digest"]),)))
    acpi = tuple(rule.digests[0] for rule in rules if rule.label == "ACPI DATA")
    rules = [replace(rule, digests=acpi) if rule.label == "ACPI DATA" else rule for rule in rules]
    findings, reasons = ccel.appraise(log, 0, rules, secure_boot=False)
    assert reasons == ()
    assert len(findings) == 16
    programs = [
        ccel.EventRule(1, "EV_EFI_BOOT_SERVICES_APPLICATION", f"program {i + 1}", (digest,))
        for i, digest in enumerate(ccel.programs(log))
    ]
    assert ccel.appraise(log, 1, programs)[1] == ()
    codes = [reason.code for reason in ccel.appraise(log, 1, programs[1:])[1]]
    assert codes == ["tdx.event.not_allowed"]
    assert {f.state for f in ccel.appraise(log, 2, ())[0]} == {"refused"}
    uki, kernel = ccel.programs(log)
    predicted = ccel.rules_for_uki(uki, kernel, ccel.sections(log))
    assert [ccel.appraise(log, rtmr, predicted)[1] for rtmr in (1, 2)] == [(), ()]
    other = ccel.rules_for_uki(uki, kernel, {**ccel.sections(log), ".cmdline": bytes(48)})
    assert [reason.code for reason in ccel.appraise(log, 2, other)[1]] == ["tdx.event.not_allowed"]
    recorded = ccel.record(log, 0)
    assert ccel.appraise(log, 0, recorded)[1] == ()
    assert [rule.label for rule in recorded] == [
        "TdxTable",
        "Fv(48DB5E17-707C-472D-91CD-1613E7EF51B0)",
        "ACPI DATA",
    ]
    missing = ccel.appraise(log, 0, rules, secure_boot=True)[1]
    assert [reason.code for reason in missing] == ["tdx.event.not_allowed", "tdx.event.missing"]
