# SPDX-License-Identifier: Apache-2.0
"""The TPM kind: EK and AK certificates, quote, and event logs of one machine, as items of a verdict."""

from __future__ import annotations

import hmac

from cube_attestation import jcs
from cube_attestation.manifest import Reference
from cube_attestation.subject import Kind, Outcome, Subject, attempt
from cube_attestation.verdict import Comparison, ItemVerdict, Reason
from cube_attestation.x509.certificate import Certificate, load, parse
from cube_attestation.x509.keys import spki_digest

from . import appraise, eventlog, verify

CERTIFICATE, CHAIN = "application/pkix-cert", "application/pem-certificate-chain"
SOFTWARE_ASSUMPTIONS = ("software.firmware_not_appraised", "software.no_hardware_protection")


def appraise_tpm(subject: Subject) -> Outcome:
    """Verify and appraise everything about the machine's TPM. Reaches the software tier."""
    ek_item, ek = _ek(subject)
    evidence, problem = _quote(subject)
    ak_item = _ak(subject, evidence, ek)
    log_item, events = appraise_logs(subject, evidence)
    quote_item = _appraise_quote(subject, evidence, problem, events)
    anchored = ek_item.authentic and ak_item.authentic and quote_item.authentic
    return Outcome(
        items=(ek_item, ak_item, quote_item, log_item),
        tier="software" if anchored else "",
        assumptions=SOFTWARE_ASSUMPTIONS if anchored else (),
    )


def _chain(subject: Subject, label: str) -> tuple[tuple[Certificate, ...], str]:
    data = subject.evidence.get(label) or b""
    chain, problem = attempt(lambda: load(data, where=label) if data.strip() else ())
    return chain or (), problem


def _ek(subject: Subject) -> tuple[ItemVerdict, Certificate | None]:
    item = "ek-certificate"
    data = subject.evidence.get(item)
    if data is None:
        return ItemVerdict(item, forged=(Reason("tpm.ek.missing", "the bundle has no EK certificate"),)), None
    certificate, problem = attempt(lambda: parse(data))
    issuers, chain_problem = _chain(subject, "ek-chain")
    if certificate is None or chain_problem:
        return ItemVerdict(item, forged=(Reason("tpm.ek.malformed", problem or chain_problem),)), None
    reasons = verify.verify_ek(certificate, issuers, subject.policy.tpm.ek_roots, subject.now)
    facts: dict[str, jcs.Json] = {"ek_spki": certificate.spki_digest}
    return ItemVerdict(item, forged=tuple(reasons), facts=facts), certificate


def _quote(subject: Subject) -> tuple[verify.QuoteEvidence | None, Reason]:
    data = subject.evidence.get("tpm-quote")
    if data is None:
        return None, Reason("tpm.quote.missing", "the bundle has no TPM quote")

    def decode() -> verify.QuoteEvidence:
        evidence = verify.QuoteEvidence.decode(data)
        evidence.ak.key()
        return evidence

    evidence, problem = attempt(decode)
    return evidence, Reason("tpm.quote.malformed", problem)


def _ak(subject: Subject, evidence: verify.QuoteEvidence | None, ek: Certificate | None) -> ItemVerdict:
    item = "ak-certificate"
    data = subject.evidence.get(item)
    if data is None:
        words = "the bundle has no AK certificate: nothing says that the quoting key lives in that TPM"
        return ItemVerdict(item, forged=(Reason("tpm.ak.missing", words),))
    certificate, problem = attempt(lambda: parse(data))
    issuers, chain_problem = _chain(subject, "ak-chain")
    if certificate is None or chain_problem:
        return ItemVerdict(item, forged=(Reason("tpm.ak.malformed", problem or chain_problem),))
    if evidence is None or ek is None:
        words = "without a quote and an EK certificate there is nothing that the AK certificate could join"
        return ItemVerdict(item, forged=(Reason("tpm.ak.unbound", words),))
    accepted = subject.policy.tpm.ak_issuers
    ak = evidence.ak
    reasons, problem = attempt(lambda: verify.verify_ak(certificate, issuers, accepted, subject.now, ak=ak, ek=ek))
    if reasons is None:
        return ItemVerdict(item, forged=(Reason("tpm.ak.malformed", problem),))
    facts: dict[str, jcs.Json] = {"ak_spki": spki_digest(ak.spki()), "ak_name": ak.name().hex()}
    return ItemVerdict(item, forged=tuple(reasons), facts=facts)


def appraise_logs(
    subject: Subject, evidence: verify.QuoteEvidence | None
) -> tuple[ItemVerdict, list[eventlog.Event] | None]:
    """The logs' item, and their events if the quote vouches for them."""
    item = "tcg-eventlog"
    data = subject.evidence.get(item)
    systemd = subject.evidence.get("systemd-eventlog") or b""
    if data is None:
        return ItemVerdict(item, forged=(Reason("tpm.eventlog.missing", "the bundle has no event log"),)), None
    logs, problem = attempt(lambda: appraise.parse_logs(data, systemd))
    if logs is None:
        return ItemVerdict(item, forged=(Reason("tpm.eventlog.malformed", problem),)), None
    quoted = {} if evidence is None else verify.quoted(evidence, appraise.BANK)
    reasons, problem = attempt(lambda: appraise.check_replay(*logs, quoted))
    if reasons is None:
        return ItemVerdict(item, forged=(Reason("tpm.eventlog.malformed", problem),)), None
    events = appraise.measured_events(*logs)
    facts: dict[str, jcs.Json] = {"events": len(events)}
    return ItemVerdict(item, forged=tuple(reasons), facts=facts), None if reasons else events


def _appraise_quote(
    subject: Subject,
    evidence: verify.QuoteEvidence | None,
    problem: Reason,
    events: list[eventlog.Event] | None,
) -> ItemVerdict:
    item = "tpm-quote"
    if evidence is None:
        return ItemVerdict(item, forged=(problem,))
    forged = verify.verify_quote(evidence)
    compared: list[Comparison] = []
    if subject.claims is None:
        forged.append(Reason("tpm.quote.nonce_mismatch", "there are no claims that the quote could be bound to"))
    else:
        bound = subject.claims.extra_data()
        compared.append(Comparison("extraData", bound.hex(), evidence.quote.extra_data.hex()))
        if not hmac.compare_digest(bound, evidence.quote.extra_data):
            words = "the quote was made over other claims (extraData is not the digest of these)"
            forged.append(Reason("tpm.quote.nonce_mismatch", words))
    reference = Reference({}, ()) if subject.manifest is None else subject.manifest.reference
    quoted = verify.quoted(evidence, appraise.BANK)
    wanted = subject.policy.tpm.pcrs
    refused, values = appraise.appraise_pcrs(quoted, wanted, reference, subject.launch_payload, events)
    return ItemVerdict(item, forged=tuple(forged), refused=tuple(refused), compared=(*compared, *values))


KIND = Kind(
    labels={
        "ek-certificate": CERTIFICATE,
        "ek-chain": CHAIN,
        "ak-certificate": CERTIFICATE,
        "ak-chain": CHAIN,
        "tpm-quote": verify.MEDIA_TYPE,
        "tcg-eventlog": eventlog.TCG_MEDIA_TYPE,
        "systemd-eventlog": eventlog.SYSTEMD_MEDIA_TYPE,
    },
    appraise=appraise_tpm,
)
