# SPDX-License-Identifier: Apache-2.0
"""``attestation collateral fetch`` for real evidence, from a local server that gives out real collateral.

No policy, no replaced anchor: what is stored leads to the vendors' own roots, at the clock of that evidence. What
the vectors lack (AMD's and Microsoft's lists, NVIDIA's OCSP) the server does not know.
"""

from __future__ import annotations

import base64
import json
import urllib.parse
from pathlib import Path

import pytest
from cube_attestation import bundle as bundles
from cube_attestation.cli import main
from cube_attestation.collateral import store
from fake_services import FakeServices, ok, serving


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def imported(folder: Path, *files: Path) -> Path:
    assert main(["import", *map(str, files), "-o", str(folder / "bundle.json")]) == 0
    return folder / "bundle.json"


def fetch(bundle: Path, services: FakeServices, at: str) -> int:
    output = bundle.with_name("full.json")
    return main(["collateral", "fetch", str(bundle), "--at", at, "--output", str(output), *services.options()])


def labels(folder: Path) -> set[str]:
    return set(bundles.load((folder / "full.json").read_bytes()).evidence.items) & store.LABELS.keys()


def intel(services: FakeServices, file: Path, fmspc: str) -> None:
    """Intel's documents, byte for byte, as its service gives them."""
    given = json.loads(file.read_text())
    for name, member, path, header in (
        ("tcb_info", "tcbInfo", f"tcb?fmspc={fmspc}", "TCB_Info_Issuer_Chain"),
        ("qe_identity", "enclaveIdentity", "qe/identity", "SGX_Enclave_Identity_Issuer_Chain"),
    ):
        body = f'{{"{member}":{given[name]},"signature":"{given[f"{name}_signature"]}"}}'.encode()
        chain = {header: urllib.parse.quote(given[f"{name}_issuer_chain"])}
        services.give(f"GET /tdx/certification/v4/{path}", ok(body, "application/json", **chain))
    pck, root = bytes.fromhex(given["pck_crl"]), bytes.fromhex(given["root_ca_crl"])
    services.give("GET /sgx/certification/v4/pckcrl?ca=platform&encoding=der", ok(pck, "application/pkix-crl"))
    services.give("GET /IntelSGXRootCA.der", ok(root, "application/pkix-crl"))


INTEL = {
    "tdx-tcb-info",
    "tdx-tcb-info-chain",
    "tdx-qe-identity",
    "tdx-qe-identity-chain",
    "tdx-root-crl",
    "tdx-pck-crl",
}


def test_a_quote_from_gcp_gets_intels_collateral_and_verifies(vectors: Path, tmp_path: Path) -> None:
    folder, at = vectors / "tdx" / "flashbots_attested-tls", "2026-06-30T10:00:00Z"
    bundle = imported(tmp_path, folder / "gcp-tdx-1782809233226668671")
    assert main(["check", "tdx", str(bundle), "--at", at]) == 2
    with serving(FakeServices()) as services:
        intel(services, folder / "gcp-tdx-collateral.json", "00806F050000")
        assert fetch(bundle, services, at) == 0
    assert labels(tmp_path) == INTEL
    assert main(["check", "tdx", str(tmp_path / "full.json"), "--at", at]) == 0


def test_real_collateral_that_ran_out_is_refused(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = vectors / "tdx" / "flashbots_attested-tls"
    bundle = imported(tmp_path, folder / "gcp-tdx-1782809233226668671")
    with serving(FakeServices()) as services:
        intel(services, folder / "gcp-tdx-collateral.json", "00806F050000")
        assert fetch(bundle, services, "2026-11-24T12:00:00Z") == 2
    assert "had to be renewed by" in capsys.readouterr().err
    assert labels(tmp_path) == {"tdx-root-crl"}  # a list that holds for a year


def test_real_tcb_info_of_another_platform_is_refused(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = vectors / "tdx" / "flashbots_attested-tls"
    bundle = imported(tmp_path, folder / "gcp-tdx-1782809233226668671")
    with serving(FakeServices()) as services:
        intel(services, folder / "azure-collateral-20260608.json", "00806F050000")
        assert fetch(bundle, services, "2026-06-30T10:00:00Z") == 2
    assert "TCB info for FMSPC 90c06f000000" in capsys.readouterr().err
    assert "tdx-tcb-info" not in labels(tmp_path)


def test_azures_trust_domain_with_its_attestation_key(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    azure, at = vectors / "azure" / "flashbots_attested-tls" / "derived_20260608", "2026-06-08T13:00:00Z"
    files = ("hcl-report.bin", "td-quote.bin", "tpm-quote.msg", "tpm-quote.sig", "tpm-pcrs.json", "ak-chain.pem")
    bundle = imported(tmp_path, *(azure / name for name in files))
    with serving(FakeServices()) as services:
        collateral = vectors / "tdx" / "flashbots_attested-tls" / "azure-collateral-20260608.json"
        intel(services, collateral, "90C06F000000")
        assert fetch(bundle, services, at) == 4
        # lists of Microsoft's CAs are asked where their certificates say, over https in the real world
        assert "GET /pkiops/crl/Azure%20Virtual%20TPM%20Root%20Certificate%20Authority%202023.crl" in services.seen
        assert "GET /eastus2/crls/azurevtpmpki/azurevtpmpolicycaeus2/current.crl" in services.seen
    err = capsys.readouterr().err
    assert err.count("attestation: azure-crls: revocation list of CN=Azure") == 2
    assert labels(tmp_path) >= INTEL
    check = ["check", "azure-hcl", str(tmp_path / "full.json"), "--at", at]
    assert main([*check, "--allow-missing", "azure.crl"]) in (0, 1)


def test_the_vcek_of_a_real_chip_at_its_real_tcb(vectors: Path, tmp_path: Path) -> None:
    folder, at = vectors / "snp" / "virtee_sev", "2026-06-30T10:00:00Z"
    bundle = imported(tmp_path, folder / "report_milan.bin")
    report = (folder / "report_milan.bin").read_bytes()
    chip, tcb = report[0x1A0:0x1E0].hex(), report[0x180:0x188]
    query = f"blSPL={tcb[0]:02}&teeSPL={tcb[1]:02}&snpSPL={tcb[6]:02}&ucodeSPL={tcb[7]:02}"
    with serving(FakeServices()) as services:
        vcek = (folder / "vcek_milan.der").read_bytes()
        services.give(f"GET /vcek/v1/Milan/{chip}?{query}", ok(vcek, "application/pkix-cert"))
        assert fetch(bundle, services, at) == 4
        assert services.seen[-1] == "GET /vcek/v1/Milan/crl"
    assert labels(tmp_path) == {"snp-certificates"}
    check = ["check", "snp", str(tmp_path / "full.json"), "--at", at]
    assert main(check) == 2
    assert main([*check, "--allow-missing", "snp.crl"]) == 0


def test_another_machines_vcek_is_refused(vectors: Path, tmp_path: Path) -> None:
    folder = vectors / "snp" / "virtee_sev"
    bundle = imported(tmp_path, folder / "report_milan.bin")
    output = str(tmp_path / "full.json")
    for name in ("vcek_turin.der", "cert_chain_turin"):
        add = ["collateral", "add", str(bundle), str(folder / name), "--at", "2026-06-30T10:00:00Z"]
        assert main([*add, "--output", output]) == 3
    assert not Path(output).exists()
    add = ["collateral", "add", str(bundle), str(folder / "vcek_milan.der"), str(folder / "cert_chain_milan")]
    assert main([*add, "--at", "2026-06-30T10:00:00Z", "--output", output]) == 0


def test_what_eight_real_gpus_and_their_switches_lack(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hgx = vectors / "nvidia" / "NVIDIA_nvtrust" / "ppcie"
    bundle = imported(tmp_path, hgx / "gpu_evidence.json", hgx / "switch_evidence.json")
    capsys.readouterr()
    assert main(["collateral", "show", str(bundle), "--at", "2026-06-01T00:00:00Z", "--format", "json"]) == 1
    needed = json.loads(capsys.readouterr().out)["needed"]
    manifests = [need["requests"][0].rpartition("/")[2] for need in needed if ".rim." in need["name"]]
    assert sorted(name.rpartition("_")[0] for name in manifests) == [
        "NV_GPU_DRIVER_GH100", "NV_GPU_VBIOS_G520_0200_885", "NV_SWITCH_BIOS_5612_0002_890",
    ]  # fmt: skip
    # each device's boot ROM; both provisioners and the identity that they share once
    about = [need["what"] for need in needed if ".ocsp." in need["name"]]
    assert sum("BROM" in words for words in about) == 12
    assert len(about) == len(set(about)) == 15


def test_a_real_gpu_gets_its_manifests(vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nvidia, at = vectors / "nvidia", "2024-06-01T00:00:00Z"
    device = nvidia / "confidentsecurity_go-nvtrust"
    bundle = imported(tmp_path, device / "attestationReport.txt", device / "gpuAkCertChain.txt")
    main(["collateral", "show", str(bundle), "--at", at, "--format", "json"])
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = [need["name"].removeprefix("nvidia.rim.") for need in shown["needed"] if ".rim." in need["name"]]
    assert wanted[1] == "NV_GPU_VBIOS_1010_0200_882_96005E0001"
    files = ("Driver_RIM_test_no_gpu.swidtag", "1010_0200_882_96005E0001_test_no_gpu.swidtag")
    with serving(FakeServices()) as services:
        for identifier, name in zip(wanted, files, strict=True):
            data = base64.b64encode((nvidia / "NVIDIA_nvtrust" / name).read_bytes()).decode()
            services.give(f"GET /v1/rim/{identifier}", ok(json.dumps({"rim": data}).encode(), "application/json"))
        assert fetch(bundle, services, at) == 4
        # boot ROM, provisioner, identity; then two signers of manifests and the CAs that they share
        assert services.seen.count("POST /") == 7
    assert labels(tmp_path) == {"nvidia-collateral"}
    check = ["check", "nvidia-gpu", str(tmp_path / "full.json"), "--at", at]
    missing = "nvidia.device_ocsp,nvidia.rim_ocsp,nvidia.fwid"
    assert main(check) == 2
    assert main([*check, "--allow-missing", missing]) == 0
    output = ["--at", at, "--output", str(tmp_path / "added.json")]
    paths = [str(nvidia / "NVIDIA_nvtrust" / name) for name in files]
    assert main(["collateral", "add", str(bundle), *paths, *output]) == 0
    other = str(nvidia / "NVIDIA_nvtrust" / "1010_0210_886_9600740011_PROD.swidtag")
    assert main(["collateral", "add", str(bundle), other, *output]) == 3
