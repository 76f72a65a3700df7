# SPDX-License-Identifier: Apache-2.0
"""Is the virtual TPM's quote one of this confidential VM? From the hardware's word to the quote, link by link.

hardware report (verified by ``snp`` or ``tdx``) → H(claims) in its report data → HCLAkPub in the claims → the
quote's signature → its PCR values. The AK certificate is Microsoft's own word beside.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cube_attestation.anchors import microsoft
from cube_attestation.errors import BadInput
from cube_attestation.tpm import abi as tpm
from cube_attestation.tpm.verify import AK_CERTIFICATE_EKU, QuoteEvidence, pcr_digest, signature_holds
from cube_attestation.verdict import Reason
from cube_attestation.x509 import certificate, crl, keys, path

from . import abi

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

ALLOW_MISSING_CRL = "azure.crl"  # names in a policy's allow_missing
ALLOW_MISSING_AK_CERTIFICATE = "azure.ak-certificate"
CHAIN_CODES = {
    "expired": "azure.ak_chain.expired",
    "not_yet_valid": "azure.ak_chain.not_yet_valid",
    "constraints": "azure.ak_chain.constraints",
    "weak": "azure.ak_chain.weak",
    "signature_invalid": "azure.ak_chain.signature_invalid",
    "untrusted_root": "azure.ak_chain.untrusted_root",
}


@dataclass(frozen=True)
class VtpmQuote:
    """A quote: the bytes of TPMS_ATTEST, its signature, PCR values by bank.

    ``ak`` is the key that the guest says made it, if it says so: it helps to explain, never to trust.
    """

    attest: bytes
    signature: tpm.Signature
    pcrs: Mapping[str, Mapping[int, bytes]]
    ak: tpm.Public | None = None


@dataclass(frozen=True)
class Verified:
    """``forged`` of the three parts: the HCL report's binding, the quote, the AK certificate."""

    report: abi.HclReport
    claims: abi.RuntimeClaims | None
    hcl: tuple[Reason, ...]
    quote: tuple[Reason, ...]
    ak_certificate: tuple[Reason, ...]
    evidence: QuoteEvidence | None = None
    chain: tuple[certificate.Certificate, ...] = ()

    @property
    def forged(self) -> tuple[Reason, ...]:
        return self.hcl + self.quote + self.ak_certificate


def verify(
    report: abi.HclReport,
    quote: VtpmQuote,
    ak_certificates: Sequence[bytes],
    *,
    hardware_report_data: bytes | None,
    now: datetime,
    nonce: bytes | None = None,
    roots: Collection[str] = microsoft.VTPM_ROOTS,
    crls: Sequence[crl.Crl] = (),
    allow_missing: Collection[str] = (),
    max_crl_age: timedelta | None = None,
) -> Verified:
    """Check every link after the hardware's own signature. Never raises on evidence that is well-formed bytes.

    ``hardware_report_data``: the 64 bytes of report data of the *authentic* SNP report inside ``report`` or of the
    authentic TD quote, None if that is not authentic (then nothing is bound). ``ak_certificates``: PEM or DER, leaf
    first, zero-padded or not. ``nonce``: the extraData that the quote must carry.
    """
    claims, hcl = _bound_claims(report, hardware_report_data)
    certificates, problem = _load(ak_certificates)
    chain: tuple[certificate.Certificate, ...] = ()
    if problem:
        vouched = [problem]
    elif not certificates:
        vouched = _no_certificate(allow_missing)
    else:
        chain, vouched = _ak_certificate(claims, certificates, now, roots, crls, allow_missing, max_crl_age)
    evidence, quoted = _quote(claims, quote, nonce, certificates)
    return Verified(report, claims, tuple(hcl), tuple(quoted), tuple(vouched), evidence, chain)


def _bound_claims(
    report: abi.HclReport, hardware_report_data: bytes | None
) -> tuple[abi.RuntimeClaims | None, list[Reason]]:
    """The claims if the hardware vouches for them."""
    if hardware_report_data is None:
        words = f"the {report.tee.upper()} evidence is not authentic, so it vouches for no claims"
        return None, [Reason("azure.hcl.unbound_claims", words)]
    if report.tee == "tdx" and not hmac.compare_digest(report.td_report_data(), hardware_report_data):
        words = "the TDREPORT in the HCL report and the TD quote carry different report data"
        return None, [Reason("azure.hcl.td_report_mismatch", words)]
    if not hmac.compare_digest(report.bound_data(), hardware_report_data):
        words = f"the hardware's report data is not the {report.hash} of the claims"
        return None, [Reason("azure.hcl.unbound_claims", words)]
    try:
        return abi.parse_claims(report.claims), []
    except BadInput as error:
        return None, [Reason("azure.claims.malformed", str(error))]


def _quote(
    claims: abi.RuntimeClaims | None,
    quote: VtpmQuote,
    nonce: bytes | None,
    certificates: Sequence[certificate.Certificate],
) -> tuple[QuoteEvidence | None, list[Reason]]:
    if claims is None:
        return None, [Reason("azure.hcl.unbound_key", "no authentic claims name the key that made the quote")]
    try:
        ak = claims.ak.public()
        key = ak.key()
        evidence = QuoteEvidence(quote.attest, tpm.parse_quote(quote.attest), quote.signature, ak, quote.pcrs)
    except BadInput as error:
        return None, [Reason("tpm.quote.malformed", str(error))]
    reasons: list[Reason] = []
    if not signature_holds(quote.attest, quote.signature, key):
        others: list[rsa.RSAPublicKey | ec.EllipticCurvePublicKey] = [quote.ak.key()] if quote.ak else []
        others += [other for c in certificates[:1] if (other := _rsa_key(c)) is not None]
        if any(signature_holds(quote.attest, quote.signature, other) for other in others):
            words = "the quote is by another key than the one that the claims name"
            reasons.append(Reason("azure.hcl.unbound_key", words))
        else:
            words = "the attestation key of the claims did not sign this quote"
            reasons.append(Reason("tpm.quote.signature_invalid", words))
    if not hmac.compare_digest(pcr_digest(evidence) or b"", evidence.quote.pcr_digest):
        reasons.append(Reason("tpm.quote.pcr_digest_mismatch", "the PCR values listed are not the ones quoted"))
    if nonce is not None and not hmac.compare_digest(nonce, evidence.quote.extra_data):
        words = f"extraData {evidence.quote.extra_data.hex()}, expected {nonce.hex()}"
        reasons.append(Reason("tpm.quote.nonce_mismatch", words))
    return evidence, reasons


def _ak_certificate(
    claims: abi.RuntimeClaims | None,
    found: Sequence[certificate.Certificate],
    now: datetime,
    roots: Collection[str],
    crls: Sequence[crl.Crl],
    allow_missing: Collection[str],
    max_crl_age: timedelta | None,
) -> tuple[tuple[certificate.Certificate, ...], list[Reason]]:
    leaf, issuers = found[0], (*found[1:], *microsoft.published())
    reasons: list[Reason] = []
    if claims is None or not _same_key(leaf, claims.ak):
        words = "the AK certificate is for another key than the one that the claims name"
        reasons.append(Reason("azure.ak_certificate.key_mismatch", words))
    try:
        usages = leaf.extended_key_usage() or ()
    except BadInput:
        usages = ()
    if AK_CERTIFICATE_EKU not in usages:
        words = f"extended key usage {', '.join(usages) or 'none'}, {AK_CERTIFICATE_EKU} is needed"
        reasons.append(Reason("azure.ak_certificate.usage", words))
    chain = path.find(leaf, issuers, roots, now)
    if chain.problem:
        return chain.certificates, [*reasons, Reason(CHAIN_CODES[chain.problem], chain.words)]
    revocation = path.check_revocation(chain.certificates, crls, now, max_age=max_crl_age)
    if revocation.revoked:
        reasons.append(Reason("azure.ak_chain.revoked", f"Microsoft revoked {revocation.revoked}"))
    for problem, words in revocation.problems:
        if problem != "missing" or ALLOW_MISSING_CRL not in allow_missing:
            reasons.append(Reason(path.CRL_CODES[problem], words))
    return chain.certificates, reasons


def _load(parts: Sequence[bytes]) -> tuple[tuple[certificate.Certificate, ...], Reason | None]:
    """The certificates in the order given, the AK's first."""
    found: list[certificate.Certificate] = []
    try:
        for i, part in enumerate(parts):
            found += certificate.load(part, where=f"AK chain[{i}]", padding=True) if part else ()
            if len(found) > certificate.MAX_COUNT:
                raise BadInput(f"more than {certificate.MAX_COUNT} certificates", where="AK chain")
    except BadInput as error:
        return (), Reason("azure.ak_certificate.malformed", str(error))
    return tuple(found), None


def _no_certificate(allow_missing: Collection[str]) -> list[Reason]:
    if ALLOW_MISSING_AK_CERTIFICATE in allow_missing:
        return []
    words = "there is no certificate by Microsoft for the attestation key"
    return [Reason("collateral.ak_certificate.missing", words)]


def _rsa_key(leaf: certificate.Certificate) -> rsa.RSAPublicKey | None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        found = keys.public_key(leaf.spki)
    except BadInput:
        return None
    return found if isinstance(found, rsa.RSAPublicKey) else None


def _same_key(leaf: certificate.Certificate, key: abi.RsaKey) -> bool:
    found = _rsa_key(leaf)
    if found is None:
        return False
    numbers = found.public_numbers()
    return (numbers.n, numbers.e) == (int.from_bytes(key.modulus, "big"), key.exponent)
