# SPDX-License-Identifier: Apache-2.0
"""Every row of the vectors' index through the ``attestation`` command, at its stated clock, and what came out."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from cube_attestation.check.result import KINDS
from cube_attestation.cli import main

COCO_SNP, SEV, VIRTEE, ACI = (
    "snp/confidential-containers_trustee", "snp/google_go-sev-guest", "snp/virtee_sev",
    "snp/microsoft_confidential-sidecar-containers",
)  # fmt: skip
PHALA, FLASH, GOOGLE, COCO_TDX = (
    "tdx/Phala-Network_dcap-qvl", "tdx/flashbots_attested-tls", "tdx/google_go-tdx-guest",
    "tdx/confidential-containers_trustee",
)  # fmt: skip
AZ_SNP, AZ_TDX = (f"azure/confidential-containers_trustee/az-{tee}-vtpm" for tee in ("snp", "tdx"))
AZURE, DERIVED = "azure/flashbots_attested-tls", "azure/flashbots_attested-tls/derived_20260608"
SDK, TRUST, GO = "nvidia/NVIDIA_attestation-sdk", "nvidia/NVIDIA_nvtrust", "nvidia/confidentsecurity_go-nvtrust"
GPU, RIMS = f"{SDK}/unit/sample_attestation_data/gpu", f"{SDK}/unit/sample_rims"
ITA, MAA, NRAS = (
    "jwt/intel_trustauthority-client-for-go", "jwt/Azure-Samples_microsoft-azure-attestation",
    "jwt/NVIDIA_attestation-sdk/unit/sample_attestation_data",
)  # fmt: skip
GTPM, TPM2 = "tpm/google_go-tpm-tools", "tpm/tpm2-software_tpm2-tools"
GCP_COLLATERAL, AZURE_COLLATERAL = f"{FLASH}/gcp-tdx-collateral.json", f"{FLASH}/azure-collateral-20260608.json"

# Collateral that came with none of these files; a stranger who has it adds it instead of naming it
NO_CRL = ("snp.crl",)
NO_OCSP = ("nvidia.device_ocsp", "nvidia.rim_ocsp")
NO_RIM = (*NO_OCSP, "nvidia.driver_rim", "nvidia.vbios_rim")
NO_FWID = (*NO_RIM, "nvidia.fwid")
NO_COLLATERAL = ("tdx.root_crl", "tdx.pck_crl", "tdx.tcb_info", "tdx.qe_identity")
NO_CERTIFICATE = ("azure.ak-certificate",)


@dataclass(frozen=True)
class Case:
    """One command: kind, files in any order, clock, what may be missing, and exactly these codes then."""

    kind: str
    files: tuple[str, ...]
    at: str
    codes: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    nonce: str | None = None
    authentic: bool = True
    label: str = ""  # what this is in the matrix: version or generation

    def arguments(self, vectors: Path, allow: tuple[str, ...]) -> list[str]:
        first, *others = (str(vectors / file) for file in self.files)
        arguments = [
            "check",
            self.kind,
            "--json",
            "--at",
            f"{self.at}T00:00:00Z" if len(self.at) == 10 else self.at,
        ]
        for i, other in enumerate(others):  # content decides, so that any option may name any file
            arguments += ["--cert" if i % 2 == 0 or self.kind == "token" else "--collateral", other]
        arguments += [part for name in allow for part in ("--allow-missing", name)]
        return [*arguments, *(["--nonce", self.nonce] if self.nonce is not None else []), first]


TAMPERED = (
    "snp.chain.signature_invalid", "snp.signature.invalid", "snp.tcb.certificate_mismatch",
    "snp.chip_id.certificate_mismatch",
)  # fmt: skip


def snp(report: str, *more: str, **given: object) -> Case:
    values: dict[str, object] = {"at": "2025-06-01", "allow": NO_CRL, **given}
    return Case("snp", (report, *more), **values)  # type: ignore[arg-type]


SNP = [
    snp(f"{VIRTEE}/report_milan.bin", f"{VIRTEE}/vcek_milan.der", f"{VIRTEE}/cert_chain_milan", label="v2 Milan"),
    snp(f"{VIRTEE}/report_milan.bin", f"{VIRTEE}/vcek_turin.der", f"{VIRTEE}/cert_chain_turin", authentic=False,
        codes=("snp.signature.invalid", "snp.tcb.certificate_mismatch", "snp.chip_id.certificate_mismatch"),
        label="Turin VCEK"),
    *(snp(f"{COCO_SNP}/test-report.bin", f"{COCO_SNP}/test-vcek.der", f"{COCO_SNP}/trust/{line}_ask_ark_asvk.pem",
          label="v2 Milan") for line in ("milan", "genoa", "turin")),
    snp(f"{COCO_SNP}/test-report.bin", f"{COCO_SNP}/test-vcek-invalid-legacy.der", codes=TAMPERED, authentic=False,
        label="v2 Milan"),
    snp(f"{COCO_SNP}/test-report.bin", f"{COCO_SNP}/test-vcek-invalid-new.der", codes=TAMPERED, authentic=False,
        label="v2 Milan"),
    snp(f"{COCO_SNP}/test-vlek-report.bin", f"{COCO_SNP}/test-vlek.der", f"{SEV}/milanvlek.testcer",
        label="v3 Milan VLEK"),
    snp(f"{SEV}/attestation.bin", f"{SEV}/vcek.testcer", f"{SEV}/milan.testcer", codes=("snp.policy.debug",),
        label="v2 Milan"),
    *(snp(f"{SEV}/attestation.bin", f"{SEV}/vcek.testcer", f"{SEV}/trust/ask_ark_{line}.pem",
          codes=("snp.policy.debug",), label="v2 Milan")
      for line in ("genoa", "genoa_vlek", "milan", "milan_vlek", "turin_vcek", "turin_vlek")),
    snp(f"{ACI}/snp_report.bin", f"{ACI}/uvm_host_amd_certificate.pem", label="v2 Milan ACI"),
    snp(f"{ACI}/snp_report.bin", f"{ACI}/uvm_host_amd_certificate.json", label="v2 Milan ACI"),
    snp(f"{ACI}/snp_report_v3_milan_aci.bin", codes=("collateral.vcek.missing",), authentic=False,
        label="v3 Milan ACI"),
]  # fmt: skip

UNSUPPORTED, OLD = ("tdx.tcb.not_supported",), ("tdx.tcb.out_of_date",)


def tdx(quote: str, collateral: str | None, at: str, codes: tuple[str, ...] = (), **given: object) -> Case:
    return Case("tdx", (quote, *([collateral] if collateral else [])), at, codes, **given)  # type: ignore[arg-type]


TDX = [
    tdx(f"{FLASH}/gcp-tdx-1782809233226668671", GCP_COLLATERAL, "2026-06-30T10:00:00Z", label="v4 GCP"),
    tdx(f"{FLASH}/gcp-tdx-1782809233226668671", f"{FLASH}/gcp-tdx-collateral-1782809233226668671.yaml",
        "2026-06-30T10:00:00Z", label="v4 GCP"),
    tdx(f"{FLASH}/gcp-tdx-1782809233226668671", f"{FLASH}/mock/mock-dcap-collateral.yaml", "2026-06-30T10:00:00Z",
        ("collateral.chain.untrusted_root", "collateral.root_crl.wrong_issuer", "collateral.pck_crl.wrong_issuer",
         "tdx.tcb.unknown"), authentic=False, label="mock PKI"),
    tdx(f"{FLASH}/dcap-tdx-1766059550570652607", f"{FLASH}/dcap-quote-collateral-00.yaml", "2026-01-27T10:50:00Z",
        label="v4"),
    tdx(f"{FLASH}/azure_failed_dcap_quote_10.bin", f"{FLASH}/azure-collateral.yaml", "2026-02-18T13:00:00Z",
        UNSUPPORTED, label="v4 Azure"),
    tdx(f"{FLASH}/azure_failed_dcap_quote_10.bin", f"{FLASH}/azure-collateral02.yaml", "2026-02-18T14:10:00Z",
        UNSUPPORTED, label="v4 Azure"),
    tdx(f"{DERIVED}/td-quote.bin", AZURE_COLLATERAL, "2026-06-08T13:00:00Z", label="v4 Azure"),
    tdx(f"{DERIVED}/td-quote.bin", f"{FLASH}/azure-collateral-with-ak-intermediates-1780922561.yaml",
        "2026-06-08T13:00:00Z", label="v4 Azure"),
    tdx(f"{AZ_TDX}/td-quote.bin", GCP_COLLATERAL, "2026-06-30T10:00:00Z",
        ("tdx.attributes.sept_ve_disable", *OLD), label="v4 Azure"),
    tdx(f"{PHALA}/tdx_quote", f"{PHALA}/tdx_quote_collateral.json", "2025-06-19T11:32:00Z", label="v4"),
    tdx(f"{PHALA}/quote-from-tappd.bin", f"{PHALA}/tdx_quote_collateral.json", "2025-06-19T11:32:00Z", UNSUPPORTED,
        label="v4 dstack"),
    tdx(f"{PHALA}/tdx-quote-hex.bin", f"{PHALA}/tdx_quote_collateral.json", "2025-06-19T11:32:00Z", UNSUPPORTED,
        label="v4 dstack"),
    tdx(f"{PHALA}/tdx_quote_outdated", f"{PHALA}/tdx_quote_outdated_collateral.json", "2026-02-18T12:00:00Z",
        UNSUPPORTED, label="v5"),
    tdx(f"{PHALA}/sgx_quote", f"{PHALA}/sgx_quote_collateral.json", "2025-06-19T11:56:00Z",
        ("tdx.quote.not_tdx",), label="v3 SGX"),
    tdx(f"{COCO_TDX}/occlum_quote.dat", None, "2023-06-30", ("tdx.quote.not_tdx",), allow=NO_COLLATERAL,
        label="v3 SGX"),
    tdx(f"{COCO_TDX}/tdx_quote_4.dat", None, "2024-06-30", ("tdx.attributes.debug",), allow=NO_COLLATERAL,
        label="v4"),
    tdx(f"{COCO_TDX}/tdx_quote_5.dat", AZURE_COLLATERAL, "2026-06-08T13:00:00Z",
        ("tdx.mrservicetd.not_allowed", *UNSUPPORTED), label="v5"),
    Case("tdx", (f"{COCO_TDX}/tdx_quote_6.dat", f"{COCO_TDX}/tcbInfo.json", f"{COCO_TDX}/enclaveIdentity.json",
                 f"{GOOGLE}/trusted_root.pem", f"{PHALA}/TrustedRootCA.der"),
         "2025-11-01", ("collateral.tcb_info.missing", "collateral.qe_identity.missing"),
         ("tdx.root_crl", "tdx.pck_crl"), authentic=False, label="v4"),
    tdx(f"{GOOGLE}/ccel/cos-113-tdx-quote.dat", GCP_COLLATERAL, "2026-06-30T10:00:00Z", OLD, label="v4 GCP"),
    tdx(f"{GOOGLE}/quote_v5_sample.dat", AZURE_COLLATERAL, "2026-06-08T13:00:00Z", label="v5"),
    Case("tdx", (f"{GOOGLE}/tdx_prod_quote_SPR_E4.dat", f"{GOOGLE}/sample_tcbInfo_response",
                 f"{GOOGLE}/sample_qeIdentity_response", f"{GOOGLE}/pckcrl", f"{GOOGLE}/rootcrl.der"),
         "2023-06-20", authentic=False, label="v4",
         codes=("collateral.tcb_info.missing", "collateral.qe_identity.missing", "tdx.attributes.sept_ve_disable",
                "tdx.attributes.not_allowed")),
    Case("tdx", (f"{GOOGLE}/quote_v5_sample.dat", f"{GOOGLE}/sample_tcbinfo_response_v5"), "2026-02-18", label="v5",
         codes=("collateral.tcb_info.missing",), authentic=False,
         allow=("tdx.root_crl", "tdx.pck_crl", "tdx.qe_identity")),
]  # fmt: skip
LOGS = [
    Case("ccel", (f"{GOOGLE}/ccel/ccel_data.dat", f"{GOOGLE}/ccel/cos-113-tdx-quote.dat", GCP_COLLATERAL),
         "2026-06-30T10:00:00Z", OLD, label="GCP, with quote"),
    *(Case("ccel", (f"{COCO_TDX}/{name}",), "2026-01-01", allow=("tdx.quote",), label="log alone")
      for name in ("CCEL_data_ovmf", "eventlog/CCEL_AAEL_alibabacloud", "eventlog/CCEL_data_gcp",
                   "eventlog/CCEL_data_grub", "eventlog/CCEL_data_grub_gke", "eventlog/CCEL_data_ovmf")),
    *(Case("tpm-eventlog", (f"{GTPM}/eventlogs/{name}.bin",), "2026-01-01", allow=("tpm.quote",), label="log alone")
      for name in ("arch-linux-workstation", "confidential-gke-debug-251000_eventlog", "cos-101-amd-sev",
                   "cos-85-amd-sev", "cos-93-amd-sev", "debian-10", "eventlogwithsp800155", "gdc-host",
                   "glinux-alex", "rhel8-uefi", "ubuntu-1804-amd-sev", "ubuntu-2104-no-dbx",
                   "ubuntu-2104-no-secure-boot", "ubuntu-2404-amd-sevsnp")),
    *(Case("tpm-eventlog", (f"{TPM2}/eventlogs/{name}.bin",), "2026-01-01", allow=("tpm.quote",), label="log alone")
      for name in ("event-arch-linux", "event-bootorder", "event-gce-ubuntu-2104-log", "event-moklisttrusted",
                   "event-postcode", "event-sd-boot-fedora37", "event-uefi-sha1-log", "event-uefiaction",
                   "event-uefiservices", "event-uefivar", "event", "specid-vendordata")),
]  # fmt: skip
CERTS = tuple(
    f"{GTPM}/certs/{name}"
    for name in ("gcp_ek_ak_ca_intermediate_v3.crt", "gcp_ek_ak_ca_root.crt", "tpm_ek_intermediate_2.crt",
                 "tpm_ek_intermediate_3.crt", "tpm_ek_root_1.cer")
)  # fmt: skip
TPM = [
    *(Case("tpm-quote", (f"{GTPM}/attestations/gce-cos-85-{name}.pb", *more), "2026-01-01", (), ("tpm.crl",), nonce,
           label="GCE, 3 banks")
      for name, nonce in (("no-nonce", ""), ("nonce9009", "9009")) for more in ((), CERTS)),
    *(Case("tpm-quote", (f"{GTPM}/attestations/gce-cos-85-no-nonce.pb", f"{GTPM}/certs/{ca}_tpm_{key}_cert.pem"),
           "2026-01-01", (), ("tpm.crl",), label="GCE, foreign AKs beside")
      for ca in ("pca", "uca") for key in ("ecc_enc", "ecc_sign", "rsa_enc", "rsa_sign")),
]  # fmt: skip
AK_MISSING = ("snp.crl", *NO_CERTIFICATE)
OTHER_VCEK = (
    "azure.hcl.unbound_claims", "snp.signature.invalid", "snp.tcb.certificate_mismatch",
    "snp.chip_id.certificate_mismatch",
)  # fmt: skip
HCL = [
    Case("azure-hcl", (f"{AZ_SNP}/evidence-genoa.json",), "2026-06-10", (), AK_MISSING,
         "0218488bae25d2509232bf676f1a66a30d7372add909109b36016ef136f2938ca05475f8b46094de6b64270ea35d950f",
         label="SNP Genoa"),
    Case("azure-hcl", (f"{AZ_SNP}/evidence-v0.json",), "2026-06-10", (), AK_MISSING, b"challenge".hex(),
         label="SNP Milan"),
    *(Case("azure-hcl", (f"{AZ_SNP}/hcl-report.bin", f"{AZ_SNP}/vcek.pem", *quote), "2026-06-10", (), allow,
           label="SNP Milan")
      for quote, allow in (((), NO_CRL), ((f"{AZ_SNP}/quote.bin",), AK_MISSING),
                           ((f"{AZ_SNP}/tpm-quote-v1.json",), AK_MISSING))),
    Case("azure-hcl", (f"{AZ_SNP}/hcl-report.bin", f"{AZ_SNP}/vcek.pem", f"{AZ_SNP}/tpm-quote.msg",
                       f"{AZ_SNP}/tpm-quote.sig"), "2026-06-10",
         ("tpm.quote.signature_invalid",), AK_MISSING,
         authentic=False, label="SNP Milan, other machine's quote"),
    Case("azure-hcl", (f"{AZ_SNP}/hcl-report.bin", f"{AZ_SNP}/vcek-genoa.pem"), "2026-06-10", OTHER_VCEK, NO_CRL,
         authentic=False, label="SNP Milan, other VCEK"),
    Case("azure-hcl", (f"{AZ_TDX}/evidence-v0.json", GCP_COLLATERAL), "2026-06-30T10:00:00Z",
         ("tdx.attributes.sept_ve_disable", *OLD), NO_CERTIFICATE, b"challenge".hex(), label="TDX"),
    *(Case("azure-hcl", (f"{AZ_TDX}/hcl-report.bin", f"{AZ_TDX}/td-quote.bin", f"{AZ_TDX}/{quote}", GCP_COLLATERAL),
           "2026-06-30T10:00:00Z", ("tdx.attributes.sept_ve_disable", *OLD), NO_CERTIFICATE, label="TDX")
      for quote in ("quote.bin", "tpm-quote-v1.json")),
    Case("azure-hcl", (f"{AZURE}/azure-tdx-with-ak-intermediates-1780922561.yaml", AZURE_COLLATERAL),
         "2026-06-08T13:00:00Z", (), ("azure.crl",), "00" * 32, label="TDX, AK to Microsoft"),
    Case("azure-hcl", (f"{DERIVED}/hcl-report.bin", f"{DERIVED}/td-quote.bin", f"{DERIVED}/tpm-quote.msg",
                       f"{DERIVED}/tpm-quote.sig", f"{DERIVED}/tpm-pcrs.json", f"{DERIVED}/ak-chain.pem",
                       AZURE_COLLATERAL, f"{AZURE}/azure-virtual-tpm-root-2023.pem",
                       f"{AZURE}/microsoft-rsa-devices-root-ca-2021.pem"),
         "2026-06-08T13:00:00Z", (), ("azure.crl",), "00" * 32, label="TDX, AK to Microsoft"),
    Case("tpm-quote", (f"{DERIVED}/tpm-quote.msg", f"{DERIVED}/tpm-quote.sig", f"{DERIVED}/tpm-pcrs.json",
                       f"{DERIVED}/ak-chain.pem"), "2026-06-08T13:00:00Z", (), ("tpm.crl",), "00" * 32,
         label="Azure, AK to Microsoft"),
    Case("azure-hcl", (f"{AZURE}/hclreport.bin",), "2026-06-08", ("tdx.quote.missing",),
         authentic=False, label="TDX, HCL report alone"),
]  # fmt: skip
CLOCK = "2024-06-01"
DRIVER, VBIOS = f"{TRUST}/Driver_RIM_test_no_gpu.swidtag", f"{TRUST}/1010_0200_882_96005E0001_test_no_gpu.swidtag"
MISMATCH = f"{RIMS}/NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml"
NVIDIA = [
    Case("nvidia-gpu", (f"{GO}/attestationReport.txt", f"{GO}/gpuAkCertChain.txt", DRIVER, VBIOS), CLOCK,
         allow=(*NO_OCSP, "nvidia.fwid"), label="H100 545, both RIMs"),
    Case("nvidia-gpu", (f"{GO}/attestationReport.txt", f"{GO}/invalidCertChain.txt"), CLOCK, authentic=False,
         codes=("nvidia.chain.untrusted_root",), allow=NO_FWID, label="H100 545"),
    Case("nvidia-gpu", (f"{GPU}/hopperAttestationReport.txt", f"{GPU}/hopperCertChain.txt",
                        f"{TRUST}/1010_0200_882_96005E0001_PROD.swidtag"), CLOCK,
         allow=(*NO_OCSP, "nvidia.driver_rim", "nvidia.fwid"), label="H100 535, VBIOS RIM"),
    Case("nvidia-gpu", (f"{GPU}/hopperAttestationReport.txt", f"{GPU}/hopperCertChain.txt", MISMATCH), CLOCK,
         codes=("nvidia.rim.measurement_mismatch",), allow=(*NO_OCSP, "nvidia.driver_rim", "nvidia.fwid"),
         label="H100 535, VBIOS RIM"),
    Case("nvidia-gpu", (f"{GPU}/hopperAttestationReportExpired.txt", f"{GPU}/hopperCertChainExpired.txt"), CLOCK,
         allow=NO_RIM, label="H100"),
    Case("nvidia-gpu", (f"{GPU}/hopperAttestationReportInvalidSignature.txt", f"{GPU}/hopperCertChainExpired.txt"),
         CLOCK, codes=("nvidia.report.fwid_mismatch", "nvidia.report.signature_invalid"), allow=NO_RIM,
         authentic=False, label="H100"),
    Case("nvidia-gpu", (f"{SDK}/unit/hopperAttestationReport.txt", f"{SDK}/unit/hopperCertChain.txt"), "2026-06-01",
         allow=NO_RIM, label="H100 580"),
    Case("nvidia-gpu", (f"{TRUST}/hopperAttestationReport.txt", f"{TRUST}/hopperCertChain.txt",
                        *(f"{TRUST}/trust/{name}.pem" for name in ("verifier_RIM_root", "verifier_device_root"))),
         CLOCK, allow=NO_RIM, label="H100 550"),
    Case("nvidia-gpu", (f"{SDK}/evidence/hopper_evidence.json",), "2026-06-01", allow=NO_RIM, label="H100 590"),
    Case("nvidia-gpu", (f"{SDK}/unit/evidence_hopper_590_12.json",), "2026-06-01", allow=NO_RIM, label="H100 590"),
    Case("nvidia-gpu", (f"{SDK}/evidence/multi_gpu_hopper.json",), "2026-06-01", allow=NO_RIM,
         label="HGX, 4 GPUs"),
    Case("nvidia-gpu", (f"{TRUST}/ppcie/gpu_evidence.json",), "2026-06-01", allow=NO_RIM, label="HGX, 8 GPUs"),
    Case("nvidia-switch", (f"{TRUST}/ppcie/switch_evidence.json", f"{TRUST}/trust/switch_verifier_device_root.pem",
                           f"{TRUST}/trust/switch_verifier_RIM_root.pem"), "2026-06-01",
         allow=("nvidia.device_ocsp", "nvidia.rim_ocsp", "nvidia.vbios_rim"), label="HGX, 4 switches"),
    *(Case("nvidia-rim", (file,), at, allow=("nvidia.rim_ocsp",), label="manifest")
      for file, at in ((f"{SDK}/unit/NV_GPU_DRIVER_GH100_550.144.03.xml", "2025-06-01"), (DRIVER, CLOCK),
                       (VBIOS, CLOCK), (MISMATCH, CLOCK), (f"{TRUST}/1010_0200_882_96005E0001_PROD.swidtag", CLOCK),
                       *((f"{TRUST}/{name}_PROD.swidtag", CLOCK)
                         for name in ("1010_0210_886_9600740011", "g520_0202_885_96006D0008",
                                      "g520_0213_881_96006D0007")))),
    Case("nvidia-rim", (DRIVER,), "2025-07-01", ("collateral.expired",), ("nvidia.rim_ocsp",), authentic=False,
         label="manifest, late"),
    *(Case("nvidia-rim", (file, *more), at, (code,), ("nvidia.rim_ocsp",), authentic=False, label="manifest")
      for file, more, at, code in (
          (f"{SDK}/unit/incorrect_cert_chain_driver_rim.xml",
           (f"{SDK}/unit/incorrect_rim_root.crt", f"{SDK}/unit/trusted_certs/rim_root.crt"), "2025-06-01",
           "nvidia.rim.untrusted_root"),
          (f"{SDK}/unit/incorrect_signature_driver_rim.xml", (), "2025-06-01", "nvidia.rim.signature_invalid"),
          (f"{RIMS}/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml", (), CLOCK,
           "nvidia.rim.digest_mismatch"),
          (f"{RIMS}/NV_GPU_DRIVER_GH100_570.124.03_expired.xml", (), "2025-01-01T12:00:00Z",
           "nvidia.rim.digest_mismatch"))),
]  # fmt: skip
ITA_CERTS = (f"{ITA}/ita_validCertHex.der", f"{ITA}/ita_validInterCaCertHex.der")
TOKENS = [
    Case("token", (f"{ITA}/ita_token.jwt", *ITA_CERTS), "2025-01-01",
         ("token.iss.not_allowed", "token.exp.missing", "token.debug.unknown"), label="ITA"),
    *(Case("token", (f"{ITA}/ita_{name}.jwt", *ITA_CERTS), "2025-01-01",
           (code, "token.iss.not_allowed", "token.exp.missing", "token.debug.unknown"), authentic=False,
           label="ITA")
      for name, code in (("tokenInvalid", "token.signature.invalid"), ("tokenInvalidKID", "token.kid.invalid"),
                         ("tokenMissingKID", "token.kid.invalid"), ("tokenWrongKID", "token.kid.invalid"))),
    Case("token", (f"{ITA}/ita_token.jwt", f"{ITA}/ita_invalidCACertHex.der", f"{ITA}/ita_invalidCRLCertHex.der",
                   f"{ITA}/ita_crlHex.der"), "2025-01-01", authentic=False, label="ITA, other keys",
         codes=("token.signature.invalid", "token.iss.not_allowed", "token.exp.missing", "token.debug.unknown")),
    Case("token", (f"{ITA}/ita_amber_sgx_2023.jwt", *ITA_CERTS), "2026-01-01", authentic=False, label="ITA",
         codes=("token.signature.invalid", "token.iss.not_allowed", "token.exp.expired", "token.debug.unknown")),
    Case("token", (f"{MAA}/maa_test_sevsnp.jwt", f"{MAA}/maa_certs_response_2020.json"), "2025-04-08T06:00:00Z",
         ("token.key.unknown",), authentic=False, label="MAA"),
    *(Case("token", (f"{NRAS}/{name}_detached_eat.json", "jwt/openpcc_openpcc/test_nvidia_cert.pem",
                     "jwt/openpcc_openpcc/trust/nras_root.pem"), "2026-01-01", authentic=False, label="NRAS",
           codes=("token.signature.invalid", "token.exp.expired", *more))
      for name, more in (("hopperClaimsv3", ()), ("switch", ("token.iss.not_allowed",)))),
]  # fmt: skip
CASES = [*SNP, *TDX, *LOGS, *TPM, *HCL, *NVIDIA, *TOKENS]

# Rows that are no evidence: what `attestation inspect` says of them, None where it knows nothing of the kind
NO_EVIDENCE = "JSON that holds no evidence"
INSPECTED = {
    f"{NRAS.replace('jwt', 'nvidia', 1)}/hopperClaimsv3_decoded.json": NO_EVIDENCE,
    f"{SDK}/unit/spdm_parsed_output.json": NO_EVIDENCE,
    f"{SDK}/unit/spdm_parsed_output.txt": None,
    f"{SDK}/unit/spdm_req_parsed_output.json": NO_EVIDENCE,
    f"{ACI}/uvm_security_policy.base64": None,  # see test_host_data
    **{f"{COCO_TDX}/eventlog/CCEL_{name}_out.json": NO_EVIDENCE
       for name in ("AAEL_alibabacloud", "data_grub_gke", "data_grub", "data_ovmf")},
    f"{COCO_TDX}/parse_tdx_claims_expected.json": NO_EVIDENCE,
    f"{FLASH}/gcp-tdx-firmware-1782809233226668671.yaml": NO_EVIDENCE,
    f"{FLASH}/mock/mock-pck-chain.pem": "certificate of CN=Mock Intel PCK",
    f"{FLASH}/mock/mock-root-ca.der": "certificate of CN=Mock Intel Root CA",
    f"{GOOGLE}/ccel/ccel_table.dat": "ACPI table",
    f"{GOOGLE}/ccel/nonce.dat": "the size of report data",
    f"{GOOGLE}/report.dat": None,  # of a simulator: no TDREPORT, whose first byte is 0x81
    f"{GTPM}/cel.b64": None,  # Canonical Event Log, which nothing here appraises
    f"{GTPM}/eventlogs/expected_pcrs.json": "PCR values of sha1, sha256",
    **{f"{GTPM}/certs/{name}.crt": "certificate of CN="
       for name in ("GcePk", "MicCorKEKCA2011_2011-06-24", "MicCorUEFCA2011_2011-06-27",
                    "MicWinProPCA2011_2011-10-19", "canonical-boothole", "cisco-boothole", "debian-boothole")},
    **{f"{GTPM}/certs/dbxupdate{name}.bin": None for name in ("-2014-08-11", "_x64-2020-10-12", "_x64-2021-04-29")},
}  # fmt: skip


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and what was printed."""
    code = main(arguments)
    return code, capsys.readouterr().out


def identify(case: Case) -> str:
    return f"{case.kind}-{Path(case.files[0]).name}-{len(case.files)}-{case.at[:10]}"


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_expected_verdict(vectors: Path, capsys: pytest.CaptureFixture[str], case: Case) -> None:
    code, out = run(case.arguments(vectors, case.allow), capsys)
    result = json.loads(out)
    assert set(result) == {"kind", "authentic", "acceptable", "reasons", "facts"}
    assert (result["kind"], result["authentic"]) == (case.kind, case.authentic)
    assert sorted(result["reasons"]) == sorted(case.codes)
    assert result["acceptable"] == (not case.codes)
    assert code == (0 if not case.codes else 1 if case.authentic else 2)


@pytest.mark.parametrize("case", [case for case in CASES if case.allow and case.authentic], ids=identify)
def test_what_is_missing_is_named_and_nothing_else(
    vectors: Path, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    """Without a word of the caller nothing passes by absence, and the codes say only what to add."""
    code, out = run(case.arguments(vectors, ()), capsys)
    result = json.loads(out)
    more = set(result["reasons"]) - set(case.codes)
    assert (code, result["authentic"], result["acceptable"]) == (2, False, False)
    assert more
    assert all(reason.endswith((".missing", ".fwid_missing")) for reason in more)


@pytest.mark.parametrize("file", sorted(INSPECTED))
def test_other_rows_are_told_apart(vectors: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    code, out = run(["inspect", str(vectors / file)], capsys)
    words = INSPECTED[file]
    assert code == (3 if words is None else 0)
    assert (words or "") in out


def test_every_file_of_the_cases_is_inspected(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in sorted({file for case in CASES for file in case.files}):
        code, out = run(["inspect", str(vectors / file)], capsys)
        assert code == 0, file
        assert out.strip(), file


def test_logs_lead_to_the_expected_values(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((vectors / GTPM / "eventlogs/expected_pcrs.json").read_bytes())
    assert len(expected) == 14
    for name, banks in expected.items():
        log = str(vectors / GTPM / "eventlogs" / name)
        _, out = run(["check", "tpm-eventlog", log, "--json", "--allow-missing", "tpm.quote"], capsys)
        found = json.loads(out)["facts"]["pcrs"]
        for bank, values in banks.items():
            replayed = found[bank.lower()]
            assert {pcr: replayed.get(pcr, value) for pcr, value in values.items()} == values, name


def test_the_nonce_of_a_td(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nonce = (vectors / GOOGLE / "ccel/nonce.dat").read_bytes()
    base = ["check", "tdx", "--json", str(vectors / GOOGLE / "ccel/cos-113-tdx-quote.dat")]
    for given, expected in ((nonce, False), (nonce[:-1] + b"!", True)):
        _, out = run([*base, "--nonce", given.hex()], capsys)
        assert ("tdx.report_data.mismatch" in json.loads(out)["reasons"]) == expected


def test_host_data(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The host data of a container instance is the digest of its policy, which the facts show."""
    policy = base64.b64decode((vectors / ACI / "uvm_security_policy.base64").read_bytes())
    _, out = run(["check", "snp", "--json", str(vectors / ACI / "snp_report.bin")], capsys)
    assert json.loads(out)["facts"]["host_data"] == hashlib.sha256(policy).hexdigest()


def verdict(case: Case) -> str:
    word = "acceptable" if not case.codes else "refused" if case.authentic else "not authentic"
    return f"{word} *" if case.allow else word


def test_no_row_is_left_out_and_the_matrix(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (vectors / "INDEX.tsv").open(newline="") as index:
        rows = {row["file"]: row["kind"] for row in csv.DictReader(index, delimiter="\t")}
    named = {file for case in CASES for file in case.files} | set(INSPECTED)
    assert set(rows) - named == set()
    verdicts = Counter((case.kind, case.label, verdict(case)) for case in CASES)
    kinds = {case.kind for case in CASES}
    assert kinds == set(KINDS)
    with capsys.disabled():
        print(f"\n{len(rows)} rows, {len(CASES)} checks, {len(INSPECTED)} rows that are no evidence")
        print("  * without collateral that came with none of these files, named by the caller")
        for (kind, label, words), count in sorted(verdicts.items()):
            print(f"  {kind:14} {label:32} {words:16} {count:3}")
