# SPDX-License-Identifier: Apache-2.0
"""Vendor roots, pinned by SPKI digest, and the intermediates that vendors publish with them (bytes, not trust)."""
