# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA devices lack: manifests of their driver and VBIOS, and OCSP about their chains and the signers."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.nvidia import abi, ocsp, rim, verify
from cube_attestation.nvidia.items import COLLATERAL, DEVICES
from cube_attestation.x509.certificate import Certificate

from . import requests, store
from .model import Answer, Context, Need

# Statements of the responder that hold although they are bad news: they are kept, and refused by the verdict
_AUTHENTIC = ("nvidia.ocsp.revoked", "nvidia.ocsp.unknown")


@dataclass(frozen=True)
class Wanted:
    """One manifest: kind (driver or vbios), version as in the report, chip, and the service's name for it."""

    kind: str
    version: str
    chip: str
    identifier: str

    @property
    def words(self) -> str:
        return f"{self.kind} manifest {self.version} for {self.chip}"

    def fits(self, content: rim.Rim) -> bool:
        """Whether a manifest is about this version of this chip."""
        product = content.product.replace("_", "").upper()
        return (content.kind, content.version.upper(), product) == (self.kind, self.version.upper(), self.chip)


def devices_of(evidence: Collection, context: Context) -> tuple[verify.Device, ...]:
    """The bundle's devices, as far as their chains hold. Raises BadInput."""
    data = evidence.get(DEVICES)
    if data is None:
        return ()
    return tuple(
        verify.verify(device, context.nvidia.device_roots, context.now, fwid_required=False)
        for device in abi.decode_evidence(data, where=DEVICES)
    )


def needs(evidence: Collection, context: Context) -> tuple[Need, ...]:
    """What is lacking; OCSP about a manifest's signers only once that manifest is there. Raises BadInput."""
    devices = devices_of(evidence, context)
    given = store.nvidia_collateral(evidence)
    found: dict[str, Need] = {}
    for device in devices:
        if device.leaf is None:
            words = next(reason.words for reason in device.reasons if reason.code.startswith("nvidia.chain."))
            name, what = f"nvidia.chain.{device.report.request_nonce.hex()[:8]}", "certificate chain of a device"
            found[name] = Need(name, DEVICES, what, words, todo="only the device itself can hand over another one")
            continue
        for subject, issuer in pairwise(device.leaf.path.certificates[1:]):
            _ask(subject, issuer, given.by_serial, context, found, "nvidia.device_ocsp")
        for wanted in wanted_by(device):
            fitting = [data for data in given.rims if wanted.fits(rim.parse(data))]
            paths, why = _signers(fitting, context)
            if not paths:
                found[f"nvidia.rim.{wanted.identifier}"] = Need(
                    f"nvidia.rim.{wanted.identifier}",
                    COLLATERAL,
                    wanted.words,
                    why or "there is none",
                    (requests.rim(wanted.identifier),),
                    accept=partial(accept_rim, wanted=wanted, context=context),
                    allowance=f"nvidia.{wanted.kind}_rim",
                )
            for certificates in paths:
                for subject, issuer in pairwise(certificates):
                    _ask(subject, issuer, given.by_serial, context, found, "nvidia.rim_ocsp")
    return tuple(found.values())


def pairs(evidence: Collection, context: Context) -> tuple[tuple[Certificate, Certificate], ...]:
    """Every certificate of devices and manifests that OCSP is asked about, with its issuer. Raises BadInput."""
    found: list[tuple[Certificate, Certificate]] = []
    for device in devices_of(evidence, context):
        if device.leaf is not None:
            found += pairwise(device.leaf.path.certificates[1:])
    for path in _signers(store.nvidia_collateral(evidence).rims, context)[0]:
        found += pairwise(path)
    return tuple(found)


def wanted_by(device: verify.Device) -> tuple[Wanted, ...]:
    """The manifests that a device's report is compared with."""
    report, identifiers = device.report, device.report.rim_ids(device.chip)
    versions = [("vbios", report.vbios_version)]
    if not report.is_switch:
        versions.insert(0, ("driver", report.driver_version))
    return tuple(
        Wanted(kind, version, device.chip, identifier)
        for (kind, version), identifier in zip(versions, identifiers, strict=True)
    )


def _signers(manifests: Sequence[bytes], context: Context) -> tuple[list[tuple[Certificate, ...]], str]:
    """The chains of the manifests that hold, and why one does not."""
    paths: list[tuple[Certificate, ...]] = []
    why = ""
    for data in manifests:
        try:
            paths.append(_verified(data, context).path.certificates)
        except NotAuthentic as error:
            why = error.what
    return paths, why


def _verified(data: bytes, context: Context) -> rim.VerifiedRim:
    rules = context.nvidia
    return rim.verify(data, rules.rim_roots, context.now, allow_expired=rules.allow_expired_rim)


def _ask(
    subject: Certificate,
    issuer: Certificate,
    known: Mapping[int, tuple[bytes, ...]],
    context: Context,
    found: dict[str, Need],
    allowance: str,
) -> None:
    """The need of a response about ``subject``, unless a good one is at hand, or one that says the worst."""
    reasons = ocsp.check(subject, issuer, known, context.now, context.nvidia.ocsp_max_age)
    name = f"nvidia.ocsp.{subject.spki_digest[7:23]}.{subject.serial:x}"
    if not reasons or reasons[0].code == "nvidia.ocsp.revoked" or name in found:
        return
    nonce = context.nonce(name)
    found[name] = Need(
        name,
        COLLATERAL,
        f"OCSP response about {subject.common_name}, serial {subject.serial:x}",
        "there is none" if reasons[0].code == "collateral.ocsp.missing" else reasons[0].words,
        (requests.ocsp_request(subject, issuer, nonce),),
        accept=partial(accept_ocsp, subject=subject, issuer=issuer, nonce=nonce, context=context),
        allowance=allowance,
    )


def accept_rim(answer: Answer, evidence: Collection, *, wanted: Wanted, context: Context) -> Collection:
    """The service's JSON around the manifest."""
    where = f"RIM service, {wanted.identifier}"
    try:
        value = json.loads(answer.body)
        text = value["rim"]
        data = base64.b64decode(text, validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise BadInput("not JSON with a manifest in base64", where=where) from error
    return put_rim(data, evidence, wanted=wanted, context=context)


def put_rim(data: bytes, evidence: Collection, *, wanted: Wanted, context: Context) -> Collection:
    """The evidence with a manifest that fits and holds. Raises BadInput, NotAuthentic."""
    content = rim.parse(data)
    if not wanted.fits(content):
        words = f"a {content.kind} manifest {content.version} for {content.product}, asked for {wanted.words}"
        raise NotAuthentic(words, why="other", where="RIM")
    try:
        _verified(data, context)
    except NotAuthentic as error:
        raise NotAuthentic(error.what, why=error.why, where=f"RIM {wanted.identifier}") from error
    given = store.nvidia_collateral(evidence)
    return store.put_nvidia(evidence, (*given.rims, data), given.ocsp)


def accept_ocsp(
    answer: Answer,
    evidence: Collection,
    *,
    subject: Certificate,
    issuer: Certificate,
    nonce: bytes,
    context: Context,
) -> Collection:
    """A response about ``subject`` that carries our nonce; one from the cache carried that of its own time."""
    where = f"OCSP about {subject.name}"
    response = ocsp.load(answer.body, where=where)
    if not answer.stored:
        _check_nonce(response, nonce, where, optional=context.nonce_optional)
    return put_ocsp(answer.body, evidence, subject=subject, issuer=issuer, context=context)


def put_ocsp(
    data: bytes, evidence: Collection, *, subject: Certificate, issuer: Certificate, context: Context
) -> Collection:
    """The evidence with an authentic, fresh response in place of older good ones. Raises BadInput, NotAuthentic."""
    reasons = ocsp.check(subject, issuer, ocsp.index([data]), context.now, context.nvidia.ocsp_max_age)
    for reason in reasons:
        if reason.code not in _AUTHENTIC:
            words = (
                reason.words if reason.code != "collateral.ocsp.missing" else "the response is about another one"
            )
            raise NotAuthentic(words, why=reason.code, where=f"OCSP about {subject.name}")
    given = store.nvidia_collateral(evidence)
    kept = [known for known in given.ocsp if not superseded(known, data)]
    return store.put_nvidia(evidence, given.rims, (*kept, data))


def superseded(known: bytes, data: bytes) -> bool:
    """Whether ``known`` says good of the same certificate, and no later: ``data`` says all of that."""
    mine, theirs = ocsp.load(known), ocsp.load(data)
    same = mine.serial == theirs.serial and mine.issuer_key_hash == theirs.issuer_key_hash
    return same and mine.status.status == "good" and mine.status.this_update <= theirs.status.this_update


def _check_nonce(response: ocsp.Response, nonce: bytes, where: str, *, optional: bool) -> None:
    found = response.nonce()
    if found is None:
        if optional:
            return
        todo = "this responder answers from stock; --ocsp-nonce optional takes its answers by their dates"
        raise NotAuthentic("the response carries no nonce", why="nonce", where=where, todo=todo)
    if found != nonce:
        raise NotAuthentic("the response answers another request's nonce", why="nonce", where=where)
