# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's roots, pinned by the SHA-256 of their DER SubjectPublicKeyInfo. GPUs and NVSwitches share them."""

# CN=NVIDIA Device Identity CA, 2021-11-05 to 9999-12-31; above GH100 Identity and the LS_10 provisioners
DEVICE_ROOT = "sha256:a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4"
# CN=NVIDIA CoRIM signing Root CA, 2023-03-16 to 2053-03-08; the root of drivers', VBIOS and switch BIOS manifests
RIM_ROOT = "sha256:dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3"
DEVICE_ROOTS = (DEVICE_ROOT,)
RIM_ROOTS = (RIM_ROOT,)

# Issuers of NRAS's token keys, whose certificates live two days. Their own root is not published with the keys.
# CN=NVIDIA Attestation Service GPU Intermediate 002, 2023-12-14 to 2025-12-14 (RSA)
NRAS_INTERMEDIATE_002 = "sha256:47277eed6a87671def0ec16c31bcf36e97893f4a492e87a321b1e13d46f91302"
# CN=NVIDIA Attestation Service GPU Intermediate 003, 2025-12-08 to 2029-12-08
NRAS_INTERMEDIATE_003 = "sha256:bb2df2da5accb4c424c9ba3c968daefa4838f77b2d278bc1aa305d051df0c122"
NRAS_ISSUERS = (NRAS_INTERMEDIATE_002, NRAS_INTERMEDIATE_003)
