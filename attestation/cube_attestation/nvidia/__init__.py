# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs and NVSwitches: SPDM measurement reports, reference integrity manifests, OCSP."""
