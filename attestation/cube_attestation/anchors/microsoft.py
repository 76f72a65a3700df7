# SPDX-License-Identifier: Apache-2.0
"""Microsoft's roots of Azure virtual TPMs, and the identity of the paravisor's signer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from cube_attestation.x509 import certificate

# Azure Virtual TPM Root Certificate Authority 2023 (Azure's trusted launch FAQ)
VTPM_ROOTS = ("sha256:5cbc52672ae101263c2976736044a964c1182ce9412c39937183baddcccb8cdf",)

# Microsoft RSA Devices Root CA 2021: older machines. It issues for other devices too, so a policy has to name it.
DEVICES_ROOT = "sha256:d61ed293962f1f6ceb26ea9ec1c5a8c6cab38e73671f27c22df90e47977707ff"

# SHA-384 of the public key in the ID block of Azure's confidential-VM firmware (HCL, OpenHCL). Recorded from
# authentic reports of such machines, not published by Microsoft as a list. Container instances (ACI) have other
# keys: there the guest chooses report_data, so those must never be taken for a paravisor's.
PARAVISOR_ID_KEYS = (
    "942fd93ebde6ea7a96efadeafc60f1c6b3d10e703b1dafd7555b92f7f3d32d0e006767648cba5b102af3d65756af4177",  # 2025 on
    "0356215882a825279a85b300b0b742931d113bf7e32dde2e50ffde7ec743ca491ecdd7f336dc28a6e0b2bb57af7a44a3",  # to 2025
)


@cache
def published() -> tuple[certificate.Certificate, ...]:
    """The roots' certificates. Bytes to complete a path with; trust is in the digests that the caller passes."""
    return certificate.load(Path(__file__).with_name("microsoft.pem").read_bytes(), where="microsoft.pem")
