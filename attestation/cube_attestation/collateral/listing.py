# SPDX-License-Identifier: Apache-2.0
"""The collateral of a bundle as rows: what it is, whose, how long it holds, how old it is at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from cube_attestation import jcs, times
from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.nvidia import ocsp, rim
from cube_attestation.snp.verify import read_endorsements
from cube_attestation.tdx import collateral as intel
from cube_attestation.tdx import endorsement
from cube_attestation.tokens import abi
from cube_attestation.tokens.items import ITEM as TOKENS
from cube_attestation.tokens.items import decode as decode_tokens
from cube_attestation.x509 import certificate, crl

from . import nvidia, store
from .cache import digest
from .model import Context, Need
from .services import Endpoints


@dataclass(frozen=True)
class Row:
    """One piece. ``issued`` and ``until`` are None where the piece has no date; ``problem``: it can't be read."""

    item: str
    what: str
    issuer: str
    issued: datetime | None
    until: datetime | None
    digest: str
    problem: str = ""

    def state(self, now: datetime) -> str:
        """``in force``, ``expired``, ``not yet valid``, ``unreadable`` or ``no date``."""
        if self.problem:
            return "unreadable"
        if self.issued is None and self.until is None:
            return "no date"
        if self.issued is not None and now < self.issued:
            return "not yet valid"
        return "expired" if self.until is not None and now > self.until else "in force"

    def to_json(self, now: datetime) -> dict[str, jcs.Json]:
        found: dict[str, jcs.Json] = {
            "item": self.item,
            "what": self.what,
            "issuer": self.issuer,
            "issued": times.format_time(self.issued) if self.issued else None,
            "until": times.format_time(self.until) if self.until else None,
            "age_s": int((now - self.issued).total_seconds()) if self.issued else None,
            "state": self.state(now),
            "digest": self.digest,
        }
        return {**found, "problem": self.problem} if self.problem else found


def rows(evidence: Collection, context: Context) -> tuple[Row, ...]:
    """Every piece of collateral in the bundle, in a fixed order; what can't be read is a row too.

    ``context``: chains that hold under it tell whom OCSP responses are about.
    """
    found: list[Row] = []
    for label, read in READERS.items():
        data = evidence.get(label)
        if data is None:
            continue
        try:
            found += read(label, data)
        except BadInput as error:
            found.append(Row(label, "", "", None, None, digest(data), str(error)))
    names = {f"serial {serial:x}": name for serial, name in _certified(evidence, context).items()}
    return tuple(_named(row, names) for row in found)


def _certified(evidence: Collection, context: Context) -> dict[int, str]:
    """Serial number → name of the certificates that OCSP is asked about."""
    try:
        return {
            subject.serial: f"{subject.common_name}, serial {subject.serial:x}"
            for subject, _ in nvidia.pairs(evidence, context)
        }
    except BadInput:
        return {}  # rows and needs say what can't be read


def _named(row: Row, names: Mapping[str, str]) -> Row:
    start, _, serial = row.what.partition(", about ")
    return replace(row, what=f"{start}, about {names[serial]}") if serial in names else row


def _certificates(label: str, data: bytes) -> Iterator[Row]:
    for one in certificate.load(data, where=label, padding=True):
        yield _certificate(label, one)


def _certificate(label: str, one: certificate.Certificate) -> Row:
    issuer = certificate.describe(one.issuer)
    return Row(label, f"certificate {one.name}", issuer, one.not_before, one.not_after, digest(one.der))


def _snp(label: str, data: bytes) -> Iterator[Row]:
    given = read_endorsements([data])
    for one in given.certificates:
        yield _certificate(label, one)
    for listed in given.crls:
        yield _list(label, listed)


def _lists(label: str, data: bytes) -> Iterator[Row]:
    for listed in crl.load_all(data, where=label):
        yield _list(label, listed)


def _list(label: str, listed: crl.Crl) -> Row:
    issuer = certificate.describe(listed.issuer)
    what = f"revocation list, {len(listed.revoked)} entries"
    return Row(label, what, issuer, listed.this_update, listed.next_update, listed.digest)


def _tcb_info(label: str, data: bytes) -> Iterator[Row]:
    found = intel.parse_tcb_info(intel.published(data, "tcbInfo", where=label).content)
    what = f"TCB info {found.id} for FMSPC {found.fmspc.hex()}, evaluation {found.evaluation_number}"
    yield Row(label, what, "Intel SGX TCB Signing", found.issued, found.next_update, digest(data))


def _qe_identity(label: str, data: bytes) -> Iterator[Row]:
    found = intel.parse_qe_identity(intel.published(data, "enclaveIdentity", where=label).content)
    what = f"identity of {found.id}, evaluation {found.evaluation_number}"
    yield Row(label, what, "Intel SGX TCB Signing", found.issued, found.next_update, digest(data))


def _endorsement(label: str, data: bytes) -> Iterator[Row]:
    found = endorsement.parse(data)
    signer = certificate.load(found.signer, where=label)[0]
    yield Row(label, "endorsement of firmware", signer.name, found.built, signer.not_after, digest(data))


def _nvidia(label: str, data: bytes) -> Iterator[Row]:
    given = store.nvidia_collateral(Collection().with_item(label, store.LABELS[label], data))
    for manifest in given.rims:
        yield _manifest(label, manifest)
    for response in given.ocsp:
        read = ocsp.load(response)
        what = f"OCSP: {read.status.status}, about serial {read.serial:x}"
        name = read.responder_name
        issuer = certificate.describe(name) if name else f"key {(read.responder_key_hash or b'').hex()}"
        yield Row(label, what, issuer, read.status.this_update, read.status.next_update, digest(response))


def _manifest(label: str, data: bytes) -> Row:
    """A manifest; its signer's dates only if it is signed in the accepted form at all."""
    content = rim.parse(data)
    what = f"{content.kind} manifest {content.version} for {content.product}"
    try:
        signer = rim.signers(data)[0]
    except (BadInput, NotAuthentic) as error:
        return Row(label, what, "", None, None, digest(data), str(error))
    return Row(label, what, signer.name, signer.not_before, signer.not_after, digest(data))


def _tokens(label: str, data: bytes) -> Iterator[Row]:
    for given in decode_tokens(data):
        for key in abi.load_keys(given.keys, where=f"{given.issuer}.keys"):
            yield Row(label, f"key {key.kid or key.spki}", given.issuer, key.not_before, key.not_after, key.spki)


READERS: dict[str, Callable[[str, bytes], Iterator[Row]]] = {
    "snp-certificates": _snp,
    "snp-crl": _lists,
    "tdx-tcb-info": _tcb_info,
    "tdx-tcb-info-chain": _certificates,
    "tdx-qe-identity": _qe_identity,
    "tdx-qe-identity-chain": _certificates,
    "tdx-root-crl": _lists,
    "tdx-pck-crl": _lists,
    "tdx-pck-chain": _certificates,
    "gce-launch-endorsement": _endorsement,
    "azure-ak-chain": _certificates,
    "azure-crls": _lists,
    "ak-chain": _certificates,
    "nvidia-collateral": _nvidia,
    TOKENS: _tokens,
}


def need_json(need: Need, endpoints: Endpoints) -> dict[str, jcs.Json]:
    """A piece that is lacking, with the requests that would bring it."""
    return {
        "name": need.name,
        "item": need.item,
        "what": need.what,
        "why": need.why,
        "requests": [
            f"{request.method} {endpoints.url(request.service, request.path, request.host)}"
            for request in need.requests
        ],
        "todo": need.todo,
        "optional": need.optional,
    }
