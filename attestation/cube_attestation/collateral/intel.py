# SPDX-License-Identifier: Apache-2.0
"""What a TD quote lacks: TCB info of its platform, identity of the quoting enclave, both revocation lists."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.tdx import abi, chains, endorsement
from cube_attestation.tdx.collateral import Collateral, crl_bytes, issuer_chain_header, published
from cube_attestation.tdx.items import read_collateral
from cube_attestation.tdx.verify import PCK_ISSUERS, Verification, verify
from cube_attestation.x509 import certificate

from . import requests, store
from .model import Answer, Context, Need, Request

ALL = ("tdx.root_crl", "tdx.pck_crl", "tdx.tcb_info", "tdx.qe_identity")
INFO, IDENTITY, ROOT_CRL, PCK_CRL = "tdx-tcb-info", "tdx-qe-identity", "tdx-root-crl", "tdx-pck-crl"
# The header that carries the issuer chain; a PCCS of older days puts SGX before the first
CHAIN_HEADERS = {
    INFO: ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"),
    IDENTITY: ("sgx-enclave-identity-issuer-chain",),
}
MEMBERS = {INFO: "tcbInfo", IDENTITY: "enclaveIdentity"}
WORDS = {
    INFO: "Intel's TCB info for FMSPC {fmspc}",
    IDENTITY: "Intel's identity of the quoting enclave",
    ROOT_CRL: "revocation list of Intel's root CA",
    PCK_CRL: "revocation list of Intel's PCK {ca} CA",
}


def quote_of(evidence: Collection) -> abi.Quote | None:
    """The quote, None if the machine has none. Raises BadInput."""
    data = evidence.get("tdx-quote")
    return None if data is None else abi.parse_quote(data)


def needs(evidence: Collection, context: Context) -> tuple[Need, ...]:
    """What is lacking. Raises BadInput for a quote that can't be read."""
    quote = quote_of(evidence)
    if quote is None:
        return ()
    given = read_collateral(evidence)
    bare = _verify(quote, Collateral(pck_chain=given.pck_chain), context)
    if bare.pck is None:
        words = next((r.words for r in bare.forged if r.code.startswith("tdx.chain.")), "no PCK certificate")
        todo = "the quote's own certificates must lead to Intel's root first; add the PCK chain if it carries none"
        found = [
            Need("intel.pck_chain", "tdx-pck-chain", "PCK certificate chain of the platform", words, todo=todo)
        ]
    else:
        found = [need for label in WORDS if (need := _need(label, quote, given, bare.pck, context))]
    return (*found, *_firmware(evidence, quote, context))


def _need(label: str, quote: abi.Quote, given: Collateral, pck: abi.PckExtension, context: Context) -> Need | None:
    piece = _piece(label, given)
    reasons = problems(quote, piece, context) if piece is not None else ("there is none",)
    if not reasons:
        return None
    tee = "tdx" if isinstance(quote.body, abi.TdReport) else "sgx"
    authority = _authority(quote, given)
    request: Mapping[str, Request] = {
        INFO: requests.tcb_info(tee, pck.fmspc),
        IDENTITY: requests.qe_identity(tee),
        ROOT_CRL: requests.intel_root_crl(pccs=context.pccs),
        PCK_CRL: requests.pck_crl(authority),
    }
    what = WORDS[label].format(fmspc=pck.fmspc.hex(), ca=authority)
    accept = partial(accept_document if label in MEMBERS else accept_list, label=label, context=context)
    name = label.removeprefix("tdx-")
    allowance = f"tdx.{name.replace('-', '_')}"
    return Need(f"intel.{name}", label, what, reasons[0], (request[label],), accept=accept, allowance=allowance)


def _piece(label: str, given: Collateral) -> Collateral | None:
    """One piece alone, with the chains that it is judged by; None if it is not there."""
    pck = given.pck_chain
    if label == INFO and given.tcb_info:
        return Collateral(tcb_info=given.tcb_info, tcb_info_chain=given.tcb_info_chain, pck_chain=pck)
    if label == IDENTITY and given.qe_identity:
        return Collateral(qe_identity=given.qe_identity, qe_identity_chain=given.qe_identity_chain, pck_chain=pck)
    if label == ROOT_CRL and given.root_crl:
        return Collateral(root_crl=given.root_crl, pck_chain=pck)
    if label == PCK_CRL and given.pck_crl:
        return Collateral(pck_crl=given.pck_crl, pck_chain=pck)
    return None


def _authority(quote: abi.Quote, given: Collateral) -> str:
    """Which PCK CA issued the platform's certificate."""
    pem = quote.cert_data if quote.cert_type == abi.CERT_PCK_CHAIN else given.pck_chain
    names = [one.common_name for one in certificate.load(pem, where="PCK certificate chain")]
    return "processor" if PCK_ISSUERS[1] in names else "platform"


def _verify(quote: abi.Quote, given: Collateral, context: Context) -> Verification:
    return verify(quote, given, now=context.now, anchors=context.tdx.roots, allow_missing=ALL)


def problems(quote: abi.Quote, piece: Collateral, context: Context) -> tuple[str, ...]:
    """What is wrong with a piece alone, for this quote and at this time."""
    found = _verify(quote, piece, context).forged
    return tuple(reason.words for reason in found if reason.code.startswith("collateral."))


def accept_document(answer: Answer, evidence: Collection, *, label: str, context: Context) -> Collection:
    """TCB info or QE identity: body as published, with the issuer chain of its header."""
    text = next((answer.headers[name] for name in CHAIN_HEADERS[label] if name in answer.headers), "")
    if not text:
        raise BadInput(f"the header {CHAIN_HEADERS[label][0]} is missing", where=label)
    return put_document(answer.body, issuer_chain_header(text), evidence, label=label, context=context)


def put_document(body: bytes, chain: bytes, evidence: Collection, *, label: str, context: Context) -> Collection:
    """The evidence with a document of Intel's that holds for its quote. Raises BadInput, NotAuthentic."""
    signed = published(body, MEMBERS[label], where=label)
    certificate.load(chain, where=f"{label}'s issuer chain")
    piece = (
        Collateral(tcb_info=signed, tcb_info_chain=chain)
        if label == INFO
        else Collateral(qe_identity=signed, qe_identity_chain=chain)
    )
    _check(piece, evidence, label, context)
    return store.put(store.put(evidence, label, body), f"{label}-chain", chain)


def accept_list(answer: Answer, evidence: Collection, *, label: str, context: Context) -> Collection:
    """A revocation list, in DER, hex or PEM."""
    data = crl_bytes(answer.body, where=label)
    if not data:
        raise BadInput("is empty", where=label)
    _check(Collateral(root_crl=data) if label == ROOT_CRL else Collateral(pck_crl=data), evidence, label, context)
    return store.put(evidence, label, data)


def _check(piece: Collateral, evidence: Collection, label: str, context: Context) -> None:
    quote = quote_of(evidence)
    if quote is None:
        raise BadInput("the bundle has no TDX quote that it could be about", where=label)
    piece = piece.merged(Collateral(pck_chain=evidence.get("tdx-pck-chain") or b""))
    bare = _verify(quote, Collateral(pck_chain=piece.pck_chain), context)
    if bare.pck is None:
        raise NotAuthentic("the quote's own certificates do not lead to an accepted root", why="chain", where=label)
    wrong = problems(quote, piece, context)
    if wrong:
        raise NotAuthentic(wrong[0], why="collateral", where=label)


def _firmware(evidence: Collection, quote: abi.Quote, context: Context) -> tuple[Need, ...]:
    """Google's endorsement of the firmware, where a policy names the root that it must have."""
    label, policy = "gce-launch-endorsement", context.tdx
    if not policy.endorsement_roots or not isinstance(quote.body, abi.TdReport):
        return ()
    if policy.mr_td and quote.body.mr_td in policy.mr_td:
        return ()
    data, mr_td = evidence.get(label), quote.body.mr_td
    reason = "there is none" if data is None else _endorsement_problem(data, mr_td, context)
    if not reason:
        return ()
    what = f"Google's endorsement of firmware {mr_td.hex()[:16]}…"
    accept = partial(accept_endorsement, context=context)
    return (Need("google.endorsement", label, what, reason, (requests.launch_endorsement(mr_td),), accept=accept),)


def _endorsement_problem(data: bytes, mr_td: bytes, context: Context) -> str:
    found = endorsement.parse(data)
    problem = endorsement.verify(found, context.tdx.endorsement_roots, context.now)
    if isinstance(problem, chains.Problem):
        return problem.words
    named = any(measurement.mr_td == mr_td for measurement in found.measurements)
    return "" if named else "it is about other firmware"


def accept_endorsement(answer: Answer, evidence: Collection, *, context: Context) -> Collection:
    """An endorsement that names the quote's MRTD, under a root that the policy names."""
    label, quote = "gce-launch-endorsement", quote_of(evidence)
    if quote is None or not isinstance(quote.body, abi.TdReport):
        raise BadInput("the bundle has no TD quote that it could be about", where=label)
    problem = _endorsement_problem(answer.body, quote.body.mr_td, context)
    if problem:
        raise NotAuthentic(problem, why="endorsement", where=label)
    return store.put(evidence, label, answer.body)
