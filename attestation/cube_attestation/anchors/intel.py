# SPDX-License-Identifier: Apache-2.0
"""Intel's roots, pinned by the SHA-256 of their DER SubjectPublicKeyInfo."""

# CN=Intel SGX Root CA, 2018-05-21 to 2049-12-31; the root of PCK certificates and of TCB signing, SGX and TDX
SGX_ROOT = "sha256:a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"
INTEL_ROOTS = (SGX_ROOT,)
