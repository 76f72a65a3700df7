# SPDX-License-Identifier: Apache-2.0
"""A machine on this host: QEMU with a software TPM."""
