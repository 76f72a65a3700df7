# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's roots, pinned by the SHA-256 of their DER SubjectPublicKeyInfo. GPUs and NVSwitches share them."""

# CN=NVIDIA Device Identity CA, 2021-11-05 to 9999-12-31; above GH100 Identity and the LS_10 provisioners
DEVICE_ROOT = "sha256:a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4"
# CN=NVIDIA CoRIM signing Root CA, 2023-03-16 to 2053-03-08; the root of drivers', VBIOS and switch BIOS manifests
RIM_ROOT = "sha256:dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3"
DEVICE_ROOTS = (DEVICE_ROOT,)
RIM_ROOTS = (RIM_ROOT,)
