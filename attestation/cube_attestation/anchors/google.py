# SPDX-License-Identifier: Apache-2.0
"""Google's roots of virtual TPMs' endorsement and attestation keys, pinned by the SHA-256 of their SPKI."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from cube_attestation.x509 import certificate

# CN=EK/AK CA Root, 2022-07-08 to 2122-07-08
EK_AK_ROOT = "sha256:56a613f57126a385dd6949294e93b0b566f96ab0573be0c2368e6f5ca779831f"
# CN=tpm_ek_v1_cloud_host_root, 2018-04-06 to 2118-04-06: machines before the certificate authority service
CLOUD_HOST_ROOT = "sha256:f23057f4f97d1d90e4cae0ce91d5a0fc99069f0a1bc147021dca33b1e9c4d0d9"
VTPM_ROOTS = (EK_AK_ROOT, CLOUD_HOST_ROOT)


@cache
def published() -> tuple[certificate.Certificate, ...]:
    """Roots and the intermediates that Google publishes with them.

    Bytes to complete a path with; trust is in the digests that the caller passes.
    """
    return certificate.load(Path(__file__).with_name("google.pem").read_bytes(), where="google.pem")
