# SPDX-License-Identifier: Apache-2.0
"""Files that somebody brings, as collateral of a bundle: each part must belong to the bundle's own evidence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import PurePath

from cube_attestation.bundle import Bundle
from cube_attestation.check.tdx import collateral as assembled
from cube_attestation.cmw import Collection
from cube_attestation.errors import AttestationError, BadInput, NotAuthentic
from cube_attestation.nvidia import ocsp
from cube_attestation.nvidia.items import COLLATERAL as NVIDIA
from cube_attestation.recognise import Material
from cube_attestation.snp import abi as snp
from cube_attestation.snp.verify import read_endorsements
from cube_attestation.tdx.collateral import Signed
from cube_attestation.tokens.items import ITEM as TOKENS
from cube_attestation.x509 import certificate
from cube_attestation.x509.certificate import Certificate

from . import amd, intel, issuers, nvidia, sources, store, tokens
from .cache import digest
from .model import Answer, Context, Need

EVIDENCE = ("snp_reports", "tdx_quotes", "td_reports", "hcl_reports", "quotes", "attests", "signatures", "publics",
            "logs", "systemd_logs", "cc_events", "devices", "tokens")  # fmt: skip
_AMD_CA = re.compile(r"(?:ARK|SEV|SEV-VLEK)-([A-Z][a-z]+)")

Place = Callable[[Collection], Collection]


@dataclass(frozen=True)
class Part:
    """One piece of a file: its bytes, the item that it mostly goes to, what it is, and where it may belong."""

    data: bytes
    item: str
    what: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Given:
    """What a step looks at: one file's material, that of all files, and the bundle so far."""

    material: Material
    everything: Material
    evidence: Collection
    context: Context


@dataclass(frozen=True)
class Added:
    """The bundle with what belonged to it, and what was left aside, in words."""

    bundle: Bundle
    taken: tuple[sources.Source, ...]
    aside: tuple[str, ...]


def add(bundle: Bundle, files: Sequence[tuple[str, Material]], context: Context, at: datetime) -> Added:
    """Add every file's parts. ``at``: the time to note.

    Raises BadInput for evidence among the files and for a file of which nothing belongs to the bundle.
    """
    sources.read(bundle.evidence)
    evidence = bundle.evidence
    taken: list[sources.Source] = []
    aside: dict[str, list[str]] = {name: [] for name, _ in files}
    useful: set[str] = set()
    for name, material in files:
        _only_collateral(name, material)
    everything = sum((material for _, material in files), Material())
    for step in STEPS:
        for name, material in files:
            for part in step(Given(material, everything, evidence, context)):
                changed, problem = _place(part, evidence)
                if problem:
                    aside[name].append(f"{part.what}: {problem}")
                    continue
                item = next((one for one in store.LABELS if changed.get(one) != evidence.get(one)), part.item)
                evidence = changed
                useful.add(name)
                # only the file's name: where it lies is nobody's business
                taken.append(sources.Source(item, part.what, PurePath(name).name, digest(part.data), at))
    for name, _ in files:
        if name not in useful:
            why = "; ".join(dict.fromkeys(aside[name])) or "holds no collateral that is known"
            raise BadInput(why, where=name, todo="nothing of it belongs to this bundle's evidence; leave it out")
    evidence = sources.record(bundle.evidence, evidence, taken)
    left = tuple(f"{name}: {words}" for name, listed in aside.items() for words in dict.fromkeys(listed))
    return Added(Bundle(evidence, bundle.receipt), tuple(taken), left)


def _only_collateral(name: str, material: Material) -> None:
    found = [kind for kind in EVIDENCE if getattr(material, kind)]
    if found:
        what = found[0].replace("_", " ")
        raise BadInput(
            f"holds evidence ({what}), not collateral", where=name, todo="use `attestation import` for it"
        )


def _place(part: Part, evidence: Collection) -> tuple[Collection, str]:
    """The evidence with the part where it fits first, or why it fits nowhere."""
    problem = ""
    for place in part.places:
        try:
            return place(evidence), ""
        except (BadInput, NotAuthentic) as error:
            if not problem or getattr(error, "why", "") != "other":
                problem = str(error)
    return evidence, problem or "the bundle has no evidence that it could be about"


def _at(need: Need, data: bytes) -> Place:
    def place(evidence: Collection) -> Collection:
        if need.accept is None:
            raise BadInput(need.why, where=need.item)
        return need.accept(Answer(data), evidence)

    return place


def _certificates(material: Material) -> tuple[Certificate, ...]:
    tables = read_endorsements(material.snp_tables).certificates
    return (*certificate.load_all(material.certificates, where="certificates"), *tables)


def _amd_chain(given: Given) -> Iterator[Part]:
    """ARK, ASK and ASVK, which may come in several files: together they must be a chain."""
    report = amd.report_of(given.evidence)
    mine = [one for one in _certificates(given.material) if _AMD_CA.fullmatch(one.common_name)]
    if report is None or not mine:
        for one in mine:
            yield Part(one.der, amd.CERTIFICATES, one.name, ())
        return
    product = report.product or _line(mine[0], (*_certificates(given.everything), *_held(given.evidence)))
    kind = report.signing_key
    other = "SEV-" if kind == "vlek" else "SEV-VLEK-"
    pool = [one for one in _certificates(given.everything) if _AMD_CA.fullmatch(one.common_name)]
    wanted = {"ARK-" + product, ("SEV-VLEK-" if kind == "vlek" else "SEV-") + product}
    chain = store.pem(one for one in pool if one.common_name in wanted)
    place = partial(_chain, chain, kind, product, given.context)
    for one in mine:
        if one.common_name in wanted:
            yield Part(one.der, amd.CERTIFICATES, one.name, (place,))
        else:
            yield Part(one.der, amd.CERTIFICATES, f"{one.name} ({other.strip('-')} or another product line)", ())


def _held(evidence: Collection) -> tuple[Certificate, ...]:
    return amd.endorsements(evidence).certificates


def _line(authority: Certificate, pool: Sequence[Certificate]) -> str:
    """The product line of a version 2 report: its key's, where that is there, else the chain's. Never Turin."""
    for one in pool:
        if snp.key_kind(one):
            return snp.parse_endorsement_key(one).product
    named = _AMD_CA.fullmatch(authority.common_name)
    return named[1] if named and named[1] != "Turin" else ""


def _chain(chain: bytes, kind: str, product: str, context: Context, evidence: Collection) -> Collection:
    return amd.accept_chain(Answer(chain), evidence, kind=kind, product=product, context=context)


def _amd_leaf(given: Given) -> Iterator[Part]:
    for one in _certificates(given.material):
        if snp.key_kind(one):
            data = one.der
            place = partial(_answered, partial(amd.accept_leaf, context=given.context), data)
            yield Part(data, amd.CERTIFICATES, one.name, (place,))


def _answered(accept: Callable[[Answer, Collection], Collection], data: bytes, evidence: Collection) -> Collection:
    return accept(Answer(data), evidence)


def _issuers(given: Given) -> Iterator[Part]:
    """Issuers of attestation keys, from the leaf up: each is a place only once the one below is there."""
    mine, everybodys = (
        [
            one
            for one in _certificates(material)
            if not snp.key_kind(one) and not _AMD_CA.fullmatch(one.common_name) and "Intel" not in one.name
        ]
        for material in (given.material, given.everything)
    )
    for one in mine:
        yield Part(one.der, issuers.AZURE, one.name, (partial(_any_issuer, one, everybodys, given.context),))


def _any_issuer(
    one: Certificate, left: Sequence[Certificate], context: Context, evidence: Collection
) -> Collection:
    """The evidence with ``one`` and those of ``left`` that must come before it."""
    problem: AttestationError = BadInput("no certificate of the bundle is missing this issuer", where=one.name)
    for _ in range(len(left)):
        ends = [need for need in issuers.slots(evidence, context) if need.name.startswith("issuer.")]
        for need in ends:
            for candidate in (one, *left):
                try:
                    evidence = _at(need, candidate.der)(evidence)
                except (BadInput, NotAuthentic) as error:
                    problem = error
                    continue
                if candidate.der == one.der:
                    return evidence
                break
    for label in (issuers.AZURE, issuers.AK_CHAIN):
        held = evidence.get(label)
        if held and one.der in {c.der for c in certificate.load(held, where=label, padding=True)}:
            return evidence
    raise problem


def _lists(given: Given) -> Iterator[Part]:
    report = amd.report_of(given.evidence)
    products = tuple(dict.fromkeys(given.context.snp.roots.values())) if report else ()
    if report and report.product:
        products = (report.product,)
    tables = tuple(
        content for table in given.material.snp_tables for kind, content in snp.parse_table(table) if kind == "crl"
    )
    for data in (*given.material.crls, *tables):
        places: list[Place] = [
            partial(_answered, partial(amd.accept_list, product=product, context=given.context), data)
            for product in products
        ]
        if "tdx-quote" in given.evidence.items:
            places += [
                partial(_answered, partial(intel.accept_list, label=label, context=given.context), data)
                for label in (intel.ROOT_CRL, intel.PCK_CRL)
            ]
        slots = [need for need in issuers.slots(given.evidence, given.context) if need.item == issuers.AZURE_LISTS]
        places += [_at(need, data) for need in slots]
        yield Part(data, amd.LIST, "revocation list", tuple(places))


def _intel(given: Given) -> Iterator[Part]:
    """Documents as published, or all in one JSON; chains may come from other files or be in the bundle already."""
    if not given.material.collateral:
        return
    quote = intel.quote_of(given.evidence)
    found = assembled(
        Material(collateral=given.material.collateral, certificates=given.everything.certificates), quote
    )
    for label, signed, chain in (
        (intel.INFO, found.tcb_info, found.tcb_info_chain),
        (intel.IDENTITY, found.qe_identity, found.qe_identity_chain),
    ):
        if signed is not None:
            chains = tuple(dict.fromkeys(filter(None, (chain, given.evidence.get(f"{label}-chain")))))
            places = tuple(
                partial(_document, _published(label, signed), one, label, given.context) for one in chains or (b"",)
            )
            yield Part(_published(label, signed), label, intel.WORDS[label].format(fmspc="…"), places)
    for label, data in ((intel.ROOT_CRL, found.root_crl), (intel.PCK_CRL, found.pck_crl)):
        if data:
            place = partial(_answered, partial(intel.accept_list, label=label, context=given.context), data)
            yield Part(data, label, intel.WORDS[label].format(ca=""), (place,))


def _published(label: str, signed: Signed) -> bytes:
    """The body as Intel's service gives it, around the very bytes that are signed."""
    member = intel.MEMBERS[label].encode()
    return b'{"%b":%b,"signature":"%b"}' % (member, signed.content, signed.signature.hex().encode())


def _document(body: bytes, chain: bytes, label: str, context: Context, evidence: Collection) -> Collection:
    if not chain:
        raise BadInput("its issuer chain is missing", where=label, todo="pass the chain of the answer's header too")
    return intel.put_document(body, chain, evidence, label=label, context=context)


def _intel_chain(given: Given) -> Iterator[Part]:
    """Certificates under which a document of the bundle is signed: they were stored with it."""
    labels = (f"{intel.INFO}-chain", f"{intel.IDENTITY}-chain")
    for one in _certificates(given.material):
        if "Intel" in one.name:
            yield Part(one.der, labels[0], one.name, (partial(_signs_document, one, labels),))


def _signs_document(one: Certificate, labels: Sequence[str], evidence: Collection) -> Collection:
    chains = (evidence.get(label) for label in labels)
    known = {c.der for pem in chains if pem for c in certificate.load(pem, where="issuer chain")}
    if one.der not in known:
        raise BadInput("no document of the bundle is signed under it", where=one.name)
    return evidence


def _rims(given: Given) -> Iterator[Part]:
    wanted = [
        one for device in nvidia.devices_of(given.evidence, given.context) for one in nvidia.wanted_by(device)
    ]
    for data in given.material.rims:
        places = tuple(partial(_rim, data, one, given.context) for one in dict.fromkeys(wanted))
        yield Part(data, NVIDIA, "NVIDIA manifest", places)


def _rim(data: bytes, wanted: nvidia.Wanted, context: Context, evidence: Collection) -> Collection:
    return nvidia.put_rim(data, evidence, wanted=wanted, context=context)


def _ocsp(given: Given) -> Iterator[Part]:
    asked = nvidia.pairs(given.evidence, given.context)
    for data in given.material.ocsp:
        serial = ocsp.load(data).serial
        places = tuple(
            partial(_response, data, subject, issuer, given.context)
            for subject, issuer in asked
            if subject.serial == serial
        )
        yield Part(data, NVIDIA, f"OCSP response about serial {serial:x}", places)


def _response(
    data: bytes, subject: Certificate, issuer: Certificate, context: Context, evidence: Collection
) -> Collection:
    return nvidia.put_ocsp(data, evidence, subject=subject, issuer=issuer, context=context)


def _keys(given: Given) -> Iterator[Part]:
    for data in (*given.material.keys, *given.material.offered_keys):
        places = tuple(
            partial(_answered, partial(tokens.accept_keys, issuer=issuer, context=given.context), data)
            for issuer in tokens.issuers_of(given.evidence)
        )
        yield Part(data, TOKENS, "key set", places)


def _endorsements(given: Given) -> Iterator[Part]:
    label = "gce-launch-endorsement"
    for data in given.material.endorsements:
        place = partial(_answered, partial(intel.accept_endorsement, context=given.context), data)
        yield Part(data, label, "Google's endorsement of firmware", (place,))


# In the order in which one vouches for the next
STEPS = (_amd_chain, _amd_leaf, _issuers, _lists, _intel, _intel_chain, _endorsements, _rims, _ocsp, _keys)
