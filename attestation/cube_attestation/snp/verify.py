# SPDX-License-Identifier: Apache-2.0
"""Is an SNP report authentic: signed by a key that AMD vouches for, of the chip and TCB that the report names?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from cube_attestation import jcs
from cube_attestation.anchors import amd
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields
from cube_attestation.verdict import Reason
from cube_attestation.x509 import certificate, crl, keys, path

from . import abi

ALLOW_MISSING_CRL = "snp.crl"  # the name in a policy's allow_missing
MISSING_KEY = {"vcek": "collateral.vcek.missing", "vlek": "collateral.vlek.missing"}
CHAIN_CODES = {
    "expired": "snp.chain.expired",
    "not_yet_valid": "snp.chain.not_yet_valid",
    "constraints": "snp.chain.constraints",
    "weak": "snp.chain.weak",
    "signature_invalid": "snp.chain.signature_invalid",
    "untrusted_root": "snp.chain.untrusted_root",
}


class Endorsements(NamedTuple):
    """What vouches for a report's signer: certificates in any order, and revocation lists."""

    certificates: tuple[certificate.Certificate, ...] = ()
    crls: tuple[crl.Crl, ...] = ()


class Verified(NamedTuple):
    """The outcome. ``key`` and ``product`` are known (not None, not empty) if and only if a signer was found."""

    report: abi.Report
    product: str
    key: abi.EndorsementKey | None
    forged: tuple[Reason, ...]
    chain: tuple[certificate.Certificate, ...] = ()

    @property
    def authentic(self) -> bool:
        return not self.forged

    def tcb(self, raw: bytes) -> abi.Tcb:
        """A TCB field of the report in the layout of its product line."""
        return abi.parse_tcb(raw, self.product)


def read_endorsements(parts: Sequence[bytes], crls: Sequence[bytes] = ()) -> Endorsements:
    """Certificates from PEM, DER, certificate tables (auxblob) and Azure's host certificates in JSON (THIM).

    Lists are PEM or DER. Raises BadInput.
    """
    found: list[bytes] = []
    lists = list(crls)
    for part in parts:
        if part[:1] == b"{":
            found += _thim(part)
        elif abi.is_table(part):
            table = abi.parse_table(part)
            found += [content for kind, content in table if kind in ("ark", "ask", "vcek", "vlek") and content]
            lists += [content for kind, content in table if kind == "crl"]
        else:
            found.append(part)
    if len(lists) > 8:
        raise BadInput("more than 8 revocation lists", where="SNP endorsements")
    return Endorsements(
        certificate.load_all(found, where="SNP certificates"),
        tuple(crl.load(content, where=f"SNP CRL[{i}]") for i, content in enumerate(lists)),
    )


def _thim(data: bytes) -> list[bytes]:
    """VCEK and chain of Azure's trusted hardware identity management (``uvm_host_amd_certificate.json``)."""
    if len(data) > abi.MAX_TABLE:
        raise BadInput(f"larger than {abi.MAX_TABLE >> 10} KiB", where="host certificates")
    fields = Fields(jcs.loads(data, where="host certificates"), "host certificates")
    return [fields.text(name, limit=abi.MAX_TABLE).encode() for name in ("vcekCert", "certificateChain")]


def verify(
    report: abi.Report,
    endorsements: Endorsements,
    *,
    now: datetime,
    roots: Mapping[str, str] = amd.ROOTS,
    allow_missing: Collection[str] = (),
    max_crl_age: timedelta | None = None,
) -> Verified:
    """Check signature, chain, revocation, and that key, chip and TCB belong together. Never raises on evidence.

    ``roots`` maps the SPKI digest of each accepted ARK to its product line. ``allow_missing`` may hold
    ALLOW_MISSING_CRL; a list that is there is always used. ``max_crl_age`` bounds a list's age at ``now``.
    """
    if report.signature_algorithm != abi.ECDSA_P384_SHA384:
        words = f"signature algorithm {report.signature_algorithm} is not ECDSA P-384 with SHA-384"
        return _refused(report, "snp.signature.algorithm", words)
    if report.signing_key not in ("vcek", "vlek"):
        return _refused(
            report, "snp.signing_key.unknown", f"the report names the signing key {report.signing_key!r}"
        )
    kind = report.signing_key
    candidates = [c for c in endorsements.certificates if abi.key_kind(c) == kind]
    if not candidates:
        return _refused(report, MISSING_KEY[kind], f"there is no {kind.upper()} certificate")
    outcomes: list[Verified] = []
    for leaf in candidates[:8]:
        outcome = _under(report, leaf, endorsements, now, roots, allow_missing, max_crl_age)
        if outcome.authentic:
            return outcome
        outcomes.append(outcome)
    return min(outcomes, key=lambda outcome: len(outcome.forged))


def _refused(report: abi.Report, code: str, words: str) -> Verified:
    return Verified(report, "", None, (Reason(code, words),))


def _under(
    report: abi.Report,
    leaf: certificate.Certificate,
    endorsements: Endorsements,
    now: datetime,
    roots: Mapping[str, str],
    allow_missing: Collection[str],
    max_crl_age: timedelta | None,
) -> Verified:
    """The outcome with ``leaf`` as the report's signer."""
    try:
        key = _endorsement_key(leaf)
    except BadInput as error:
        return _refused(report, "snp.certificate.malformed", str(error))
    forged: list[Reason] = []
    issuers = (*endorsements.certificates, *(c for c in amd.published() if c not in endorsements.certificates))
    found = path.find(leaf, issuers, roots, now)
    if found.problem:
        forged.append(Reason(CHAIN_CODES[found.problem], found.words))
    else:
        forged += _chain(found, key, endorsements.crls, now, roots, allow_missing, max_crl_age)
    if not _signed(report, leaf):
        forged.append(
            Reason("snp.signature.invalid", f"the signature is not by the {key.kind.upper()} that was given")
        )
    forged += _binding(report, key)
    return Verified(report, key.product, key, tuple(forged), found.certificates)


def _chain(
    found: path.Path,
    key: abi.EndorsementKey,
    crls: Sequence[crl.Crl],
    now: datetime,
    roots: Mapping[str, str],
    allow_missing: Collection[str],
    max_crl_age: timedelta | None,
) -> list[Reason]:
    """What is wrong with a path that ends in an accepted root."""
    reasons: list[Reason] = []
    line = roots[found.anchor.spki_digest]
    if line != key.product:
        words = f"the certificate says {key.product_name}, its root is that of {line}"
        reasons.append(Reason("snp.product.mismatch", words))
    if len(found.certificates) != 3:
        words = f"{len(found.certificates)} certificates, AMD's chains have three"
        reasons.append(Reason("snp.chain.constraints", words))
    if found.anchor.subject != found.anchor.issuer:
        # then it did not sign itself, and anyone could have written its dates
        words = f"{found.anchor.name} does not name itself as its issuer"
        reasons.append(Reason("snp.chain.constraints", words))
    vlek = [c.common_name.startswith("SEV-VLEK") for c in found.certificates[1:-1]]
    if any(is_vlek != (key.kind == "vlek") for is_vlek in vlek):
        words = f"a {key.kind.upper()} issued by {found.certificates[1].name}"
        reasons.append(Reason("snp.chain.constraints", words))
    revocation = path.check_revocation(found.certificates, crls, now, max_age=max_crl_age)
    if revocation.revoked:
        reasons.append(Reason("snp.chain.revoked", f"AMD revoked {revocation.revoked}"))
    for problem, words in revocation.problems:
        if problem != "missing" or ALLOW_MISSING_CRL not in allow_missing:
            reasons.append(Reason(path.CRL_CODES[problem], words))
    return reasons


def _binding(report: abi.Report, key: abi.EndorsementKey) -> list[Reason]:
    """Whether the certificate is for the processor, chip and TCB that the report names."""
    reasons: list[Reason] = []
    if report.version >= 3 and report.product != key.product:
        family, model, _ = report.cpuid
        processor = f"family 0x{family:x} model 0x{model:x} ({report.product or 'unknown'})"
        words = f"the processor is {processor}, the key is for {key.product}"
        reasons.append(Reason("snp.product.mismatch", words))
    reported = abi.parse_tcb(report.reported_tcb, key.product)
    if reported != key.tcb:
        words = f"reported {reported.to_json(key.product)}, the certificate is for {key.tcb.to_json(key.product)}"
        reasons.append(Reason("snp.tcb.certificate_mismatch", words))
    if key.kind == "vcek" and not report.masked_chip:
        size = len(key.hardware_id)
        if report.chip_id[:size] != key.hardware_id or any(report.chip_id[size:]):
            words = f"chip {report.chip_id[:8].hex()}…, the certificate is for {key.hardware_id[:8].hex()}…"
            reasons.append(Reason("snp.chip_id.certificate_mismatch", words))
    return reasons


@lru_cache(maxsize=256)
def _endorsement_key(leaf: certificate.Certificate) -> abi.EndorsementKey:
    return abi.parse_endorsement_key(leaf)


def _signed(report: abi.Report, leaf: certificate.Certificate) -> bool:
    signature = report.signature()
    return signature is not None and keys.verify_raw(leaf.spki, "secp384r1", "sha384", report.signed, signature)
