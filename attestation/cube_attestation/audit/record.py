# SPDX-License-Identifier: Apache-2.0
"""Records and signed heads of an audit chain (formats §11): made in the machine, read by whoever audits.

Records are written one for each request, so ``encode`` is the quick way to the canonical bytes of a flat object
that this package made itself; reading goes through ``jcs`` and refuses everything else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cube_attestation import dsse, jcs, times
from cube_attestation.errors import BadInput
from cube_attestation.fields import ENVIRONMENT, MODEL, Fields

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

MACHINE = "machine"  # the chain of requests that belong to no domain
KINDS = ("genesis", "admission", "request", "gap")
CAUSES = ("envoy.restarted", "agent.restarted", "lines.lost")
MAX_LINE = 16 << 10
MAX_COUNT = jcs.MAX_INTEGER

BOOT = re.compile(r"[0-9a-f]{32}")
CHAIN = re.compile(rf"{MACHINE}|[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}")
METHOD = re.compile(r"[A-Z]{0,20}")
PATH = re.compile(r"(?:/[A-Za-z0-9._/:-]{0,199})?")
REASON = re.compile(r"[A-Za-z0-9_.{}\[\]-]{0,160}")
FLAGS = re.compile(r"[A-Za-z0-9,_-]{0,60}")
ID = re.compile(r"[A-Za-z0-9._@:|/+=-]{0,200}")

Object = dict[str, jcs.Json]

_encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def encode(value: Mapping[str, jcs.Json]) -> bytes:
    """Canonical JSON of an object whose names are ASCII and whose numbers are safe integers.

    The same bytes as ``jcs.dumps``, which checks what is known here, at a tenth of its cost.
    """
    return _encoder.encode(value).encode()


def digest(line: bytes) -> str:
    """``sha256:<hex>`` of a record's canonical bytes, without the line feed."""
    return "sha256:" + hashlib.sha256(line).hexdigest()


@dataclass(frozen=True)
class Chain:
    """Where a chain stands: ``seq`` of the next record and the digest of the last ("" before the genesis)."""

    boot: str
    domain: str
    seq: int = 0
    head: str = ""

    def append(self, kind: str, fields: Mapping[str, jcs.Json]) -> tuple[bytes, Chain]:
        """The next record's canonical bytes and the chain after it."""
        chained: Object = {
            "boot": self.boot,
            "domain": self.domain,
            "kind": kind,
            "previous": self.head,
            "seq": self.seq,
        }
        line = encode({**fields, **chained})
        return line, Chain(self.boot, self.domain, self.seq + 1, digest(line))


@dataclass(frozen=True)
class Before:
    """The last record of the same domain's chain in an earlier boot of which the machine still knew."""

    boot: str
    seq: int
    head: str

    def to_json(self) -> Object:
        return {"boot": self.boot, "seq": self.seq, "head": self.head}


@dataclass(frozen=True)
class Genesis:
    """What a chain begins with: whose records these are and what evidence vouches for the machine.

    ``evidence`` is the digest of the bundle that earned the lease in force, "" when there was none yet.
    """

    environment: str
    tls_spki: str
    audit_spki: str
    launch: str
    evidence: str
    generation: int
    time: datetime
    before: Before | None = None

    def to_json(self) -> Object:
        return {
            "version": 1,
            "environment": self.environment,
            "tls_spki": self.tls_spki,
            "audit_spki": self.audit_spki,
            "launch": self.launch,
            "evidence": self.evidence,
            "generation": self.generation,
            "time": times.format_time(self.time),
            "before": self.before.to_json() if self.before else None,
        }


@dataclass(frozen=True)
class Record:
    """A record that was read: its place in its chain, its digest and all its members."""

    boot: str
    domain: str
    kind: str
    seq: int
    previous: str
    time: datetime
    digest: str
    value: Object


def parse(line: bytes, *, where: str = "record") -> Record:
    """Read one record from its canonical bytes, strictly. Raises BadInput."""
    if len(line) > MAX_LINE:
        raise BadInput(f"longer than {MAX_LINE} bytes", where=where)
    return read(jcs.loads(line, canonical=True, where=where), line, where=where)


def read(value: jcs.Json, line: bytes, *, where: str = "record") -> Record:
    """One record from its parsed ``value`` and its canonical bytes. Raises BadInput."""
    fields = Fields(value, where)
    kind = fields.choice("kind", *KINDS)
    seq = fields.integer("seq", 0, jcs.MAX_INTEGER)
    record = Record(
        boot=fields.text("boot", pattern=BOOT),
        domain=fields.text("domain", pattern=CHAIN),
        kind=kind,
        seq=seq,
        previous=fields.digest("previous", allow_empty=seq == 0),
        time=fields.time("time"),
        digest=digest(line),
        value=value if isinstance(value, dict) else {},
    )
    _READERS[kind](fields)
    fields.done()
    if (kind == "genesis") != (seq == 0) or (record.previous == "") != (seq == 0):
        raise BadInput("a chain begins with its genesis, number 0, and has no other", where=where)
    return record


def genesis(record: Record) -> Genesis:
    """The members of a record of kind ``genesis``. Raises BadInput for another kind."""
    fields = Fields(record.value, "genesis")
    return _genesis(fields)


def _genesis(fields: Fields) -> Genesis:
    fields.version()
    before: Before | None = None
    if fields.raw("before") is not None:
        part = fields.member("before")
        seq = part.integer("seq", 0, jcs.MAX_INTEGER)
        before = Before(part.text("boot", pattern=BOOT), seq, part.digest("head"))
        part.done()
    return Genesis(
        environment=fields.text("environment", pattern=ENVIRONMENT),
        tls_spki=fields.digest("tls_spki"),
        audit_spki=fields.digest("audit_spki"),
        launch=fields.digest("launch"),
        evidence=fields.digest("evidence", allow_empty=True),
        generation=fields.integer("generation", 0, jcs.MAX_INTEGER),
        time=fields.time("time"),
        before=before,
    )


def _admission(fields: Fields) -> None:
    fields.digest("evidence")
    fields.integer("generation", 0, jcs.MAX_INTEGER)


def _gap(fields: Fields) -> None:
    fields.choice("cause", *CAUSES)
    fields.integer("missing", 0, jcs.MAX_INTEGER)
    fields.boolean("exact")
    fields.time("since")
    fields.time("until")


def _request(fields: Fields) -> None:
    fields.text("request", pattern=ID)
    for name in ("token", "key", "subject"):
        fields.text(name, pattern=ID)
    fields.text("method", pattern=METHOD)
    fields.text("path", pattern=PATH)
    if fields.raw("model") != "":
        fields.text("model", pattern=MODEL)
    fields.integer("status", 0, 999)
    fields.text("why", pattern=REASON)
    fields.text("flags", pattern=FLAGS)
    for name in ("generation", "received_bytes", "sent_bytes", "duration_ms"):
        fields.integer(name, 0, jcs.MAX_INTEGER)
    for name in ("prompt_tokens", "completion_tokens", "first_byte_ms"):
        _number_or_null(fields, name)


def _number_or_null(fields: Fields, name: str) -> None:
    if fields.raw(name) is not None:
        fields.integer(name, 0, jcs.MAX_INTEGER)


_READERS = {"genesis": _genesis, "admission": _admission, "request": _request, "gap": _gap}


@dataclass(frozen=True)
class Head:
    """The machine's word that, at ``time``, record ``seq`` with digest ``head`` was the last of this chain."""

    environment: str
    boot: str
    domain: str
    seq: int
    head: str
    time: datetime

    def to_json(self) -> Object:
        return {
            "version": 1,
            "environment": self.environment,
            "boot": self.boot,
            "domain": self.domain,
            "seq": self.seq,
            "head": self.head,
            "time": times.format_time(self.time),
        }

    def sign(self, key: dsse.Signer | ec.EllipticCurvePrivateKey) -> Object:
        """The head's DSSE envelope by the boot's audit key."""
        return dsse.sign(dsse.AUDIT_HEAD, self.to_json(), key)

    @classmethod
    def from_json(cls, value: object, *, where: str = "head") -> Head:
        """Raises BadInput."""
        fields = Fields(value, where)
        fields.version()
        head = cls(
            environment=fields.text("environment", pattern=ENVIRONMENT),
            boot=fields.text("boot", pattern=BOOT),
            domain=fields.text("domain", pattern=CHAIN),
            seq=fields.integer("seq", 0, jcs.MAX_INTEGER),
            head=fields.digest("head"),
            time=fields.time("time"),
        )
        fields.done()
        return head

    @classmethod
    def verify(cls, envelope: object, keys: Iterable[bytes | str], *, where: str = "head") -> Head:
        """The head if one of ``keys`` (DER SPKI or digests) signed it. Raises BadInput or NotAuthentic."""
        return cls.from_json(dsse.verify(envelope, dsse.AUDIT_HEAD, keys, where=where).payload, where=where)
