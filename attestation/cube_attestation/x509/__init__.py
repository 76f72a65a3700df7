# SPDX-License-Identifier: Apache-2.0
"""Certificates, revocation lists and paths to a pinned key, read by a small strict reader of our own.

AMD's certificates have serial number 0, which newer libraries refuse, and are signed with RSA-PSS, which their path
builders refuse. So bytes are read here; only the mathematics of signatures comes from a library.
"""
