# SPDX-License-Identifier: Apache-2.0
"""Attacks on AMD SEV-SNP reports, by themselves or inside an HCL report."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cube_attestation.anchors import amd
from cube_attestation.azure.policy import AzurePolicy
from cube_attestation.snp import abi, verify
from cube_attestation.snp.policy import SnpPolicy
from cube_attestation.x509 import crl
from cube_attestation.x509.certificate import Certificate

from . import forge
from .case import OTHER_DIGEST, Case, Inapplicable, Mutation

HCL_HEADER = 32
MEASUREMENT, REPORT_DATA, POLICY, REPORTED_TCB, CHIP_ID, SIGNATURE = 0x90, 0x50, 0x08, 0x180, 0x1A0, 0x2A0
DEBUG = 1 << 19


def place(case: Case) -> tuple[str, int]:
    """The label that holds the report, and where in it. Raises Inapplicable without an SNP report."""
    if case.has("snp-report"):
        return "snp-report", 0
    data = case.bundle.evidence.get("azure-hcl")
    # tee 2 in the runtime header after the hardware report is SNP
    if (
        data is not None
        and data[HCL_HEADER + abi.REPORT_BYTES + 8 : HCL_HEADER + abi.REPORT_BYTES + 12] == b"\2\0\0\0"
    ):
        return "azure-hcl", HCL_HEADER
    raise Inapplicable("the bundle has no SNP report")


def report(case: Case) -> bytes:
    label, at = place(case)
    return case.item(label)[at : at + abi.REPORT_BYTES]


def replaced(case: Case, data: bytes) -> Case:
    label, at = place(case)
    old = case.item(label)
    return case.put(label, old[:at] + data + old[at + len(data) :])


def policy(case: Case) -> SnpPolicy:
    return case.policy.snp or SnpPolicy()


def with_policy(case: Case, **members: object) -> Case:
    """Another ``[snp]`` section."""
    place(case)
    return case.under(snp=replace(policy(case), **members))  # type: ignore[arg-type] # callers name members


def _rules(**members: object) -> Callable[[Case], Case]:
    """Rules that the report does not meet; the paravisor's on Azure."""

    def change(case: Case) -> Case:
        label, _ = place(case)
        if label == "azure-hcl":
            section = case.policy.azure or AzurePolicy()
            rules = replace(section.paravisor, **members)  # type: ignore[arg-type] # callers name members
            return case.under(azure=replace(section, paravisor=rules))
        return with_policy(case, rules=replace(policy(case).rules, **members))  # type: ignore[arg-type]

    return change


def _edit(offset: int, mask: int = 1) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        label, at = place(case)
        return case.flip(label, at + offset, mask)

    return change


def _chain(case: Case) -> tuple[Certificate, ...]:
    """The report's own chain from the bundle and from what AMD publishes, leaf first."""
    place(case)
    endorsements = verify.read_endorsements([case.item("snp-certificates")])
    read = abi.parse_report(report(case))
    leaves = [c for c in endorsements.certificates if abi.key_kind(c) == read.signing_key]
    if not leaves:
        raise Inapplicable("the certificate of the report's key is not an item of its own")
    found = forge.ordered((*endorsements.certificates, *amd.published()), leaves[0])
    if len(found) != 3:
        raise Inapplicable("the report's chain is not complete")
    return found


def _signed(data: bytes, key: forge.PrivateKey) -> bytes:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Inapplicable("the report's key is not on an elliptic curve")
    body = data[: abi.SIGNED_BYTES]
    r, s = decode_dss_signature(key.sign(body, ec.ECDSA(hashes.SHA384())))
    rest = data[SIGNATURE + 144 :]
    return data[:SIGNATURE] + r.to_bytes(72, "little") + s.to_bytes(72, "little") + rest


def twin(case: Case, edit: Callable[[bytearray], None], *, trusted: bool, revoke: bool = False) -> Case:
    """The report edited and correctly signed under a chain like AMD's. ``trusted``: the policy takes its root."""
    chain = _chain(case)
    made = forge.impostor(chain, "AMD")
    data = bytearray(report(case))
    edit(data)
    case = replaced(case, _signed(bytes(data), made.keys[0])).put("snp-certificates", made.pem)
    if trusted:
        line = next((line for digest, line in policy(case).roots.items() if digest == chain[-1].spki_digest), "")
        case = with_policy(case, roots={**policy(case).roots, made.root: line})
    if case.has("snp-crl"):
        known = crl.load(case.item("snp-crl"), where="snp-crl")
        der = _der(case.item("snp-crl"))
        revoked = (chain[1].serial,) if revoke else ()
        if known.issuer == chain[-1].subject:
            case = case.put("snp-crl", forge.resigned_crl(der, made.keys[-1], revoke=revoked))
    elif revoke:
        raise Inapplicable("the bundle has no revocation list")
    return case


def _der(data: bytes) -> bytes:
    if data[:1] == b"\x30":
        return data
    return base64.b64decode(b"".join(data.split(b"-----")[2].split()))


def _flip(offset: int, mask: int = 1) -> Callable[[bytearray], None]:
    def edit(data: bytearray) -> None:
        data[offset] ^= mask

    return edit


def _foreign(case: Case) -> Case:
    """Only where the policy names measurements: elsewhere the signer of the ID block is what counts."""
    label, _ = place(case)
    if label == "azure-hcl" or not policy(case).rules.measurements:
        raise Inapplicable("the policy names no measurement")
    return twin(case, _flip(MEASUREMENT), trusted=True)


def _id_key(case: Case) -> Case:
    label, _ = place(case)
    rules = (case.policy.azure or AzurePolicy()).paravisor if label == "azure-hcl" else policy(case).rules
    if not rules.id_keys:
        raise Inapplicable("the policy names no ID key")
    return twin(case, _flip(0xE0), trusted=True)


def _twin_debug(case: Case) -> Case:
    return twin(case, _flip(POLICY + 2, DEBUG >> 16), trusted=True)


def _other_chip(case: Case) -> Case:
    read = abi.parse_report(report(case))
    if read.masked_chip or read.signing_key != "vcek":
        raise Inapplicable("the report does not name its chip")
    return twin(case, _flip(CHIP_ID), trusted=True)


def _stale_crl(case: Case) -> Case:
    place(case)
    known = crl.load(case.item("snp-crl"), where="snp-crl")
    return replace(case, now=known.next_update + timedelta(seconds=1))


def _tcb(case: Case) -> Case:
    """The firmware's versions one higher than the report's."""
    read = abi.parse_report(report(case))
    product = abi.parse_endorsement_key(_chain(case)[0]).product
    tcb = abi.parse_tcb(read.reported_tcb, product)
    return _rules(minimum_tcb={product: replace(tcb, snp=tcb.snp + 1)})(case)


def _guest_svn(case: Case) -> Case:
    return _rules(minimum_guest_svn=abi.parse_report(report(case)).guest_svn + 1)(case)


def _chips(case: Case) -> Case:
    if abi.parse_report(report(case)).masked_chip:
        raise Inapplicable("the report hides its chip")
    return _rules(chip_ids=("0f" * 64,))(case)


def _vmpl(case: Case) -> Case:
    return _rules(vmpls=((abi.parse_report(report(case)).vmpl + 1) % 4,))(case)


def _without_certificates(case: Case) -> Case:
    place(case)
    if abi.parse_report(report(case)).signing_key != "vcek":
        raise Inapplicable("the report is signed by a VLEK")
    return case.without("snp-certificates")


def _without_crl(case: Case) -> Case:
    place(case)
    return with_policy(case.without("snp-crl"), allow_missing=())


MUTATIONS = (
    Mutation("snp.measurement", "one bit of the launch measurement", "snp.signature.invalid", _edit(MEASUREMENT)),
    Mutation("snp.report_data", "one bit of the report data", "snp.signature.invalid", _edit(REPORT_DATA)),
    Mutation("snp.debug", "the debug bit set", "snp.policy.debug", _edit(POLICY + 2, DEBUG >> 16)),
    Mutation("snp.signature", "one bit of the signature", "snp.signature.invalid", _edit(SIGNATURE)),
    Mutation("snp.tcb", "another reported TCB", "snp.tcb.certificate_mismatch", _edit(REPORTED_TCB)),
    Mutation(
        "snp.impostor",
        "the whole report correctly signed under a chain like AMD's, but for the keys",
        "snp.chain.untrusted_root",
        lambda case: twin(case, lambda _: None, trusted=False),
        also="snp.chain.signature_invalid",
    ),
    Mutation(
        "snp.roots",
        "a processor of a maker that is not accepted",
        "snp.chain.untrusted_root",
        lambda case: with_policy(case, roots={OTHER_DIGEST: "Genoa"}),
    ),
    Mutation("snp.twin.debug", "a correctly signed report of a debuggable guest", "snp.policy.debug", _twin_debug),
    Mutation(
        "snp.twin.measurement",
        "a correctly signed report of foreign firmware",
        "snp.measurement.not_allowed",
        _foreign,
    ),
    Mutation(
        "snp.twin.id_key",
        "a correctly signed report of firmware whose ID block somebody else signed",
        "snp.id_key.not_allowed",
        _id_key,
    ),
    Mutation(
        "snp.twin.chip",
        "a correctly signed report with another chip's certificate",
        "snp.chip_id.certificate_mismatch",
        _other_chip,
    ),
    Mutation(
        "snp.twin.tcb",
        "a correctly signed report with the certificate of another TCB",
        "snp.tcb.certificate_mismatch",
        lambda case: twin(case, _flip(REPORTED_TCB), trusted=True),
    ),
    Mutation(
        "snp.twin.revoked",
        "a correctly signed report whose intermediate was revoked",
        "snp.chain.revoked",
        lambda case: twin(case, lambda _: None, trusted=True, revoke=True),
    ),
    Mutation("snp.certificates", "no certificate of the chip", "collateral.vcek.missing", _without_certificates),
    Mutation("snp.crl.removed", "no revocation list", "collateral.crl.missing", _without_crl),
    Mutation("snp.crl.stale", "after the revocation list's end", "collateral.expired", _stale_crl),
    Mutation("snp.rules.tcb", "firmware older than the policy's least", "snp.tcb.too_low", _tcb),
    Mutation("snp.rules.guest_svn", "an outdated guest", "snp.guest_svn.too_low", _guest_svn),
    Mutation("snp.rules.vmpl", "a report of another privilege level", "snp.vmpl.not_allowed", _vmpl),
    Mutation("snp.rules.chip", "a chip that is not listed", "snp.chip_id.not_allowed", _chips),
)
