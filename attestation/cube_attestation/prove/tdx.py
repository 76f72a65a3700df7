# SPDX-License-Identifier: Apache-2.0
"""Attacks on Intel TDX quotes, their collateral and their event log."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from cube_attestation.claims import Claims
from cube_attestation.tdx import abi, ccel
from cube_attestation.tdx import policy as tdx_policy
from cube_attestation.tdx.collateral import crl_bytes
from cube_attestation.x509.certificate import Certificate

from . import forge
from .case import OTHER_DIGEST, Case, Inapplicable, Mutation

# Offsets in the TD report, which is the same in 1.0 and 1.5 up to here
ATTRIBUTES, MRTD, RTMR0, RTMR1, REPORT_DATA = 120, 136, 328, 376, 520
DOCUMENTS = ("tdx-tcb-info", "tdx-qe-identity")


def _quote(case: Case) -> abi.Quote:
    return abi.parse_quote(case.item("tdx-quote"))


def _body_at(case: Case) -> int:
    """Where the TD report begins."""
    return abi.HEADER + (6 if _quote(case).version == 5 else 0)


def _edit(offset: int, mask: int = 1) -> Callable[[Case], Case]:
    return lambda case: case.flip("tdx-quote", _body_at(case) + offset, mask)


def _after_signed(offset: int) -> Callable[[Case], Case]:
    """One bit of the signature data, ``offset`` bytes behind its length."""
    return lambda case: case.flip("tdx-quote", len(_quote(case).signed) + 4 + offset)


def _section(case: Case) -> tdx_policy.TdxPolicy:
    case.item("tdx-quote")
    return case.policy.tdx or tdx_policy.TdxPolicy()


def _with_section(**members: object) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        return case.under(tdx=replace(_section(case), **members))  # type: ignore[arg-type] # callers name members

    return change


def _missing(*labels: str) -> Callable[[Case], Case]:
    return lambda case: _with_section(allow_missing=())(case.without(*labels))


def _document(label: str) -> Callable[[Case], Case]:
    """One figure of a document that Intel signed."""

    def change(case: Case) -> Case:
        data = case.item(label)
        at = data.find(b'"tcbEvaluationDataNumber":')
        if at < 0:
            raise Inapplicable(f"{label} has no evaluation number")
        return case.flip(label, at + len(b'"tcbEvaluationDataNumber":'))

    return change


def _stale(case: Case) -> Case:
    """After the end of a document that Intel signed."""
    value = json.loads(case.item("tdx-tcb-info"))
    text = str(value.get("tcbInfo", value)["nextUpdate"])
    end = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
    return replace(case, now=end + timedelta(seconds=1))


def _chain(case: Case) -> tuple[Certificate, ...]:
    quote = _quote(case)
    if quote.cert_type != abi.CERT_PCK_CHAIN:
        raise Inapplicable("the quote does not carry its certificate chain")
    found = forge.load(quote.cert_data.rstrip(b"\0"), where="PCK certificate chain")
    chain = forge.ordered(found, found[0])
    if len(chain) != 3:
        raise Inapplicable("the PCK certificate chain is not complete")
    return chain


def _ec(key: forge.PrivateKey) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Inapplicable("the platform's key is not on an elliptic curve")
    return key


def _twin_quote(case: Case, edit: Callable[[bytearray], None], platform: forge.Impostor) -> bytes:
    """The quote edited, and signed anew: attestation key, quoting enclave's report, certificate chain."""
    quote = _quote(case)
    start = _body_at(case)
    signed = bytearray(quote.signed)
    body = bytearray(signed[start:])
    edit(body)
    signed[start:] = body
    attestation = forge.ec_key("quoting enclave")
    point = forge.spki(attestation)[-64:]
    report = bytearray(quote.qe_report_bytes)
    report[320:352] = hashlib.sha256(point + quote.qe_auth).digest()
    inner = bytes(report) + forge.raw_signature(_ec(platform.keys[0]), bytes(report), "sha256")
    inner += struct.pack("<H", len(quote.qe_auth)) + quote.qe_auth
    inner += struct.pack("<HI", abi.CERT_PCK_CHAIN, len(platform.pem)) + platform.pem
    if quote.version >= 4:
        inner = struct.pack("<HI", abi.CERT_QE_REPORT, len(inner)) + inner
    section = forge.raw_signature(attestation, bytes(signed), "sha256") + point + inner
    return bytes(signed) + struct.pack("<I", len(section)) + section


def twin(case: Case, edit: Callable[[bytearray], None], *, trusted: bool, revoke: bool = False) -> Case:
    """A TD whose evidence is correctly signed under chains like Intel's. ``trusted``: the policy takes their root.

    Collateral keeps its content; with ``revoke`` the platform is on its CA's list.
    """
    chain = _chain(case)
    platform = forge.impostor(chain, "Intel")
    case = case.put("tdx-quote", _twin_quote(case, edit, platform))
    if not trusted:
        return case
    root, authority = platform.keys[-1], platform.keys[1]
    for label in DOCUMENTS:
        signers = forge.load(case.item(f"{label}-chain"), where=label)
        leaf = next((c for c in signers if c.issuer != c.subject), signers[0])
        key = forge.ec_key("Intel TCB")
        pem = forge.pem(forge.reissued(leaf, key, root)) + forge.pem(platform.certificates[-1])
        case = case.put(f"{label}-chain", pem).put(label, _resigned(case.item(label), key))
    for label, issuer in (("tdx-root-crl", root), ("tdx-pck-crl", authority)):
        data = crl_bytes(case.item(label), where=label)
        revoked = (chain[0].serial,) if revoke and label == "tdx-pck-crl" else ()
        case = case.put(label, forge.resigned_crl(data, issuer, revoke=revoked))
    return _with_section(roots=(*_section(case).roots, platform.root))(case)


def _resigned(data: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A published document with its exact content under another signature."""
    at = data.rfind(b'"signature"')
    start = data.find(b":", data.find(b'"')) + 1
    content = data[start:at].rstrip().rstrip(b",").rstrip()
    if at < 0 or not content.startswith(b"{"):
        raise Inapplicable("the document is not of the published form")
    signature = forge.raw_signature(key, content, "sha256").hex().encode()
    return data[:start] + content + b',"signature":"' + signature + b'"}'


def _flip(offset: int, mask: int = 1) -> Callable[[bytearray], None]:
    def edit(body: bytearray) -> None:
        body[offset] ^= mask

    return edit


def _foreign(case: Case) -> Case:
    section = _section(case)
    if section.mr_td is None:
        raise Inapplicable("the policy names no firmware")
    return twin(case, _flip(MRTD), trusted=True)


def _rtmr(case: Case) -> Case:
    if _section(case).rtmrs[1] is None:
        raise Inapplicable("the policy does not pin RTMR1")
    return twin(case, _flip(RTMR1), trusted=True)


def _unendorsed(case: Case) -> Case:
    return _with_section(mr_td=(b"\x0f" * 48,), endorsement_roots=())(case)


def _other_claims(case: Case) -> Case:
    """A genuine TD's quote over other claims; on Azure the quote is over the paravisor's."""
    if case.has("azure-hcl"):
        raise Inapplicable("on Azure the vTPM's quote answers the claims")
    other = replace(Claims.decode(case.item("claims")), boot="0f" * 16).report_data()

    def edit(body: bytearray) -> None:
        body[REPORT_DATA : REPORT_DATA + 64] = other

    return twin(case, edit, trusted=True)


def _too_old(case: Case) -> Case:
    return _with_section(max_collateral_age_s=0)(replace(case, now=case.now + timedelta(seconds=1)))


def _eventlog(case: Case) -> Case:
    """One bit of a measured digest."""
    data = case.item("ccel")
    for event in ccel.parse(data).events:
        digest = event.digests.get("sha384", b"")
        if any(digest) and digest in data:
            return case.flip("ccel", data.rfind(digest))
    raise Inapplicable("the event log has no digest to change")


MUTATIONS = (
    Mutation("tdx.quote.removed", "no quote", "tdx.quote.missing", lambda case: case.without("tdx-quote")),
    Mutation("tdx.mrtd", "one bit of the firmware's measurement", "tdx.signature.invalid", _edit(MRTD)),
    Mutation("tdx.rtmr", "one bit of a runtime register", "tdx.signature.invalid", _edit(RTMR0)),
    Mutation("tdx.report_data", "one bit of the report data", "tdx.signature.invalid", _edit(REPORT_DATA)),
    Mutation("tdx.debug", "the debug bit set", "tdx.attributes.debug", _edit(ATTRIBUTES)),
    Mutation("tdx.signature", "one bit of the signature", "tdx.signature.invalid", _after_signed(0)),
    Mutation(
        "tdx.qe.report", "one bit of the quoting enclave's report", "tdx.qe.signature_invalid", _after_signed(150)
    ),
    Mutation(
        "tdx.impostor",
        "the whole quote correctly signed under a chain like Intel's, but for the keys",
        "tdx.chain.untrusted_root",
        lambda case: twin(case, lambda _: None, trusted=False),
    ),
    Mutation(
        "tdx.roots",
        "a platform of a maker that is not accepted",
        "tdx.chain.untrusted_root",
        _with_section(roots=(OTHER_DIGEST,)),
    ),
    Mutation(
        "tdx.twin.debug",
        "a correctly signed quote of a debuggable TD",
        "tdx.attributes.debug",
        lambda case: twin(case, _flip(ATTRIBUTES), trusted=True),
    ),
    Mutation("tdx.twin.mrtd", "a correctly signed quote of foreign firmware", "tdx.mrtd.not_allowed", _foreign),
    Mutation("tdx.twin.rtmr", "a correctly signed quote of another image", "tdx.rtmr.mismatch", _rtmr),
    Mutation(
        "tdx.twin.claims", "a correctly signed quote over other claims", "tdx.report_data.unbound", _other_claims
    ),
    Mutation(
        "tdx.twin.revoked",
        "a correctly signed quote of a platform that was revoked",
        "tdx.chain.revoked",
        lambda case: twin(case, lambda _: None, trusted=True, revoke=True),
    ),
    Mutation(
        "tdx.tcb_info.removed",
        "no TCB info",
        "collateral.tcb_info.missing",
        _missing("tdx-tcb-info", "tdx-tcb-info-chain"),
    ),
    Mutation(
        "tdx.tcb_info.edited",
        "one figure of the TCB info",
        "collateral.tcb_info.signature_invalid",
        _document("tdx-tcb-info"),
    ),
    Mutation(
        "tdx.qe_identity.removed",
        "no identity of the quoting enclave",
        "collateral.qe_identity.missing",
        _missing("tdx-qe-identity", "tdx-qe-identity-chain"),
    ),
    Mutation(
        "tdx.qe_identity.edited",
        "one figure of the quoting enclave's identity",
        "collateral.qe_identity.signature_invalid",
        _document("tdx-qe-identity"),
    ),
    Mutation(
        "tdx.root_crl.removed",
        "no revocation list of the root",
        "collateral.root_crl.missing",
        _missing("tdx-root-crl"),
    ),
    Mutation(
        "tdx.pck_crl.removed",
        "no revocation list of the platform's CA",
        "collateral.pck_crl.missing",
        _missing("tdx-pck-crl"),
    ),
    Mutation("tdx.collateral.stale", "after the TCB info's end", "collateral.expired", _stale),
    Mutation("tdx.collateral.old", "collateral older than the policy takes", "collateral.too_old", _too_old),
    Mutation(
        "tdx.collateral.recovery",
        "collateral of an older TCB recovery than the policy takes",
        "collateral.evaluation_number_too_low",
        _with_section(min_evaluation_number=2**31),
    ),
    Mutation("tdx.firmware", "genuine firmware that is not listed", "tdx.mrtd.not_allowed", _unendorsed),
    Mutation(
        "tdx.platform",
        "the genuine quote of another kind of platform",
        "tdx.platform.not_allowed",
        _with_section(fmspcs=(b"\x0f" * 6,)),
    ),
    Mutation(
        "tdx.module",
        "a TDX module older than the policy's least",
        "tdx.tee_tcb_svn.too_low",
        _with_section(min_tee_tcb_svn=b"\xff" * 16),
    ),
    Mutation("tdx.eventlog", "one bit of a measured digest", "tdx.eventlog.replay_mismatch", _eventlog),
)
