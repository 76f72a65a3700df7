# SPDX-License-Identifier: Apache-2.0
"""TPM 2.0 evidence: quotes, attestation and endorsement keys, event logs."""
