# SPDX-License-Identifier: Apache-2.0
"""``check tdx`` and ``check ccel``: a quote with Intel's collateral, the event log that must lead to its RTMRs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from cube_attestation import jcs
from cube_attestation.anchors.intel import INTEL_ROOTS
from cube_attestation.errors import BadInput
from cube_attestation.recognise import Material
from cube_attestation.tdx import abi, ccel
from cube_attestation.tdx.appraise import appraise
from cube_attestation.tdx.collateral import Collateral, from_json
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.tdx.verify import TCB_SIGNER, verify
from cube_attestation.tpm.eventlog import Event, EventLog
from cube_attestation.verdict import ItemVerdict, Reason
from cube_attestation.x509 import certificate, crl

from .result import Given, needed

DSTACK_EVENT = 0x08000001


def collateral(material: Material, quote: abi.Quote | None) -> Collateral:
    """Everything of Intel's that was given, in one piece. Raises BadInput.

    Lists and chains may come inside the JSON or as files of their own. A chain that lacks the root is completed
    with the quote's own copy: that is only bytes, the root's key is pinned.
    """
    found = Collateral()
    for i, data in enumerate(material.collateral):
        found = found.merged(from_json(data, where=f"collateral[{i}]" if i else "collateral"))
    for data in material.crls:
        issuer = certificate.describe(crl.load(data, where="revocation list").issuer)
        if "Root CA" in issuer:
            found = found.merged(Collateral(root_crl=data))
        elif "PCK" in issuer:
            found = found.merged(Collateral(pck_crl=data))
    given = list(certificate.load_all(material.certificates, where="certificates"))
    if quote is not None and quote.cert_type == abi.CERT_PCK_CHAIN:
        given += _quiet(quote.cert_data)
    roots = [one for one in given if one.subject == one.issuer and "SGX Root" in one.name]
    signers = [one for one in given if one.common_name == TCB_SIGNER]
    if signers and roots:
        chain = certificate.to_pem((signers[0], roots[0]))
        found = found.merged(Collateral(tcb_info_chain=chain, qe_identity_chain=chain))
    pck = [one for one in given if one.common_name.startswith("Intel SGX PCK")]
    if pck and roots and quote is not None and quote.cert_type != abi.CERT_PCK_CHAIN:
        leaf_first = sorted(pck, key=lambda one: one.common_name != "Intel SGX PCK Certificate")
        found = found.merged(Collateral(pck_chain=certificate.to_pem((*leaf_first[:2], roots[0]))))
    return found


def _quiet(data: bytes) -> tuple[certificate.Certificate, ...]:
    try:
        return certificate.load(data, where="quote")
    except BadInput:
        return ()  # the quote's own check says what is wrong with it


def policy(given: Given) -> TdxPolicy:
    """No identity is pinned; DEBUG, an outdated TCB, SEPT_VE_DISABLE off and unknown attributes are refused."""
    names = ("tdx.root_crl", "tdx.pck_crl", "tdx.tcb_info", "tdx.qe_identity")
    return TdxPolicy(
        allow_missing=tuple(name for name in names if name in given.allow_missing),
        roots=(*INTEL_ROOTS, *given.roots),
    )


def quote_item(
    given: Given, data: bytes, *, report_data: bytes | None, log: EventLog | None = None
) -> tuple[ItemVerdict, abi.Quote]:
    """The item of one quote. Raises BadInput."""
    quote = abi.parse_quote(data)
    rules = policy(given)
    found = verify(
        quote,
        collateral(given.material, quote),
        now=given.now,
        anchors=rules.roots,
        allow_missing=rules.allow_missing,
    )
    item = appraise(found, rules, report_data=report_data, log=log, item="tdx")
    if {"collateral.tcb_info.missing", "collateral.qe_identity.missing"} & {reason.code for reason in item.forged}:
        # what is missing says already why the TCB can't be told
        item = replace(item, refused=tuple(r for r in item.refused if r.code != "tdx.tcb.unknown"))
    return item, quote


def check(given: Given) -> tuple[ItemVerdict, ...]:
    """The item of the quote, or of the log and then of its quote. Raises BadInput."""
    material = given.material
    log = event_log(material, only=given.kind == "ccel")
    if given.kind == "ccel":
        if log is None:
            raise BadInput(
                "none of the files holds a CC event log", todo="pass /sys/firmware/acpi/tables/data/CCEL"
            )
        return _log(given, log)
    if not material.tdx_quotes and material.td_reports:
        return (ItemVerdict("tdx", (Reason("tdx.quote.missing", "a TDREPORT counts only inside of its machine"),)),)
    data = needed(material.tdx_quotes, "a TDX quote", "pass the quote's bytes, or their hex or base64")
    return (quote_item(given, data, report_data=given.data64(), log=log)[0],)


def _log(given: Given, log: EventLog) -> tuple[ItemVerdict, ...]:
    facts: dict[str, jcs.Json] = {
        "events": len(log.events),
        "banks": list(log.banks),
        **{f"rtmr{i}": value.hex() for i, value in enumerate(ccel.replay(log))},
    }
    if not given.material.tdx_quotes:
        missing = Reason("tdx.quote.missing", "nothing vouches for a log but the quote whose RTMRs it leads to")
        forged = () if "tdx.quote" in given.allow_missing else (missing,)
        return (ItemVerdict("ccel", forged, facts=facts),)
    data = needed(given.material.tdx_quotes, "a TDX quote", "")
    item, quote = quote_item(given, data, report_data=given.data64())
    report = quote.body
    wrong = ccel.check(log, report) if isinstance(report, abi.TdReport) else ()
    return ItemVerdict("ccel", wrong, facts=facts), item


def is_cc_log(data: bytes) -> bool:
    """Whether a log has SHA-384 digests and no others, as its Spec ID event says: a TPM's log has more banks."""
    return data[32:47] == b"Spec ID Event03" and data[56:62] == b"\1\0\0\0\x0c\0"


def event_log(material: Material, *, only: bool) -> EventLog | None:
    """The CC event log, from its area or from dstack's JSON; None if there is none. Raises BadInput.

    ``only``: take whatever log there is. Otherwise a TPM's log beside a quote is left alone.
    """
    logs = tuple(data for data in material.logs if is_cc_log(data)) or (material.logs if only else ())
    if logs:
        return ccel.parse(needed(logs, "an event log", ""))
    if material.cc_events:
        return dstack_log(needed(material.cc_events, "an event log", ""))
    return None


def dstack_log(data: bytes) -> EventLog:
    """dstack's list of ``{imr, event_type, digest, event, event_payload}`` as a log. Raises BadInput.

    Its own events (RTMR3) are SHA-384 over type, name and payload; one that says otherwise is refused.
    """
    events: list[Event] = []
    value = json.loads(data)
    for i, entry in enumerate(value[: ccel.MAX_EVENTS + 1]):
        where = f"dstack event log[{i}]"
        if i >= ccel.MAX_EVENTS:
            raise BadInput(f"more than {ccel.MAX_EVENTS} events", where=where)
        imr, kind, name = entry["imr"], entry["event_type"], entry.get("event", "")
        try:
            digest, payload = bytes.fromhex(entry["digest"]), bytes.fromhex(entry.get("event_payload") or "")
        except (TypeError, ValueError) as error:
            raise BadInput("digest or payload is not hex", where=where) from error
        if (
            not isinstance(imr, int)
            or not 0 <= imr < ccel.REGISTERS
            or not isinstance(kind, int)
            or len(digest) != 48
        ):
            raise BadInput("register, type or digest is malformed", where=where)
        if kind == DSTACK_EVENT and isinstance(name, str):
            said = kind.to_bytes(4, "little") + b":" + name.encode() + b":" + payload
            if payload and hashlib.sha384(said).digest() != digest:
                raise BadInput(f"the digest of event {name[:40]!r} is not that of its payload", where=where)
        events.append(Event(imr + 1, f"EV_0x{kind:08X}", {"sha384": digest}, payload))
    return EventLog(("sha384",), tuple(events))
