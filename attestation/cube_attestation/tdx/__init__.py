# SPDX-License-Identifier: Apache-2.0
"""Intel TDX: quotes, PCK chains, Intel's collateral, CC event logs, Google's firmware endorsements."""
