# SPDX-License-Identifier: Apache-2.0
"""Is a TPM quote authentic? Signature, PCR digest, attestation key, and the certificates of AK and EK."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from cube_attestation import jcs
from cube_attestation.errors import BadInput
from cube_attestation.fields import PCR_INDEX, Fields
from cube_attestation.verdict import Reason
from cube_attestation.x509 import path
from cube_attestation.x509.certificate import Certificate, attributes

from . import abi

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

MEDIA_TYPE = "application/vnd.cube.tpm-quote+json"
AK_CERTIFICATE_EKU = "2.23.133.8.3"  # tcg-kp-AIKCertificate
AK_ATTRIBUTES = abi.FIXED_TPM | abi.FIXED_PARENT | abi.SENSITIVE_DATA_ORIGIN | abi.RESTRICTED | abi.SIGN_ENCRYPT


class QuoteEvidence(NamedTuple):
    """The ``tpm-quote`` item: raw TPMS_ATTEST and TPMT_SIGNATURE, both also parsed, and the PCR values."""

    attest: bytes
    quote: abi.Quote
    signature: abi.Signature
    ak: abi.Public
    pcrs: Mapping[str, Mapping[int, bytes]]

    @classmethod
    def decode(cls, data: bytes) -> QuoteEvidence:
        """Read the item's JSON. Raises BadInput."""
        fields = Fields(jcs.loads(data, where="tpm-quote"), "tpm-quote")
        attest = fields.base64("attest", 4096)
        signature = fields.base64("signature", 4096)
        public = fields.base64("ak_public", 4096)
        banks = fields.member("pcrs")
        pcrs: dict[str, dict[int, bytes]] = {}
        for bank in banks.names():
            if bank not in abi.HASHES.values():
                raise BadInput(f"{bank[:20]!r} is no bank", where=banks.where)
            size = hashlib.new(bank).digest_size
            values = banks.member(bank)
            indices = [name for name in values.names() if PCR_INDEX.fullmatch(name)]
            pcrs[bank] = {int(name): values.hexadecimal(name, size, size) for name in indices}
            values.done()
        banks.done()
        fields.done()
        return cls(attest, abi.parse_quote(attest), abi.parse_signature(signature), abi.parse_public(public), pcrs)


def signature_holds(
    attest: bytes, signature: abi.Signature, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
) -> bool:
    """Whether ``key`` signed ``attest``. SHA-1 signatures never hold. RSA-PSS with any salt length."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

    algorithms: dict[str, hashes.HashAlgorithm] = {
        "sha256": hashes.SHA256(),
        "sha384": hashes.SHA384(),
        "sha512": hashes.SHA512(),
    }
    algorithm = algorithms.get(signature.hash)
    if algorithm is None:
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and signature.scheme == "ecdsa":
            key.verify(signature.value, attest, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey) and signature.scheme == "rsassa":
            key.verify(signature.value, attest, padding.PKCS1v15(), algorithm)
        elif isinstance(key, rsa.RSAPublicKey) and signature.scheme == "rsapss":
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            key.verify(signature.value, attest, pss, algorithm)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def pcr_digest(evidence: QuoteEvidence) -> bytes | None:
    """Digest of the listed PCR values in the quote's order; None if a selected value is not listed.

    It is made with the hash of the signature's scheme, not with the bank's (Part 2, 10.12.1).
    """
    joined = hashlib.new(evidence.signature.hash)
    for bank, indices in evidence.quote.selection:
        for index in indices:
            value = evidence.pcrs.get(bank, {}).get(index)
            if value is None:
                return None
            joined.update(value)
    return joined.digest()


def quoted(evidence: QuoteEvidence, bank: str) -> dict[int, bytes]:
    """The listed PCR values of ``bank`` that the quote really covers."""
    selected = dict(evidence.quote.selection).get(bank, ())
    return {index: evidence.pcrs[bank][index] for index in selected if index in evidence.pcrs.get(bank, {})}


def verify_quote(evidence: QuoteEvidence) -> list[Reason]:
    """What keeps the quote from being one of the attestation key that it names. Empty: nothing."""
    reasons: list[Reason] = []
    if not signature_holds(evidence.attest, evidence.signature, evidence.ak.key()):
        reasons.append(Reason("tpm.quote.signature_invalid", "the attestation key did not sign this quote"))
    if not hmac.compare_digest(pcr_digest(evidence) or b"", evidence.quote.pcr_digest):
        reasons.append(Reason("tpm.quote.pcr_digest_mismatch", "the PCR values listed are not the ones quoted"))
    if evidence.quote.qualified_signer != evidence.ak.qualified_name(abi.RH_ENDORSEMENT):
        # The TPM signs over the name of the key that it used: so the attributes are its word, not the guest's.
        words = "the TPM says that a key with another public area made this quote"
        reasons.append(Reason("tpm.ak.name_mismatch", words))
    lacking = AK_ATTRIBUTES & ~evidence.ak.attributes
    if lacking or evidence.ak.attributes & abi.DECRYPT:
        words = f"attributes 0x{evidence.ak.attributes:08x} are not those of a restricted signing key of this TPM"
        reasons.append(Reason("tpm.ak.attributes", words))
    return reasons


def verify_ek(
    certificate: Certificate, issuers: Sequence[Certificate], roots: Collection[str], now: datetime
) -> list[Reason]:
    """What keeps the EK certificate from being one of a TPM whose maker is among ``roots`` (SPKI digests)."""
    chain = path.find(certificate, issuers, roots, now)
    codes = {
        "untrusted_root": "tpm.ek.untrusted_root",
        "signature_invalid": "tpm.ek.signature_invalid",
        "expired": "tpm.ek.expired",
        "not_yet_valid": "tpm.ek.not_yet_valid",
        "constraints": "tpm.ek.constraints",
        "weak": "tpm.ek.weak_key",
    }
    return [Reason(codes[chain.problem], chain.words)] if chain.problem else []


def verify_ak(
    certificate: Certificate,
    issuers: Sequence[Certificate],
    accepted: Collection[str],
    now: datetime,
    *,
    ak: abi.Public,
    ek: Certificate,
) -> list[Reason]:
    """What keeps the AK certificate from vouching that ``ak`` lives in the TPM of ``ek`` (formats §5).

    Raises BadInput for a malformed extended key usage.
    """
    chain = path.find(certificate, issuers, accepted, now)
    codes = {
        "untrusted_root": "tpm.ak.untrusted_issuer",
        "signature_invalid": "tpm.ak.signature_invalid",
        "expired": "tpm.ak.expired",
        "not_yet_valid": "tpm.ak.not_yet_valid",
        "constraints": "tpm.ak.constraints",
        "weak": "tpm.ak.weak_key",
    }
    reasons = [Reason(codes[chain.problem], chain.words)] if chain.problem else []
    if certificate.spki != ak.spki():
        reasons.append(Reason("tpm.ak.key_mismatch", "the AK certificate is for another key than the quote's"))
    usages = certificate.extended_key_usage() or ()
    if usages != (AK_CERTIFICATE_EKU,):
        words = f"extended key usage {', '.join(usages) or 'none'}, expected {AK_CERTIFICATE_EKU} alone"
        reasons.append(Reason("tpm.ak.usage", words))
    vouched = [value for kind, value in attributes(certificate.subject) if kind == "serialNumber"]
    if vouched != [ek.spki_digest.removeprefix("sha256:")]:
        reasons.append(Reason("tpm.ak.other_ek", "the AK certificate names another TPM than the EK certificate's"))
    return reasons
