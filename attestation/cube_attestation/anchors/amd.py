# SPDX-License-Identifier: Apache-2.0
"""AMD's root keys (ARK) by product line, and the intermediates that its key distribution service publishes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from cube_attestation.x509 import certificate

# SPKI digest of each ARK → the product line that it stands for
ROOTS = {
    "sha256:9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9": "Milan",
    "sha256:429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831": "Genoa",
    "sha256:4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08": "Turin",
}


@cache
def published() -> tuple[certificate.Certificate, ...]:
    """ARK, ASK and ASVK of Milan, Genoa and Turin. Bytes to complete a path with; trust is in ROOTS only."""
    return certificate.load(Path(__file__).with_name("amd.pem").read_bytes(), where="amd.pem")
