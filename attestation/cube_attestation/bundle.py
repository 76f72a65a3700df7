# SPDX-License-Identifier: Apache-2.0
"""Bundles: everything that a verdict needs in one file, and the gate's receipt for it (formats §3)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from . import dsse, jcs, times
from .claims import NONCE_BYTES
from .cmw import Collection
from .errors import BadInput
from .fields import ENVIRONMENT, Fields

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

VERSION = "cube-bundle/1"


@dataclass(frozen=True)
class Bundle:
    """Evidence with its collateral, and the receipt's DSSE envelope if the gate gave one."""

    evidence: Collection
    receipt: dict[str, jcs.Json] | None = None

    def digest(self) -> str:
        """SHA-256 of the evidence's canonical JSON: what receipts and leases name."""
        return dsse.digest(self.evidence.canonical())


@dataclass(frozen=True)
class Receipt:
    """The gate's word that it gave ``nonce`` and got this bundle at ``time``."""

    nonce: bytes
    bundle: str
    time: datetime
    environment: str


def load(data: bytes, *, where: str = "bundle") -> Bundle:
    """Read a bundle file. Raises BadInput."""
    fields = Fields(jcs.loads(data, where=where), where)
    fields.text("version", pattern=re.compile(re.escape(VERSION)))
    evidence = Collection.from_json(fields.raw("evidence"), where=fields.path("evidence"))
    receipt = fields.raw("receipt")
    fields.done()
    if receipt is None:
        return Bundle(evidence)
    if not isinstance(receipt, dict):
        raise BadInput("expected an envelope or null", where=f"{where}.receipt")
    return Bundle(evidence, receipt)


def dump(bundle: Bundle) -> bytes:
    """The bundle file's bytes: canonical JSON and a newline."""
    return jcs.dumps({"version": VERSION, "evidence": bundle.evidence.to_json(), "receipt": bundle.receipt}) + b"\n"


def with_receipt(
    bundle: Bundle, *, nonce: bytes, time: datetime, environment: str, key: dsse.Signer | ec.EllipticCurvePrivateKey
) -> Bundle:
    """The same bundle with a receipt signed by ``key``."""
    payload = {
        "version": 1,
        "nonce": nonce.hex(),
        "bundle": bundle.digest(),
        "time": times.format_time(time),
        "environment": environment,
    }
    return replace(bundle, receipt=dsse.sign(dsse.RECEIPT, payload, key))


def verify_receipt(envelope: object, keys: Iterable[bytes | str]) -> Receipt:
    """The receipt if one of ``keys`` (DER SPKI or digests) signed it. Raises BadInput or NotAuthentic."""
    verified = dsse.verify(envelope, dsse.RECEIPT, keys, where="receipt")
    fields = Fields(verified.payload, "receipt")
    fields.version()
    receipt = Receipt(
        nonce=fields.hexadecimal("nonce", *NONCE_BYTES),
        bundle=fields.digest("bundle"),
        time=fields.time("time"),
        environment=fields.text("environment", pattern=ENVIRONMENT),
    )
    fields.done()
    return receipt
