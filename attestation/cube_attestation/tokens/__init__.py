# SPDX-License-Identifier: Apache-2.0
"""Attestation tokens of services: NVIDIA NRAS, Microsoft MAA, Google Confidential Space, Intel Trust Authority."""
