# SPDX-License-Identifier: Apache-2.0
"""Verdict over single items as other tools write them, without a policy: what every policy would refuse is refused.

``authentic`` rests on the shipped anchors and demands every certificate and piece of collateral, as the bundle's
verifier does; what is missing is named by its code. ``acceptable`` then refuses what is never good: DEBUG, a TCB
that is out of date or revoked, firmware that is not the vendor's, measurements that are not in the manifests.
Identities (measurements, boards, VMs) can't be judged without a policy: they are facts here.
"""

from .result import Given, Result, check

__all__ = ["Given", "Result", "check"]
