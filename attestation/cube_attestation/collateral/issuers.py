# SPDX-License-Identifier: Apache-2.0
"""What certificates of attestation keys lack: issuers up to a root, and the issuers' revocation lists.

Certificates name both by address (RFC 5280, 4.2.1.13 and 4.2.2.1). Only hosts of the table are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from cube_attestation.anchors import google, microsoft
from cube_attestation.azure import verify
from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.tdx.chains import Problem, verify_crl
from cube_attestation.x509 import certificate, crl, der, path
from cube_attestation.x509.certificate import CRL_POINTS, Certificate

from . import requests, store
from .model import Answer, Context, Need, Request

AZURE, AZURE_LISTS, AK, AK_CHAIN = "azure-ak-chain", "azure-crls", "ak-certificate", "ak-chain"
_AUTHORITY_INFO, _CA_ISSUERS = der.oid("1.3.6.1.5.5.7.1.1"), der.oid("1.3.6.1.5.5.7.48.2")
_URI = 0x86


def needs(evidence: Collection, context: Context) -> tuple[Need, ...]:
    """What is lacking. Raises BadInput for certificates that can't be read."""
    lacking = _google(evidence, context)
    return (*_azure(evidence, context), *(need for need in lacking if need.requests))


def slots(evidence: Collection, context: Context) -> tuple[Need, ...]:
    """Where certificates and lists could go, also where there is one already. Raises BadInput."""
    return (*_azure(evidence, context, every=True), *_google(evidence, context))


def _azure(evidence: Collection, context: Context, *, every: bool = False) -> tuple[Need, ...]:
    data = evidence.get(AZURE)
    if "azure-hcl" not in evidence.items:
        return ()
    if data is None:
        todo = "read it from the machine's TPM (index 0x01c101d0) and add it"
        return (Need("azure.ak", AZURE, "certificate of Azure's attestation key", "there is none", todo=todo,
                     allowance=verify.ALLOW_MISSING_AK_CERTIFICATE),)  # fmt: skip
    given = certificate.load(data, where=AZURE, padding=True)
    found = path.find(given[0], (*given[1:], *microsoft.published()), context.azure.roots, context.now)
    if found.problem == "untrusted_root":
        return (_issuer_need(AZURE, found.certificates[-1], context),)
    if found.problem:
        return (Need("azure.ak", AZURE, "chain of Azure's attestation key", found.words,
                     todo="only the machine can hand over another certificate"),)  # fmt: skip
    lists = _lists(evidence)
    wanted: list[Need] = []
    for child, issuer in pairwise(found.certificates):
        known = path.check_revocation((child, issuer), lists, context.now, max_age=context.azure.max_crl_age)
        words = next((words for _, words in known.problems), "a newer one" if every else "")
        if words and CRL_POINTS in child.extensions:
            asked = _asked(_points(child), requests.DER, crl.MAX_BYTES)
            accept = partial(accept_list, issuer=issuer, context=context)
            what = f"revocation list of {issuer.name}"
            wanted.append(
                Need(f"azure.crl.{issuer.spki_digest[7:23]}", AZURE_LISTS, what, words, asked,
                     todo="add the list as a file" if not asked else "", accept=accept,
                     allowance=verify.ALLOW_MISSING_CRL)
            )  # fmt: skip
    return tuple(wanted)


def _google(evidence: Collection, context: Context) -> tuple[Need, ...]:
    """GCE's attestation keys name their issuer; those of other TPMs come with the gate's chain."""
    data = evidence.get(AK)
    if data is None or "azure-hcl" in evidence.items:
        return ()
    leaf = store.one_certificate(data, where=AK)
    chain = evidence.get(AK_CHAIN)
    given = certificate.load(chain, where=AK_CHAIN) if chain else ()
    accepted = (*google.VTPM_ROOTS, *context.ak_issuers)
    found = path.find(leaf, given, accepted, context.now)
    if found.problem != "untrusted_root":
        return ()
    return (_issuer_need(AK_CHAIN, found.certificates[-1], context),)


def _issuer_need(label: str, child: Certificate, context: Context) -> Need:
    """The certificate above ``child``."""
    asked = _asked(_issuer_addresses(child), requests.DER, certificate.MAX_BYTES)
    return Need(
        f"issuer.{child.spki_digest[7:23]}",
        label,
        f"issuer of {child.name}",
        f"{certificate.describe(child.issuer)} is not in the bundle",
        asked,
        todo="" if asked else "the certificate names no host that is known: add its issuer as a file",
        accept=partial(accept_issuer, label=label, child=child, context=context),
    )


def _asked(addresses: Sequence[str], media: tuple[str, ...], limit: int) -> tuple[Request, ...]:
    found = (requests.named(address, media=media, limit=limit) for address in addresses)
    return tuple(request for request in found if request is not None)


def accept_issuer(
    answer: Answer, evidence: Collection, *, label: str, child: Certificate, context: Context
) -> Collection:
    """The certificate that signed ``child`` and may do so now; its own issuer is the next need, up to a root."""
    issuer = store.one_certificate(answer.body, where=f"issuer of {child.name}")
    return put_issuer(issuer, evidence, label=label, child=child, context=context)


def put_issuer(
    issuer: Certificate, evidence: Collection, *, label: str, child: Certificate, context: Context
) -> Collection:
    """The evidence with ``issuer`` at the end of its chain; whether it may issue shows when the chain is whole.

    Raises NotAuthentic.
    """
    where = f"issuer of {child.name}"
    if issuer.subject != child.issuer or not path.signed(child, issuer):
        raise NotAuthentic(f"{issuer.name} did not sign it", why="other", where=where)
    if not issuer.not_before <= context.now <= issuer.not_after:
        words = f"{issuer.name} is valid from {issuer.not_before:%Y-%m-%d} to {issuer.not_after:%Y-%m-%d}"
        raise NotAuthentic(words, why="expired", where=where)
    data = evidence.get(label)
    given = certificate.load(data, where=label, padding=True) if data else ()
    return store.put(evidence, label, store.pem((*given, issuer)))


def accept_list(answer: Answer, evidence: Collection, *, issuer: Certificate, context: Context) -> Collection:
    """A list of ``issuer`` in force, in place of an older one of the same issuer."""
    where = f"list of {issuer.name}"
    found = verify_crl(answer.body, issuer, where=where)
    if isinstance(found, Problem):
        raise NotAuthentic(found.words, why=found.why, where=where)
    if not found.this_update <= context.now <= found.next_update:
        words = f"is in force from {found.this_update:%Y-%m-%d} to {found.next_update:%Y-%m-%d} only"
        raise NotAuthentic(words, why="expired", where=where)
    data = evidence.get(AZURE_LISTS)
    kept = (
        [part for part in _parts(data) if crl.load(part, where=AZURE_LISTS).issuer != found.issuer] if data else []
    )
    return store.put(evidence, AZURE_LISTS, store.pem_lists((*kept, _der(answer.body))))


def _lists(evidence: Collection) -> tuple[crl.Crl, ...]:
    data = evidence.get(AZURE_LISTS)
    return crl.load_all(data, where=AZURE_LISTS) if data else ()


def _parts(data: bytes) -> list[bytes]:
    """The lists of an item, DER each."""
    end = b"-----END X509 CRL-----"
    return [data] if data[:1] == b"\x30" else [_der(part + end) for part in data.split(end)[:-1]]


def _der(data: bytes) -> bytes:
    from cube_attestation.tdx.collateral import crl_bytes

    return crl_bytes(data, where=AZURE_LISTS)


def _issuer_addresses(child: Certificate) -> list[str]:
    """AuthorityInfoAccess: descriptions of (method, name), of which those for issuers that are URIs."""
    value = child.value(_AUTHORITY_INFO)
    if value is None:
        return []
    found: list[str] = []
    try:
        listed = der.Cursor(value, "authority information access").inner()
        while listed.more():
            entry = listed.inner()
            method, tag = entry.oid(), entry.peek()
            name = entry.take(tag)
            if method == _CA_ISSUERS and tag == _URI and name.isascii():
                found.append(name.decode())
    except BadInput:
        return found
    return found


def _points(child: Certificate) -> list[str]:
    """CRLDistributionPoints: the URIs of full names."""
    value = child.value(CRL_POINTS)
    if value is None:
        return []
    found: list[str] = []
    try:
        listed = der.Cursor(value, "CRL distribution points").inner()
        while listed.more():
            point = listed.inner()
            if point.peek() != 0xA0:
                continue
            names = point.inner(0xA0)
            full = names.inner(0xA0) if names.peek() == 0xA0 else None
            while full is not None and full.more():
                tag = full.peek()
                name = full.take(tag)
                if tag == _URI and name.isascii():
                    found.append(name.decode())
    except BadInput:
        return found
    return found
