# SPDX-License-Identifier: Apache-2.0
"""Azure confidential VMs: hardware report → paravisor's claims → attestation key → virtual TPM quote."""
