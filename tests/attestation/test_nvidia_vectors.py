# SPDX-License-Identifier: Apache-2.0
"""Real NVIDIA evidence: every file of the vectors' index gets its expected verdict at a stated clock."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cube_attestation.anchors import nvidia as anchors
from cube_attestation.errors import NotAuthentic
from cube_attestation.nvidia import abi, chains, rim, verify
from cube_attestation.nvidia.appraise import Collateral, appraise, appraise_rim
from cube_attestation.nvidia.policy import NvidiaPolicy
from cube_attestation.tokens import abi as tokens
from cube_attestation.x509 import certificate as x509

ANY = frozenset({"nvidia.device_ocsp", "nvidia.rim_ocsp", "nvidia.driver_rim", "nvidia.vbios_rim", "nvidia.fwid"})
WITH_FWID = ANY - {"nvidia.fwid"}
NO_OCSP = frozenset({"nvidia.device_ocsp", "nvidia.rim_ocsp"})
DEVICE_ROOTS, RIM_ROOTS = frozenset(anchors.DEVICE_ROOTS), frozenset(anchors.RIM_ROOTS)
SDK, TRUST, GO = (
    "nvidia/NVIDIA_attestation-sdk/unit",
    "nvidia/NVIDIA_nvtrust",
    "nvidia/confidentsecurity_go-nvtrust",
)
SAMPLES = f"{SDK}/sample_attestation_data/gpu"
RIMS = f"{SDK}/sample_rims"
VBIOS_545, DRIVER_545 = (
    f"{TRUST}/1010_0200_882_96005E0001_test_no_gpu.swidtag",
    f"{TRUST}/Driver_RIM_test_no_gpu.swidtag",
)
MISMATCH = f"{RIMS}/NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml"

Check = Callable[[Path], None]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


CLOCK = at("2024-06-01")


def report(
    name: str,
    chain: str,
    expected: list[str],
    *,
    rims: tuple[str, ...] = (),
    allow: frozenset[str] = ANY,
    now: datetime = CLOCK,
) -> Check:
    """One report with its chain: exactly these reason codes."""

    def check(vectors: Path) -> None:
        data = (vectors / name).read_bytes()
        evidence = abi.Evidence(abi.decode_report(data), (vectors / chain).read_bytes())
        policy = NvidiaPolicy(allow_missing=allow, modes=("spt", "ppcie"))
        given = Collateral(tuple((vectors / file).read_bytes() for file in rims))
        gpu = appraise([evidence], given, policy, now)[0]
        assert sorted({reason.code for reason in gpu.reasons}) == expected
        nonce = abi.parse_report(evidence.report).request_nonce
        assert appraise([evidence], given, policy, now, nonce=nonce)[0].reasons == gpu.reasons
        other = appraise([evidence], given, policy, now, nonce=bytes(32))[0]
        assert "nvidia.report.nonce_mismatch" in {reason.code for reason in other.reasons}

    return check


def container(*names: str, set_codes: list[str], gpus: int, switches: int = 0) -> Check:
    """A JSON of several devices: each authentic, and exactly these codes about the whole set."""

    def check(vectors: Path) -> None:
        devices = [device for name in names for device in abi.decode_evidence((vectors / name).read_bytes())]
        nonce = abi.parse_report(devices[0].report).request_nonce
        policy = NvidiaPolicy(allow_missing=WITH_FWID, modes=("ppcie",), devices=gpus, switches=switches)
        *items, whole = appraise(devices, Collateral(), policy, at("2026-06-01"), nonce=nonce)
        assert len(items) == gpus + switches
        assert [reason.code for item in items for reason in item.reasons] == []
        assert sorted({reason.code for reason in whole.reasons}) == set_codes

    return check


def chain(name: str, expected: str = "") -> Check:
    """A device chain by itself."""

    def check(vectors: Path) -> None:
        loaded = verify.load_chain((vectors / name).read_bytes())
        if not expected:
            assert len(chains.verify_path(loaded, DEVICE_ROOTS, CLOCK).certificates) == 5
            return
        with pytest.raises(NotAuthentic) as caught:
            chains.verify_path(loaded, DEVICE_ROOTS, CLOCK)
        assert caught.value.why == expected

    return check


def manifest(name: str, start: str, end: str, active: int) -> Check:
    """A good manifest: authentic from the first to the last second of its signer, and not beside it."""

    def check(vectors: Path) -> None:
        data = (vectors / name).read_bytes()
        found = rim.verify(data, RIM_ROOTS, at(start) + timedelta(days=1))
        assert (f"{found.not_before:%Y-%m-%d}", f"{found.not_after:%Y-%m-%d}") == (start, end)
        assert len(found.rim.values) == active
        policy = NvidiaPolicy(allow_missing=NO_OCSP)
        for now, expected in (
            (found.not_before - timedelta(seconds=1), ["collateral.not_yet_valid"]),
            (found.not_before, []),
            (found.not_after, []),
            (found.not_after + timedelta(seconds=1), ["collateral.expired"]),
        ):
            verdict = appraise_rim(data, Collateral(), policy, now)
            assert [reason.code for reason in verdict.reasons] == expected
        changed = data.replace(b'active="True"', b'active="False"', 1)
        verdict = appraise_rim(changed, Collateral(), policy, found.not_after)
        assert [reason.code for reason in verdict.reasons] == ["nvidia.rim.digest_mismatch"]

    return check


def bad_manifest(name: str, expected: str, now: str) -> Check:
    def check(vectors: Path) -> None:
        data = (vectors / name).read_bytes()
        verdict = appraise_rim(data, Collateral(), NvidiaPolicy(allow_missing=NO_OCSP), at(now))
        assert [reason.code for reason in verdict.reasons] == [expected]

    return check


def root(name: str, expected: frozenset[str]) -> Check:
    """A trust anchor: its key is one of the pinned ones, or not."""

    def check(vectors: Path) -> None:
        (certificate,) = x509.load((vectors / name).read_bytes(), where=name)
        spki = certificate.spki_digest
        assert ({spki} <= expected) if expected else spki not in DEVICE_ROOTS | RIM_ROOTS

    return check


def parsed(name: str) -> Check:
    """NVIDIA's own parser agrees about every value of its report."""

    def check(vectors: Path) -> None:
        theirs = json.loads((vectors / name).read_text())
        ours = abi.parse_report(abi.decode_report((vectors / f"{SDK}/hopperAttestationReport.txt").read_bytes()))
        blocks = theirs["MeasurementRecord"]["MeasurementBlocks"]
        for i, value in enumerate(ours.measurements):
            assert blocks[str(i + 1)]["DMTFSpecMeasurementValue"] == "0x" + value.hex()
        assert len(blocks) == len(ours.measurements) == 64
        assert theirs["Nonce"] == "0x" + ours.response_nonce.hex()
        assert theirs["Signature"] == "0x" + ours.signature.hex()
        for field, value in theirs["OpaqueData"]["OpaqueDataField"].items():
            number = next(k for k, v in abi.FIELD_NAMES.items() if _same(v, field))
            if isinstance(value, str) and value.startswith("0x"):
                assert value == "0x" + ours.opaque[number].hex()

    return check


def _same(ours: str, theirs: str) -> bool:
    aliases = {"measurement_count": "msrscnt", "protected_pcie": "protected_pcie_status", "cpr_info": "cprinfo"}
    return aliases.get(ours, ours) == theirs.removeprefix("OPAQUE_FIELD_ID_").lower()


def parsed_text(vectors: Path) -> None:
    """The text form is of nvtrust's own sample."""
    text = (vectors / f"{SDK}/spdm_parsed_output.txt").read_text()
    ours = abi.parse_report(abi.decode_report((vectors / f"{TRUST}/hopperAttestationReport.txt").read_bytes()))
    values = re.findall(r"MeasurementBlocks\[(\d+)\]\.DMTFSpecMeasurementValue = 0x([0-9a-f]+)", text)
    assert {int(i) - 1: v for i, v in values} == {i: v.hex() for i, v in enumerate(ours.measurements)}


def parsed_request(vectors: Path) -> None:
    theirs = json.loads((vectors / f"{SDK}/spdm_req_parsed_output.json").read_text())
    ours = abi.parse_report(abi.decode_report((vectors / f"{SDK}/hopperAttestationReport.txt").read_bytes()))
    assert theirs["Nonce"] == "0x" + ours.request_nonce.hex()
    assert int(theirs["SlotIDParam"], 16) == ours.slot


def decoded_claims(vectors: Path) -> None:
    """The decoded claims are those of the token set beside them."""
    theirs = json.loads((vectors / f"{SDK}/sample_attestation_data/hopperClaimsv3_decoded.json").read_text())
    folder = "jwt/NVIDIA_attestation-sdk/unit/sample_attestation_data"
    ours = tokens.parse_set((vectors / folder / "hopperClaimsv3_detached_eat.json").read_bytes())
    assert {name: dict(token.claims) for name, token in ours.devices.items()} == theirs


GPU, SWITCH = f"{TRUST}/ppcie/gpu_evidence.json", f"{TRUST}/ppcie/switch_evidence.json"
EVIDENCE = "nvidia/NVIDIA_attestation-sdk/evidence"
WIRED = ["nvidia.set.topology"]  # of a protected-PCIe machine, but without its switches
CASES: dict[str, list[Check]] = {
    f"{EVIDENCE}/hopper_evidence.json": [container(f"{EVIDENCE}/hopper_evidence.json", set_codes=WIRED, gpus=1)],
    f"{EVIDENCE}/multi_gpu_hopper.json": [container(f"{EVIDENCE}/multi_gpu_hopper.json", set_codes=WIRED, gpus=4)],
    f"{SDK}/evidence_hopper_590_12.json": [
        container(f"{SDK}/evidence_hopper_590_12.json", set_codes=WIRED, gpus=1)
    ],
    GPU: [container(GPU, SWITCH, set_codes=[], gpus=8, switches=4), container(GPU, set_codes=WIRED, gpus=8)],
    SWITCH: [container(SWITCH, set_codes=[], gpus=0, switches=4)],
    f"{SDK}/hopperAttestationReport.txt": [
        report(f"{SDK}/hopperAttestationReport.txt", f"{SDK}/hopperCertChain.txt", [], allow=WITH_FWID),
        report(
            f"{SDK}/hopperAttestationReport.txt",
            f"{SAMPLES}/hopperCertChain.txt",
            ["nvidia.report.fwid_mismatch", "nvidia.report.signature_invalid"],
        ),
    ],
    f"{SAMPLES}/hopperAttestationReport.txt": [
        report(
            f"{SAMPLES}/hopperAttestationReport.txt",
            f"{SAMPLES}/hopperCertChain.txt",
            [],
            rims=(f"{TRUST}/1010_0200_882_96005E0001_PROD.swidtag",),
        ),
        report(
            f"{SAMPLES}/hopperAttestationReport.txt",
            f"{SAMPLES}/hopperCertChain.txt",
            ["nvidia.rim.digest_mismatch"],
            rims=(f"{RIMS}/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml",),
        ),
    ],
    f"{SAMPLES}/hopperAttestationReportExpired.txt": [
        report(
            f"{SAMPLES}/hopperAttestationReportExpired.txt",
            f"{SAMPLES}/hopperCertChainExpired.txt",
            ["nvidia.rim.digest_mismatch"],
            rims=(f"{RIMS}/NV_GPU_DRIVER_GH100_570.124.03_expired.xml",),
        )
    ],
    f"{SAMPLES}/hopperAttestationReportInvalidSignature.txt": [
        report(
            f"{SAMPLES}/hopperAttestationReportInvalidSignature.txt",
            f"{SAMPLES}/{name}",
            ["nvidia.report.fwid_mismatch", "nvidia.report.signature_invalid"],
        )
        for name in ("hopperCertChain.txt", "hopperCertChainExpired.txt")
    ],
    f"{TRUST}/hopperAttestationReport.txt": [
        report(f"{TRUST}/hopperAttestationReport.txt", f"{TRUST}/hopperCertChain.txt", [], allow=WITH_FWID),
        report(
            f"{TRUST}/hopperAttestationReport.txt",
            f"{TRUST}/hopperCertChain.txt",
            ["collateral.driver_rim.missing", "collateral.vbios_rim.missing"],
            rims=(VBIOS_545, DRIVER_545),
            allow=NO_OCSP,
        ),
    ],
    f"{GO}/attestationReport.txt": [
        report(
            f"{GO}/attestationReport.txt",
            f"{GO}/gpuAkCertChain.txt",
            [],
            rims=(VBIOS_545, DRIVER_545),
            allow=NO_OCSP | {"nvidia.fwid"},
        ),
        report(
            f"{GO}/attestationReport.txt",
            f"{GO}/gpuAkCertChain.txt",
            ["nvidia.report.fwid_missing"],
            rims=(VBIOS_545, DRIVER_545),
            allow=NO_OCSP,
        ),
        report(
            f"{GO}/attestationReport.txt",
            f"{GO}/gpuAkCertChain.txt",
            ["collateral.driver_rim.missing", "collateral.ocsp.missing", "collateral.vbios_rim.missing"],
            allow=frozenset({"nvidia.fwid"}),
        ),
        report(
            f"{GO}/attestationReport.txt",
            f"{GO}/gpuAkCertChain.txt",
            ["nvidia.rim.measurement_mismatch"],
            rims=(MISMATCH, DRIVER_545),
            allow=NO_OCSP | {"nvidia.fwid"},
        ),
        report(
            f"{GO}/attestationReport.txt",
            f"{GO}/gpuAkCertChain.txt",
            ["collateral.expired"],
            rims=(VBIOS_545, DRIVER_545),
            allow=NO_OCSP | {"nvidia.fwid"},
            now=at("2025-06-27"),
        ),
    ],
    f"{GO}/invalidCertChain.txt": [
        chain(f"{GO}/invalidCertChain.txt", "untrusted_root"),
        report(f"{GO}/attestationReport.txt", f"{GO}/invalidCertChain.txt", ["nvidia.chain.untrusted_root"]),
    ],
    f"{GO}/gpuAkCertChain.txt": [chain(f"{GO}/gpuAkCertChain.txt")],
    f"{TRUST}/hopperCertChain.txt": [chain(f"{TRUST}/hopperCertChain.txt")],
    f"{SDK}/hopperCertChain.txt": [chain(f"{SDK}/hopperCertChain.txt")],
    f"{SAMPLES}/hopperCertChain.txt": [chain(f"{SAMPLES}/hopperCertChain.txt")],
    # "expired" is the manifest that goes with it; the chain itself never runs out
    f"{SAMPLES}/hopperCertChainExpired.txt": [chain(f"{SAMPLES}/hopperCertChainExpired.txt")],
    f"{SDK}/NV_GPU_DRIVER_GH100_550.144.03.xml": [
        manifest(f"{SDK}/NV_GPU_DRIVER_GH100_550.144.03.xml", "2024-12-30", "2026-12-30", 21)
    ],
    f"{SDK}/incorrect_cert_chain_driver_rim.xml": [
        bad_manifest(f"{SDK}/incorrect_cert_chain_driver_rim.xml", "nvidia.rim.untrusted_root", "2026-01-01")
    ],
    f"{SDK}/incorrect_signature_driver_rim.xml": [
        bad_manifest(f"{SDK}/incorrect_signature_driver_rim.xml", "nvidia.rim.signature_invalid", "2026-01-01")
    ],
    f"{SDK}/incorrect_rim_root.crt": [root(f"{SDK}/incorrect_rim_root.crt", frozenset())],
    f"{RIMS}/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml": [
        bad_manifest(
            f"{RIMS}/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml",
            "nvidia.rim.digest_mismatch",
            "2024-06-01",
        )
    ],
    f"{RIMS}/NV_GPU_DRIVER_GH100_570.124.03_expired.xml": [
        bad_manifest(f"{RIMS}/NV_GPU_DRIVER_GH100_570.124.03_expired.xml", "nvidia.rim.digest_mismatch", when)
        for when in ("2025-01-01T12:00:00", "2026-01-01")
    ],
    MISMATCH: [
        manifest(MISMATCH, "2023-12-13", "2025-12-12", 12),
        report(
            f"{SAMPLES}/hopperAttestationReport.txt",
            f"{SAMPLES}/hopperCertChain.txt",
            ["nvidia.rim.measurement_mismatch"],
            rims=(MISMATCH,),
        ),
    ],
    f"{TRUST}/1010_0200_882_96005E0001_PROD.swidtag": [
        manifest(f"{TRUST}/1010_0200_882_96005E0001_PROD.swidtag", "2023-06-23", "2025-06-22", 12)
    ],
    VBIOS_545: [manifest(VBIOS_545, "2023-06-23", "2025-06-22", 12)],
    DRIVER_545: [manifest(DRIVER_545, "2023-06-27", "2025-06-26", 21)],
    f"{TRUST}/1010_0210_886_9600740011_PROD.swidtag": [
        manifest(f"{TRUST}/1010_0210_886_9600740011_PROD.swidtag", "2023-09-06", "2025-09-05", 12)
    ],
    f"{TRUST}/g520_0202_885_96006D0008_PROD.swidtag": [
        manifest(f"{TRUST}/g520_0202_885_96006D0008_PROD.swidtag", "2023-08-25", "2025-08-24", 12)
    ],
    f"{TRUST}/g520_0213_881_96006D0007_PROD.swidtag": [
        manifest(f"{TRUST}/g520_0213_881_96006D0007_PROD.swidtag", "2023-08-25", "2025-08-24", 12)
    ],
    f"{SDK}/spdm_parsed_output.json": [parsed(f"{SDK}/spdm_parsed_output.json")],
    f"{SDK}/spdm_parsed_output.txt": [parsed_text],
    f"{SDK}/spdm_req_parsed_output.json": [parsed_request],
    f"{SDK}/sample_attestation_data/hopperClaimsv3_decoded.json": [decoded_claims],
    f"{SDK}/trusted_certs/rim_root.crt": [root(f"{SDK}/trusted_certs/rim_root.crt", RIM_ROOTS)],
    f"{TRUST}/trust/verifier_device_root.pem": [root(f"{TRUST}/trust/verifier_device_root.pem", DEVICE_ROOTS)],
    f"{TRUST}/trust/switch_verifier_device_root.pem": [
        root(f"{TRUST}/trust/switch_verifier_device_root.pem", DEVICE_ROOTS)
    ],
    f"{TRUST}/trust/verifier_RIM_root.pem": [root(f"{TRUST}/trust/verifier_RIM_root.pem", RIM_ROOTS)],
    f"{TRUST}/trust/switch_verifier_RIM_root.pem": [root(f"{TRUST}/trust/switch_verifier_RIM_root.pem", RIM_ROOTS)],
}


@pytest.mark.parametrize("file", sorted(CASES))
def test_expected_verdict(file: str, vectors: Path) -> None:
    for check in CASES[file]:
        check(vectors)


def test_no_file_is_left_out(vectors: Path) -> None:
    with (vectors / "INDEX.tsv").open(newline="") as index:
        rows = [row["file"] for row in csv.DictReader(index, delimiter="\t") if row["kind"] == "nvidia"]
    assert rows
    assert set(rows) - set(CASES) == set()
