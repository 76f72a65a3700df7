# SPDX-License-Identifier: Apache-2.0
"""What an SNP report lacks: the VCEK of its chip and TCB, AMD's chain, AMD's revocation list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from cube_attestation.anchors import amd
from cube_attestation.azure.abi import parse_hcl
from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.snp import abi, verify
from cube_attestation.tdx.chains import Problem, verify_crl
from cube_attestation.x509 import certificate, path

from . import requests, store
from .model import Answer, Context, Need

CERTIFICATES, LIST = "snp-certificates", "snp-crl"
_LIST_CODES = frozenset(path.CRL_CODES.values())


def report_of(evidence: Collection) -> abi.Report | None:
    """The SNP report, its own item or inside an HCL report; None if the machine has none. Raises BadInput."""
    data = evidence.get("snp-report")
    hcl = evidence.get("azure-hcl")
    if data is None and hcl is not None:
        found = parse_hcl(hcl)
        data = found.hardware if found.tee == "snp" else None
    return None if data is None else abi.parse_report(data)


def needs(evidence: Collection, context: Context) -> tuple[Need, ...]:
    """What is lacking, the chain before what it must vouch for. Raises BadInput for a report that can't be read."""
    report = report_of(evidence)
    if report is None or report.signing_key not in ("vcek", "vlek"):
        return ()
    kind = report.signing_key
    given = endorsements(evidence)
    known = _verify(report, given, context)
    wrong = {reason.code: reason.words for reason in known.forged if reason.code not in _LIST_CODES}
    product = report.product or known.product
    found: list[Need] = []
    if product and not _issuers(kind, product, given.certificates, context):
        found.append(_chain_need(kind, product, context))
    if wrong:
        found.append(_leaf_need(report, kind, product, next(iter(wrong.items())), context))
    if product and (reason := _list_problem(known, evidence, product, context)):
        found.append(
            Need(
                f"amd.crl.{kind}.{product}",
                LIST,
                f"AMD's revocation list for {kind.upper()}s of {product}",
                reason,
                (requests.amd_crl(kind, product),),
                accept=partial(accept_list, product=product, context=context),
                allowance=verify.ALLOW_MISSING_CRL,
            )
        )
    return tuple(found)


def endorsements(evidence: Collection) -> verify.Endorsements:
    """Certificates and list as they are in the bundle. Raises BadInput."""
    certificates, crl = evidence.get(CERTIFICATES), evidence.get(LIST)
    return verify.read_endorsements([certificates] if certificates else [], [crl] if crl else [])


def _verify(report: abi.Report, given: verify.Endorsements, context: Context) -> verify.Verified:
    rules = context.snp
    return verify.verify(report, given, now=context.now, roots=rules.roots, max_crl_age=rules.max_crl_age)


def _issuers(
    kind: str,
    product: str,
    certificates: Sequence[certificate.Certificate],
    context: Context,
    *,
    published: bool = True,
) -> tuple[certificate.Certificate, ...]:
    """Intermediate and root of a product line that lead to an accepted root; ``published``: also those shipped."""
    pool = (*certificates, *(amd.published() if published else ()))
    common = f"SEV-VLEK-{product}" if kind == "vlek" else f"SEV-{product}"
    for one in pool:
        if one.common_name == common:
            found = path.find(one, pool, context.snp.roots, context.now)
            if not found.problem and context.snp.roots[found.anchor.spki_digest] == product:
                return found.certificates
    return ()


def _chain_need(kind: str, product: str, context: Context) -> Need:
    return Need(
        f"amd.chain.{kind}.{product}",
        CERTIFICATES,
        f"AMD's chain for {kind.upper()}s of {product}",
        "no intermediate of the bundle leads to an accepted root",
        (requests.amd_chain(kind, product),),
        accept=partial(accept_chain, kind=kind, product=product, context=context),
    )


def _leaf_need(report: abi.Report, kind: str, product: str, wrong: tuple[str, str], context: Context) -> Need:
    """The certificate of the key that signed; reports of version 2 do not say of which product line."""
    code, why = wrong
    need = Need(f"amd.{kind}", CERTIFICATES, f"{kind.upper()} certificate of the report's signer", why)
    if kind == "vlek":
        return replace(
            need, todo="a VLEK is the provider's: take it from the guest's certificate table (auxblob) and add it"
        )
    if report.masked_chip or not any(report.chip_id):
        return replace(need, todo="the host hides the chip's id: ask the provider for the VCEK and add it")
    if code == "snp.signature.algorithm":
        return replace(need, todo="no certificate can vouch for this report")
    lines = (product,) if product else ("Milan", "Genoa")
    asked = tuple(
        requests.vcek(
            line, report.chip_id[: 8 if line == "Turin" else 64], abi.parse_tcb(report.reported_tcb, line)
        )
        for line in lines
    )
    what = f"VCEK certificate of chip {report.chip_id[:8].hex()}… at the reported TCB"
    return replace(need, what=what, requests=asked, accept=partial(accept_leaf, context=context))


def _list_problem(known: verify.Verified, evidence: Collection, product: str, context: Context) -> str:
    """Why the list that is there does not do; empty if it does."""
    if known.authentic:
        return ""  # a chain that names no distribution point needs none
    reasons = [reason.words for reason in known.forged if reason.code in _LIST_CODES]
    if reasons:
        return reasons[0]
    data = evidence.get(LIST)
    return "there is no list" if data is None else _unsound(data, product, evidence, context)


def accept_leaf(answer: Answer, evidence: Collection, *, context: Context) -> Collection:
    """A VCEK or VLEK, with which the report of the bundle is authentic but for the list."""
    leaf = store.one_certificate(answer.body, where="VCEK")
    report = report_of(evidence)
    if report is None or abi.key_kind(leaf) != report.signing_key:
        raise BadInput(f"{leaf.name} is no {report.signing_key.upper() if report else 'VCEK'}", where="VCEK")
    given = endorsements(evidence)
    others = tuple(one for one in given.certificates if abi.key_kind(one) != abi.key_kind(leaf))
    found = _verify(report, verify.Endorsements((leaf, *others), given.crls), context)
    for reason in sorted(found.forged, key=lambda reason: reason.code.startswith("snp.chain.")):
        if reason.code not in _LIST_CODES and reason.code != "snp.chain.revoked":
            raise NotAuthentic(reason.words, why=reason.code, where="VCEK")
    return store.put(evidence, CERTIFICATES, store.pem((leaf, *others)))


def accept_chain(answer: Answer, evidence: Collection, *, kind: str, product: str, context: Context) -> Collection:
    """Intermediate and root, which lead to an accepted root of ``product``."""
    offered = certificate.load(answer.body, where="AMD's chain")
    chain = _issuers(kind, product, offered, context, published=False)
    if not chain:
        raise NotAuthentic(
            f"does not lead to an accepted root of {product}", why="untrusted_root", where="AMD's chain"
        )
    return store.put(evidence, CERTIFICATES, store.pem((*endorsements(evidence).certificates, *chain)))


def accept_list(answer: Answer, evidence: Collection, *, product: str, context: Context) -> Collection:
    """A list of the root of ``product``, in force."""
    problem = _unsound(answer.body, product, evidence, context)
    if problem:
        raise NotAuthentic(problem, why="crl", where="AMD's revocation list")
    return store.put(evidence, LIST, answer.body)


def _unsound(data: bytes, product: str, evidence: Collection, context: Context) -> str:
    """Why a list is none of the product line's root, or not in force; empty if it is. Raises BadInput."""
    roots, limit = context.snp.roots, context.snp.max_crl_age
    pool = (*endorsements(evidence).certificates, *amd.published())
    words = f"is by no accepted root of {product}"
    for root in pool:
        if roots.get(root.spki_digest) != product:
            continue
        found = verify_crl(data, root, where="AMD's revocation list")
        if isinstance(found, Problem):
            words = found.words
            continue
        if not found.this_update <= context.now <= found.next_update:
            return f"is in force from {found.this_update:%Y-%m-%d} to {found.next_update:%Y-%m-%d} only"
        if limit is not None and context.now - found.this_update > limit:
            return f"is of {found.this_update:%Y-%m-%d}, older than the policy takes"
        return ""
    return words
