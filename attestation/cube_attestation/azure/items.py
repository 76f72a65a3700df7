# SPDX-License-Identifier: Apache-2.0
"""The Azure kind: a confidential VM with its paravisor and virtual TPM, as items of a verdict."""

from __future__ import annotations

from dataclasses import replace

from cube_attestation.manifest import Reference
from cube_attestation.snp.items import LABELS as SNP_LABELS
from cube_attestation.snp.items import appraise_report
from cube_attestation.snp.policy import SnpPolicy
from cube_attestation.subject import Outcome, Subject, attempt
from cube_attestation.tdx.abi import TdReport
from cube_attestation.tdx.items import LABELS as TDX_LABELS
from cube_attestation.tdx.items import appraise_quote
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.tpm import abi as tpm_abi
from cube_attestation.tpm import appraise as tpm_appraise
from cube_attestation.tpm import items as tpm_items
from cube_attestation.tpm import verify as tpm_verify
from cube_attestation.verdict import ItemVerdict, Reason
from cube_attestation.x509 import crl

from . import abi, verify
from .appraise import ASSUMPTIONS, appraise
from .policy import AzurePolicy

LABELS = {
    "azure-hcl": "application/vnd.cube.azure-hcl",
    "azure-ak-chain": "application/pem-certificate-chain",
    "azure-crls": "application/vnd.cube.crls",
    **{label: media for label, media in SNP_LABELS.items() if label != "snp-report"},
    **TDX_LABELS,
}


def appraise_azure(subject: Subject, policy: AzurePolicy, *, snp: SnpPolicy, tdx: TdxPolicy) -> Outcome:
    """Verify and appraise everything from the hardware report to the vTPM quote. Reaches ``hardware-paravisor``.

    Of ``snp`` only roots and collateral count: the rules for its report are the paravisor's.
    """
    data = subject.evidence.get("azure-hcl")
    hcl, problem = attempt(lambda: abi.parse_hcl(data or b""))
    if hcl is None:
        return Outcome((ItemVerdict("azure-hcl", (Reason("azure.hcl.malformed", problem),)),), "", ())
    hardware_item, report_data = _hardware(subject, policy, hcl, snp, tdx)
    items = [hardware_item]
    evidence, verified = _verify(subject, policy, hcl, report_data)
    hcl_item, quote_item, ak_item = appraise(verified, policy.rules)
    log_item, events = tpm_items.appraise_logs(subject, verified.evidence)
    if verified.evidence is not None:
        reference = Reference({}, ()) if subject.manifest is None else subject.manifest.reference
        quoted = tpm_verify.quoted(verified.evidence, tpm_appraise.BANK)
        wanted = subject.policy.tpm.pcrs
        refused, compared = tpm_appraise.appraise_pcrs(quoted, wanted, reference, subject.launch_payload, events)
        quote_item = replace(quote_item, refused=tuple(refused), compared=tuple(compared))
    items += [replace(hcl_item, item="azure-hcl"), quote_item, replace(ak_item, item="azure-ak-chain"), log_item]
    anchored = evidence and all(item.authentic for item in items if item is not log_item)
    return Outcome(tuple(items), "hardware-paravisor" if anchored else "", ASSUMPTIONS if anchored else ())


def _hardware(
    subject: Subject, policy: AzurePolicy, hcl: abi.HclReport, snp: SnpPolicy, tdx: TdxPolicy
) -> tuple[ItemVerdict, bytes | None]:
    """The item of the hardware's own evidence, and its report data if that is authentic."""
    if hcl.tee == "snp":
        item, report = appraise_report(subject, hcl.hardware, snp, policy.paravisor, item="snp-report")
        return item, report.report.report_data if report is not None and item.authentic else None
    item, quote = appraise_quote(subject, tdx)
    body = quote.quote.body if quote is not None and item.authentic else None
    return item, body.report_data if isinstance(body, TdReport) else None


def _verify(
    subject: Subject, policy: AzurePolicy, hcl: abi.HclReport, report_data: bytes | None
) -> tuple[bool, verify.Verified]:
    """Whether there is a quote at all, and the outcome; what can't be read is a reason of its item."""
    raw = subject.evidence.get("tpm-quote")
    evidence, problem = attempt(lambda: tpm_verify.QuoteEvidence.decode(raw or b""))
    lists, lists_problem = attempt(
        lambda: crl.load_all(subject.evidence.get("azure-crls") or b"", where="azure-crls")
    )
    quote = verify.VtpmQuote(b"", tpm_abi.Signature("rsassa", "sha256", b""), {})
    if evidence is not None:
        quote = verify.VtpmQuote(evidence.attest, evidence.signature, evidence.pcrs, evidence.ak)
    verified = verify.verify(
        hcl,
        quote,
        [subject.evidence.get("azure-ak-chain") or b""],
        hardware_report_data=report_data,
        now=subject.now,
        nonce=subject.claims.extra_data() if subject.claims is not None else None,
        roots=policy.roots,
        crls=lists or (),
        allow_missing=policy.allow_missing,
        max_crl_age=policy.max_crl_age,
    )
    if evidence is None:
        code = "tpm.quote.malformed" if raw else "tpm.quote.missing"
        verified = replace(verified, quote=(Reason(code, problem if raw else "the bundle has no TPM quote"),))
    elif subject.claims is None:
        unbound = Reason("tpm.quote.nonce_mismatch", "there are no claims that the quote could be bound to")
        verified = replace(verified, quote=(*verified.quote, unbound))
    if lists is None and subject.evidence.get("azure-crls"):
        malformed = Reason("collateral.crl.malformed", lists_problem)
        verified = replace(verified, ak_certificate=(*verified.ak_certificate, malformed))
    return evidence is not None, verified
