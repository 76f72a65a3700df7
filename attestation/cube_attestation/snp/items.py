# SPDX-License-Identifier: Apache-2.0
"""The SNP kind: a report over the machine's claims with what vouches for it, as items of a verdict."""

from __future__ import annotations

import hmac
from dataclasses import replace

from cube_attestation.subject import Outcome, Subject, attempt
from cube_attestation.verdict import ItemVerdict, Reason

from . import abi, verify
from .appraise import ITEM, Rules, appraise
from .policy import SnpPolicy

LABELS = {
    "snp-report": "application/vnd.cube.snp-report",
    "snp-certificates": "application/vnd.cube.snp-certificates",
    "snp-crl": "application/pkix-crl",
}


def appraise_snp(subject: Subject, policy: SnpPolicy) -> Outcome:
    """Verify and appraise ``snp-report``; its report data must be SHA-512 over the claims. Reaches ``hardware``."""
    data = subject.evidence.get("snp-report")
    if data is None:
        missing = Reason("snp.report.missing", "the bundle has certificates but no SNP report")
        return Outcome((ItemVerdict("snp-report", (missing,)),), "", ())
    item, verified = appraise_report(subject, data, policy, policy.rules, item="snp-report")
    if verified is None:
        return Outcome((item,), "", ())
    bound = subject.claims.report_data() if subject.claims is not None else b""
    if not hmac.compare_digest(bound, verified.report.report_data):
        unbound = Reason("snp.report_data.unbound", "the report was not made over these claims")
        item = replace(item, forged=(*item.forged, unbound))
    return Outcome((item,), "hardware" if item.authentic else "", ())


def appraise_report(
    subject: Subject, data: bytes, policy: SnpPolicy, rules: Rules, *, item: str = ITEM
) -> tuple[ItemVerdict, verify.Verified | None]:
    """The item of a report's bytes under ``rules``, with the bundle's certificates and list.

    The second value is None only if they can't be read; it is there also for a report that is not authentic.
    """

    def read() -> tuple[abi.Report, verify.Endorsements]:
        certificates, crl = subject.evidence.get("snp-certificates"), subject.evidence.get("snp-crl")
        parts = [certificates] if certificates else []
        return abi.parse_report(data), verify.read_endorsements(parts, [crl] if crl else [])

    found, problem = attempt(read)
    if found is None:
        return ItemVerdict(item, (Reason("snp.report.malformed", problem),)), None
    verified = verify.verify(
        *found,
        now=subject.now,
        roots=policy.roots,
        allow_missing=policy.allow_missing,
        max_crl_age=policy.max_crl_age,
    )
    return appraise(verified, rules, item=item), verified
