# SPDX-License-Identifier: Apache-2.0
"""The TDX kind: a TD's quote over the machine's claims with its log and collateral, as items of a verdict."""

from __future__ import annotations

import hmac
from dataclasses import replace

from cube_attestation.cmw import Collection
from cube_attestation.subject import Outcome, Subject, attempt
from cube_attestation.tpm.eventlog import EventLog
from cube_attestation.verdict import ItemVerdict, Reason

from . import abi, ccel, endorsement
from .appraise import FIRMWARE_ASSUMPTION, appraise
from .collateral import Collateral, crl_bytes, published
from .policy import TdxPolicy
from .verify import Verification, verify

ITEM = "tdx-quote"
LABELS = {
    ITEM: "application/vnd.cube.tdx-quote",
    "ccel": ccel.MEDIA_TYPE,
    "tdx-tcb-info": "application/vnd.cube.intel-tcb-info+json",
    "tdx-tcb-info-chain": "application/pem-certificate-chain",
    "tdx-qe-identity": "application/vnd.cube.intel-qe-identity+json",
    "tdx-qe-identity-chain": "application/pem-certificate-chain",
    "tdx-root-crl": "application/pkix-crl",
    "tdx-pck-crl": "application/pkix-crl",
    "tdx-pck-chain": "application/pem-certificate-chain",
    "gce-launch-endorsement": endorsement.MEDIA_TYPE,
}


def read_collateral(evidence: Collection) -> Collateral:
    """The collateral items of a bundle, as far as they are there. Raises BadInput."""
    info, identity = evidence.get("tdx-tcb-info"), evidence.get("tdx-qe-identity")
    root_crl, pck_crl = evidence.get("tdx-root-crl"), evidence.get("tdx-pck-crl")
    return Collateral(
        root_crl=crl_bytes(root_crl, where="tdx-root-crl") if root_crl else None,
        pck_crl=crl_bytes(pck_crl, where="tdx-pck-crl") if pck_crl else None,
        tcb_info_chain=evidence.get("tdx-tcb-info-chain") or b"",
        tcb_info=published(info, "tcbInfo", where="tdx-tcb-info") if info else None,
        qe_identity_chain=evidence.get("tdx-qe-identity-chain") or b"",
        qe_identity=published(identity, "enclaveIdentity", where="tdx-qe-identity") if identity else None,
        pck_chain=evidence.get("tdx-pck-chain") or b"",
    )


def appraise_tdx(subject: Subject, policy: TdxPolicy) -> Outcome:
    """Verify and appraise ``tdx-quote``; its REPORTDATA must be SHA-512 over the claims. Reaches ``hardware``."""
    item, found = appraise_quote(subject, policy)
    if found is None:
        return Outcome((item,), "", ())
    body = found.quote.body
    bound = subject.claims.report_data() if subject.claims is not None else b""
    if not isinstance(body, abi.TdReport) or not hmac.compare_digest(bound, body.report_data):
        unbound = Reason("tdx.report_data.unbound", "the quote was not made over these claims")
        item = replace(item, forged=(*item.forged, unbound))
    assumptions = (FIRMWARE_ASSUMPTION,) if item.authentic and "assumptions" in item.facts else ()
    return Outcome((item,), "hardware" if item.authentic else "", assumptions)


def appraise_quote(subject: Subject, policy: TdxPolicy) -> tuple[ItemVerdict, Verification | None]:
    """The item of the bundle's quote with its log, collateral and endorsement, whatever its REPORTDATA is over.

    The second value is None only if something can't be read; it is there also for a quote that is not authentic.
    """
    evidence = subject.evidence
    data = evidence.get(ITEM)
    if data is None:
        return _forged("tdx.quote.missing", "the bundle has parts of a TDX machine's evidence but no quote"), None
    quote, problem = attempt(lambda: abi.parse_quote(data))
    if quote is None:
        return _forged("tdx.quote.malformed", problem), None

    def check() -> Verification:
        given = read_collateral(evidence)
        return verify(quote, given, now=subject.now, anchors=policy.roots, allow_missing=policy.allow_missing)

    found, problem = attempt(check)
    if found is None:
        return _forged("tdx.collateral.malformed", problem), None
    log, log_problem = _optional(evidence, "ccel")
    endorsed, endorsement_problem = attempt(
        lambda: endorsement.parse(evidence.get("gce-launch-endorsement") or b"")
    )
    item = appraise(found, policy, log=log, endorsed=endorsed, item=ITEM)
    forged = list(item.forged)
    if log_problem:
        forged.append(Reason("tdx.eventlog.malformed", log_problem))
    if endorsement_problem and evidence.get("gce-launch-endorsement") and policy.endorsement_roots:
        forged.append(Reason("tdx.endorsement.malformed", endorsement_problem))
    return replace(item, forged=tuple(forged)), found


def _optional(evidence: Collection, label: str) -> tuple[EventLog | None, str]:
    data = evidence.get(label)
    return attempt(lambda: ccel.parse(data)) if data else (None, "")


def _forged(code: str, words: str) -> ItemVerdict:
    return ItemVerdict(ITEM, (Reason(code, words),))
