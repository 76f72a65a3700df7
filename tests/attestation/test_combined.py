# SPDX-License-Identifier: Apache-2.0
"""One combined bundle per machine type: what in it is real, how its items hold together, and no item of another.

docs/evidence/combined.md says the same in words; a test holds both together.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import fakepki
import pytest
import whole_bundles
from cube_attestation import bundle as bundles
from cube_attestation import importing
from cube_attestation.bundle import Bundle
from cube_attestation.cmw import Collection
from cube_attestation.nvidia import items as nvidia
from cube_attestation.policy import load
from cube_attestation.recognise import Material, recognise
from cube_attestation.recognise.material import Device
from cube_attestation.tdx import abi as tdx
from cube_attestation.verdict import Verdict
from cube_attestation.verifier import verify
from fakepki import NONCE, NOW
from whole_bundles import Whole

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evidence" / "combined.md"
A3, NCC, LOCAL = "a3-highgpu-1g", "NCC40ads_H100_v5", "local"
TYPES: dict[str, Callable[..., Whole]] = {
    A3: whole_bundles.a3_highgpu_1g,
    NCC: whole_bundles.ncc40ads_h100_v5,
    LOCAL: whole_bundles.local_machine,
}
TIER = {A3: "hardware", NCC: "hardware-paravisor", LOCAL: "software"}
ASSUMED = {
    A3: ("gpu.relay_possible",),
    NCC: ("azure.hardware_report_at_boot", "azure.paravisor_trusted", "gpu.relay_possible"),
    LOCAL: ("software.firmware_not_appraised", "software.no_hardware_protection"),
}
# Documents of the environment and a vendor's list: another machine's are the same, only signed once more
SHARED = ("launch", "image-manifest", "snp-crl")
GPU = {"nvidia.binding.digest_mismatch", "nvidia.report.nonce_mismatch"}
ABOUT_GPU = {"collateral.ocsp.missing"}  # OCSP is about one device's own certificates
UNBOUND = {"claims.not_bound"}
# An item of another machine of the type, as correctly signed as our own → the codes that refuse it, and no others
SWAPPED: dict[str, dict[str, set[str]]] = {
    A3: {
        "claims": UNBOUND | GPU | {"tdx.report_data.unbound"},
        "tdx-quote": UNBOUND | {"tdx.report_data.unbound", "tdx.eventlog.replay_mismatch", "tdx.rtmr.mismatch"},
        "ccel": UNBOUND | {"tdx.eventlog.replay_mismatch"},
        "nvidia-devices": GPU | ABOUT_GPU,
        "nvidia-collateral": ABOUT_GPU,
    },
    NCC: {
        "claims": UNBOUND | GPU | {"tpm.quote.nonce_mismatch"},
        "azure-hcl": UNBOUND | {"snp.signature.invalid", "azure.hcl.unbound_claims", "azure.hcl.unbound_key",
                                "azure.ak_certificate.key_mismatch"},
        "azure-ak-chain": UNBOUND | {"azure.ak_certificate.key_mismatch"},
        "snp-certificates": UNBOUND | {"snp.signature.invalid", "azure.hcl.unbound_claims", "azure.hcl.unbound_key",
                                       "azure.ak_certificate.key_mismatch"},
        "tpm-quote": UNBOUND | {"azure.hcl.unbound_key", "tpm.quote.nonce_mismatch"},
        "nvidia-devices": GPU | ABOUT_GPU,
        "nvidia-collateral": ABOUT_GPU,
    },
    LOCAL: {
        "claims": UNBOUND | {"tpm.quote.nonce_mismatch"},
        "tpm-quote": UNBOUND | {"tpm.ak.key_mismatch", "tpm.quote.nonce_mismatch"},
        "ek-certificate": UNBOUND | {"tpm.ak.other_ek"},
        "ak-certificate": UNBOUND | {"tpm.ak.key_mismatch", "tpm.ak.other_ek"},
    },
}  # fmt: skip


@functools.cache
def one(kind: str) -> Whole:
    """The first machine of its type."""
    return TYPES[kind]()


@functools.cache
def other(kind: str) -> Whole:
    """Another machine of the same type, which answers the same nonce: whose it is alone tells it apart."""
    return TYPES[kind](name="b")


def judge(whole: Whole, bundle: Bundle | None = None) -> Verdict:
    return verify(bundle or whole.bundle, whole.policy, now=NOW, nonce=NONCE, tls_spki=fakepki.World().tls_spki)


def swapped(kind: str, *labels: str) -> Bundle:
    """The first machine's bundle with these items of the other."""
    ours, theirs = one(kind).bundle.evidence.items, other(kind).bundle.evidence.items
    return Bundle(Collection({**ours, **{label: theirs[label] for label in labels}}))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("which", [one, other], ids=["one", "other"])
def test_a_whole_machine_passes(kind: str, which: Callable[[str], Whole]) -> None:
    whole = which(kind)
    verdict = judge(whole)
    assert (verdict.codes, verdict.tier, verdict.freshness) == ((), TIER[kind], "nonce")
    assert verdict.assumptions == ASSUMED[kind]
    assert judge(whole, bundles.load(bundles.dump(whole.bundle))).dump() == verdict.dump()


@pytest.mark.parametrize("kind", TYPES)
def test_no_item_of_another_machine_passes(kind: str) -> None:
    ours, theirs = one(kind).bundle.evidence.items, other(kind).bundle.evidence.items
    assert set(ours) == set(theirs)
    for label in ours:
        if ours[label] == theirs[label]:
            continue
        verdict = judge(one(kind), swapped(kind, label))
        if label in SHARED:
            assert verdict.passed, label
        else:
            assert set(verdict.codes) == SWAPPED[kind][label], label
            assert verdict.exit_code == 2, label
    different = {label for label in ours if ours[label] != theirs[label]}
    assert different - set(SHARED) == set(SWAPPED[kind])


@pytest.mark.parametrize("kind", [A3, NCC])
def test_a_machine_with_another_machines_gpu_or_a_gpu_with_another_machine(kind: str) -> None:
    """Not item by item but a whole side at a time, each side complete in itself."""
    gpu = ("nvidia-devices", "nvidia-collateral")
    assert set(judge(one(kind), swapped(kind, *gpu)).codes) == GPU
    rest = [label for label in one(kind).bundle.evidence.items if label not in gpu]
    verdict = judge(other(kind), swapped(kind, *rest))
    assert set(verdict.codes) == GPU
    # with its claims the other's GPU fits them, but then the machine does not
    verdict = judge(one(kind), swapped(kind, "claims", *gpu))
    machine = {A3: "tdx.report_data.unbound", NCC: "tpm.quote.nonce_mismatch"}[kind]
    assert set(verdict.codes) == UNBOUND | {machine}


@pytest.mark.parametrize("kind", [A3, NCC])
def test_a_machine_without_the_gpu_that_its_policy_or_its_claims_name(kind: str) -> None:
    items = dict(one(kind).bundle.evidence.items)
    for label in ("nvidia-devices", "nvidia-collateral"):
        del items[label]
    assert set(judge(one(kind), Bundle(Collection(items))).codes) == {"nvidia.evidence.missing"}
    bare = one(kind).toml.partition("[nvidia]")[0]
    assert set(judge(replace(one(kind), toml=bare), Bundle(Collection(items))).codes) == {"nvidia.evidence.missing"}


@pytest.mark.parametrize("kind", TYPES)
def test_old_evidence_does_not_answer_a_new_nonce(kind: str) -> None:
    old = TYPES[kind](bytes(range(32, 64)))
    assert set(judge(one(kind), old.bundle).codes) == {"claims.nonce_mismatch"}


# --- with real items


@pytest.mark.parametrize("kind", [A3, NCC])
def test_with_all_that_is_real_and_can_be(kind: str, vectors: Path) -> None:
    """A real a3-highgpu-1g's event log and firmware, NVIDIA's own manifests under their own root."""
    whole = TYPES[kind](real=vectors)
    verdict = judge(whole)
    assert (verdict.codes, verdict.tier, verdict.assumptions) == ((), TIER[kind], ASSUMED[kind])
    items = whole.bundle.evidence.items
    manifests = nvidia.decode_collateral(items["nvidia-collateral"].value).rims
    assert manifests == tuple((vectors / path).read_bytes() for path in whole_bundles.REAL_RIMS)
    assert "rim_roots" not in whole.toml  # so that NVIDIA's shipped root counts
    if kind == A3:
        golden = json.loads((vectors / whole_bundles.REAL_VALUES).read_text())
        assert items["ccel"].value == (vectors / whole_bundles.REAL_LOG).read_bytes()
        body = tdx.parse_quote(items["tdx-quote"].value).body
        assert isinstance(body, tdx.TdReport)
        assert body.mr_td.hex() == golden["mrtd"]
        assert [value.hex() for value in body.rtmrs[:3]] == [golden[f"rtmr{i}"] for i in range(3)]
        # the fake log and the fake manifests do not stand in for the real ones
        short = Bundle(
            whole.bundle.evidence.with_item(
                "ccel", items["ccel"].media_type, one(A3).bundle.evidence.items["ccel"].value
            )
        )
        assert "tdx.eventlog.replay_mismatch" in judge(whole, short).codes
    fake = whole.bundle.evidence.with_item(
        "nvidia-collateral", items["nvidia-collateral"].media_type,
        one(kind).bundle.evidence.items["nvidia-collateral"].value,
    )  # fmt: skip
    assert "collateral.driver_rim.missing" in judge(whole, Bundle(fake)).codes


REAL_GPU = "nvidia/confidentsecurity_go-nvtrust"
REAL_GPU_RIMS = (
    "nvidia/NVIDIA_nvtrust/1010_0200_882_96005E0001_test_no_gpu.swidtag",
    "nvidia/NVIDIA_nvtrust/Driver_RIM_test_no_gpu.swidtag",
)
REAL_TD = "tdx/flashbots_attested-tls/gcp-tdx-1782809233226668671"
REAL_CVM = "azure/confidential-containers_trustee/az-snp-vtpm/evidence-genoa.json"
NVIDIA_SECTION = (
    '[nvidia]\nallow_missing = ["nvidia.device_ocsp", "nvidia.rim_ocsp", "nvidia.fwid"]\nallow_expired_rim = true\n'
)


def imported(vectors: Path, names: Iterable[str]) -> Collection:
    """Real files of one machine, and a real H100's report, certificates and manifests, in one bundle."""
    material = Material()
    for name in (*names, *REAL_GPU_RIMS):
        material += recognise((vectors / name).read_bytes())
    (device,) = recognise((vectors / REAL_GPU / "attestationReport.txt").read_bytes()).devices
    chain = (vectors / REAL_GPU / "gpuAkCertChain.txt").read_bytes()
    return importing.bundle(material + Material(devices=(Device(device.report, chain),))).evidence


def real_policy(section: str) -> str:
    empty = {"tpm.ek_roots": "", "tpm.ak_issuers": "", "lowest_tier": '"hardware-paravisor"'}
    return fakepki.World(policy=empty).policy_toml() + section + NVIDIA_SECTION


def claimed(evidence: Collection) -> Collection:
    """With claims, launch document and manifest of ours, which nothing in it vouches for."""
    ours = whole_bundles.GpuWorld().evidence().items
    return Collection({**evidence.items, **{name: ours[name] for name in ("claims", "launch", "image-manifest")}})


def test_a_real_td_and_a_real_h100_lack_nothing_but_what_binds_them(vectors: Path) -> None:
    """Authentic under the vendors' shipped anchors, each by itself; stuck together they are nobody's machine."""
    evidence = imported(vectors, (REAL_TD, "tdx/flashbots_attested-tls/gcp-tdx-collateral.json"))
    body = tdx.parse_quote(evidence.items["tdx-quote"].value).body
    assert isinstance(body, tdx.TdReport)
    pins = "".join(f'rtmr{i} = ["{value.hex()}"]\n' for i, value in enumerate(body.rtmrs))
    policy = load(real_policy(f'[tdx]\nmrtd = ["{body.mr_td.hex()}"]\n{pins}').encode())
    now = datetime(2026, 6, 30, 10, tzinfo=UTC)
    assert set(verify(Bundle(evidence), policy, now=now).codes) == {
        "claims.missing", "launch.missing", "image.missing", "tdx.report_data.unbound", "nvidia.binding.no_claims",
    }  # fmt: skip
    verdict = verify(Bundle(claimed(evidence)), policy, now=NOW.replace(month=6, day=30, hour=10))
    assert {code for code in verdict.codes if not code.startswith("claims.clock")} == (
        UNBOUND | GPU | {"tdx.report_data.unbound"}
    )


def test_a_real_cvm_and_a_real_h100_lack_nothing_but_what_binds_them(vectors: Path) -> None:
    """Report, HCL claims and vTPM quote of a real Azure VM hold together; it booted no image of ours."""
    evidence = imported(vectors, (REAL_CVM,))
    section = (
        '[azure]\nminimum_guest_svn = 0\nconsole = "interactive"\n'
        'allow_missing = ["azure.ak-certificate", "azure.crl"]\n[snp]\nallow_missing = ["snp.crl"]\n'
    )
    policy = load(real_policy(section).encode())
    verdict = verify(Bundle(claimed(evidence)), policy, now=NOW)
    reasons = {item.item: {reason.code for reason in item.reasons} for item in verdict.items}
    assert reasons["snp-report"] == reasons["azure-hcl"] == reasons["azure-ak-chain"] == set()
    assert reasons["tpm-quote"] == {"tpm.quote.nonce_mismatch", "tpm.pcr.mismatch"}
    assert reasons["tcg-eventlog"] == {"tpm.eventlog.missing"}
    assert reasons["nvidia-binding"] | reasons["nvidia-gpu-0"] == GPU
    assert reasons["nvidia-set"] == set()
    assert (verdict.tier, verdict.exit_code) == ("", 2)


# --- the page


@pytest.mark.parametrize("kind", TYPES)
def test_the_page_lists_every_item_and_every_refusal(kind: str) -> None:
    section = PAGE.read_text().partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
    rows = {line.split("|")[1].strip(" `"): line for line in section.splitlines() if line.startswith("| `")}
    assert set(rows) == set(one(kind).bundle.evidence.items)
    for label, codes in SWAPPED[kind].items():
        for code in codes - UNBOUND:
            assert f"`{code}`" in rows[label], (label, code)
